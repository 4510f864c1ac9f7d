"""The searchers by the names that commands use, found without importing any of them."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from supernet.checked import Natural, checked_arguments, shown
from supernet.errors import InputError, nearest
from supernet.space import SearchSpace

PUBLISHED = ":published"
"""Behind a name, as in `reinforce:published`: the settings of the paper, whatever the budget."""


class Entry(NamedTuple):
    """A searcher in the catalog.

    Attributes:
        home: its class as `"module:Class"`, or a preset of it (a class method) as `"module:Class.preset"`.
        description: one line for lists and help.
    """

    home: str
    description: str


SEARCHERS = {
    "random": Entry("searchers.random_search:RandomSearch", "uniform draws, each network once: the baseline"),
    "aging-evolution": Entry("searchers.evolution:AgingEvolution", "regularized evolution (Real et al., 2019)"),
    "top-k-evolution": Entry("searchers.evolution:TopKEvolution", "generations bred from the best networks so far"),
    "detnas": Entry("searchers.evolution:TopKEvolution.detnas", "top-k evolution as released with DetNAS"),
    "spos": Entry("searchers.evolution:TopKEvolution.spos", "top-k evolution as in SPOS (Guo et al., 2020)"),
    "local-search": Entry("searchers.local_search:LocalSearch", "hill climbing with restarts (White et al., 2021)"),
    "predictor": Entry("searchers.predictor:PredictorSearch", "Bayesian optimisation with a surrogate"),
    "nsga2": Entry("searchers.evolution:NSGA2", "several objectives at once (NSGA-II, Deb et al., 2002)"),
    "reinforce": Entry("searchers.reinforce:Reinforce", "recurrent controller trained by PPO, as in NASNet"),
    "enas": Entry("searchers.reinforce:Reinforce.enas", "recurrent controller as released with ENAS (REINFORCE)"),
    "pnas": Entry("searchers.pnas:PNAS", "cells that grow block by block (Liu et al., 2018)"),
    "optuna": Entry("searchers.optuna_search:OptunaSearcher", "any sampler of Optuna, TPE by default"),
}
"""Every searcher that commands offer. MorphNet is not among them: it needs a supernet to train."""


@checked_arguments
def list_searchers(pattern: str = "*") -> dict[str, str]:
    """The names of the searchers that match a shell pattern, such as `"*evolution"`, each with a one-line description.

    Returns:
        name to description, in the order of the catalog; empty if nothing matches.
    """
    return {name: entry.description for name, entry in SEARCHERS.items() if fnmatchcase(name, pattern)}


def searcher_class(name: str) -> type[Any]:
    """The class of a searcher; its constructor's parameters are the searcher's settings.

    Raises:
        InputError: there is no searcher of that name.
    """
    return _resolve(name)[0]


def searcher_maker(name: str) -> Callable[..., Any]:
    """What makes a searcher: its class, or the class method of a preset. It takes the class's arguments either way.

    Raises:
        InputError: there is no searcher of that name.
    """
    kind, preset = _resolve(name)
    maker: Callable[..., Any] = getattr(kind, preset) if preset else kind
    return maker


def searcher_settings(name: str) -> dict[str, inspect.Parameter]:
    """The hyperparameters of a searcher by name: all constructor parameters but `space`, `seed` and `feasible`.

    The defaults are those of the class; a preset has values of its own for some of them.

    Raises:
        InputError: there is no searcher of that name.
    """
    parameters = inspect.signature(searcher_class(name)).parameters
    return {key: value for key, value in parameters.items() if key not in ("space", "seed", "feasible")}


@checked_arguments
def budget_settings(
    name: str, space: SearchSpace, evaluations: Natural, overrides: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The settings in which a searcher departs from its paper because the budget is small.

    The papers searched with thousands of evaluations. A class with a method `for_budget` says what suits fewer.

    Args:
        name: of a searcher. A name with `:published`, or of a preset such as `enas`, has the settings of its paper.
        space: the space to search.
        evaluations: the number of networks that the search will score.
        overrides: settings chosen by hand; none of them is returned.

    Returns:
        constructor arguments; empty if the published settings, which are the defaults of the classes, suit the budget.

    Raises:
        InputError: there is no searcher of that name, it does not fit the space, or the number is negative.
    """
    kind, preset = _resolve(name)
    if preset or name.endswith(PUBLISHED) or not hasattr(kind, "for_budget"):
        return {}
    settings: dict[str, Any] = kind.for_budget(space, evaluations, overrides)
    return {key: value for key, value in settings.items() if key not in overrides}


def _resolve(name: str) -> tuple[type[Any], str]:
    """The class of a searcher, and the name of the preset or nothing."""
    if not isinstance(name, str):
        raise InputError(f"name={shown(name)} should be that of a searcher, such as 'random'")
    plain = name.removesuffix(PUBLISHED)
    if plain not in SEARCHERS:
        raise InputError(f"there is no searcher {plain!r}; {nearest(plain, SEARCHERS)}")
    module, _, path = SEARCHERS[plain].home.partition(":")
    kind, _, preset = path.partition(".")
    attribute = getattr(importlib.import_module(module), kind)
    if plain != name and (preset or not hasattr(attribute, "for_budget")):
        raise InputError(f"{plain!r} has the same settings for every budget; leave out {PUBLISHED!r}")
    return attribute, preset
