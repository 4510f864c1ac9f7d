"""Architecture search as ask and tell over plain data: no model, no torch, one study file as the only state."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searchers.evolution import AgingEvolution
    from searchers.local_search import LocalSearch
    from searchers.loop import Searcher, search
    from searchers.morphnet import MorphNet
    from searchers.optuna_adapter import OptunaSearcher
    from searchers.pareto import NSGA2, hypervolume, pareto_front
    from searchers.predictor import PredictorSearch
    from searchers.random_search import RandomSearch
    from searchers.reinforce import Reinforce
    from searchers.smbo import PNAS
    from searchers.study import Study, Trial
    from searchers.topk import TopKEvolution

_HOME = {
    "Trial": "searchers.study",
    "Study": "searchers.study",
    "Searcher": "searchers.loop",
    "search": "searchers.loop",
    "RandomSearch": "searchers.random_search",
    "AgingEvolution": "searchers.evolution",
    "TopKEvolution": "searchers.topk",
    "LocalSearch": "searchers.local_search",
    "MorphNet": "searchers.morphnet",
    "OptunaSearcher": "searchers.optuna_adapter",
    "PredictorSearch": "searchers.predictor",
    "Reinforce": "searchers.reinforce",
    "PNAS": "searchers.smbo",
    "NSGA2": "searchers.pareto",
    "pareto_front": "searchers.pareto",
    "hypervolume": "searchers.pareto",
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
    "pareto_front",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'searchers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)  # PEP 562: a searcher that needs torch loads it alone
