"""Architecture search by ask and tell over plain data, with one study file as the only state.

Searchers propose architectures of a space (`supernet.space`); `search` evaluates them, records them in a `Study` and
reports them back. Only `morphnet` sees a model. The package imports `supernet.space` and the ground modules of
`supernet`, and torch only where a searcher needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searchers.catalog import list_searchers
    from searchers.evolution.aging import AgingEvolution
    from searchers.evolution.nsga2 import NSGA2
    from searchers.evolution.topk import TopKEvolution
    from searchers.local_search import LocalSearch
    from searchers.loop import Searcher, search
    from searchers.morphnet.search import MorphNet
    from searchers.optuna_search import OptunaSearcher
    from searchers.pareto import hypervolume, pareto_front
    from searchers.pnas.search import PNAS
    from searchers.predictor.search import PredictorSearch
    from searchers.random_search import RandomSearch
    from searchers.reinforce.search import Reinforce
    from searchers.study import Study, Trial

_HOME = {
    "Trial": "searchers.study",
    "Study": "searchers.study",
    "Searcher": "searchers.loop",
    "search": "searchers.loop",
    "RandomSearch": "searchers.random_search",
    "AgingEvolution": "searchers.evolution",
    "TopKEvolution": "searchers.evolution",
    "LocalSearch": "searchers.local_search",
    "MorphNet": "searchers.morphnet",
    "OptunaSearcher": "searchers.optuna_search",
    "PredictorSearch": "searchers.predictor",
    "Reinforce": "searchers.reinforce",
    "PNAS": "searchers.pnas",
    "NSGA2": "searchers.evolution",
    "pareto_front": "searchers.pareto",
    "hypervolume": "searchers.pareto",
    "list_searchers": "searchers.catalog",
}

__all__ = [
    "NSGA2",
    "PNAS",
    "AgingEvolution",
    "LocalSearch",
    "MorphNet",
    "OptunaSearcher",
    "PredictorSearch",
    "RandomSearch",
    "Reinforce",
    "Searcher",
    "Study",
    "TopKEvolution",
    "Trial",
    "hypervolume",
    "list_searchers",
    "pareto_front",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'searchers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)  # PEP 562: a searcher that needs torch loads it alone
