"""Every argument of every searcher is checked before the searcher begins, by the rules in its annotations."""

import importlib.util
import inspect
import math
from typing import Any

import pytest
import torch

from searchers import PNAS, AgingEvolution, MorphNet, Reinforce, TopKEvolution
from searchers.catalog import SEARCHERS, searcher_class, searcher_maker
from supernet import create_supernet
from supernet.cost import CostTable, Feasible
from supernet.errors import InputError
from supernet.space import Choice, SearchSpace

SPACE = SearchSpace("toy", [Choice(f"layer{i}", ("skip", "k3", "k5")) for i in range(4)])
NUMBERS = ("10", "x", math.nan, math.inf, -(10**40), True, [], None)
OPTIONAL = {"mutation", "baseline_start", "temperature", "tanh_constant", "penalty", "strength"}


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_argument_of_a_searcher_is_checked(name: str) -> None:
    if name == "optuna" and importlib.util.find_spec("optuna") is None:
        pytest.skip("needs optuna")
    make = searcher_maker(name)
    for argument, parameter in inspect.signature(searcher_class(name)).parameters.items():
        refused(make, argument, object())
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            for value in NUMBERS:
                if not (value is None and argument in OPTIONAL):
                    refused(make, argument, value)


def refused(make: Any, argument: str, value: object, **others: Any) -> None:
    with pytest.raises(InputError) as error:
        make(**{"space": SPACE, **others, argument: value})
    message = str(error.value)
    assert message.startswith(f"{argument}=") or (make.__name__ == "OptunaSearcher" and argument == "sampler")
    assert "\n" not in message


def test_every_argument_of_morphnet_is_checked() -> None:
    with torch.device("meta"):
        supernet = create_supernet("plain-small-widths")
    table = CostTable(supernet)
    limits = Feasible(table, {"macs": table(supernet.seed)["macs"]})  # type: ignore[attr-defined]
    sound: dict[str, Any] = {"space": supernet.space, "supernet": supernet, "train": print, "feasible": limits}
    MorphNet(**sound)
    for argument in inspect.signature(MorphNet).parameters:
        if argument != "supernet":
            refused(MorphNet, argument, object(), **{k: v for k, v in sound.items() if k != argument})
    with pytest.raises(InputError, match="no widths to shrink"):
        MorphNet(**{**sound, "supernet": object()})
    with pytest.raises(InputError, match=r"keeps one limit|should be limits such as"):
        MorphNet(**{**sound, "feasible": print})


@pytest.mark.parametrize(
    ("kind", "argument", "value", "should"),
    [
        (AgingEvolution, "seed", "x", "should be a valid integer"),
        (AgingEvolution, "seed", None, "should be a valid integer"),
        (AgingEvolution, "population_size", "10", "should be a valid integer"),
        (AgingEvolution, "identity", math.nan, "should be a finite number"),
        (AgingEvolution, "feasible", 5, "should be limits such as supernet.cost.Feasible, or None"),
        (AgingEvolution, "metric", "-", "should be the name of a metric"),
        (AgingEvolution, "space", "digits", "should be a SearchSpace"),
        (TopKEvolution, "crossover", ["uniform"], "should be 'uniform' or 'one-point'"),
        (Reinforce, "hidden", 10**9, "should be less than or equal to 10000"),
        (Reinforce, "learning_rate", 1e29, "should be less than or equal to 10"),
        (Reinforce, "penalty", -1e300, "should be greater than"),
        (PNAS, "beam", 2.0, "should be a valid integer"),
    ],
)
def test_the_message_says_what_is_allowed(kind: Any, argument: str, value: object, should: str) -> None:
    with pytest.raises(InputError, match=f"^{argument}=.* {should}"):
        kind(**{"space": SPACE, argument: value})


def test_wrong_names_are_reported_as_python_does() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'population'"):
        AgingEvolution(SPACE, population=10)  # type: ignore[call-arg]
