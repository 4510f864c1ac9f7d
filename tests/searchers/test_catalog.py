"""Every searcher of the catalog can be found, described and made."""

import pytest

from searchers import AgingEvolution, TopKEvolution, list_searchers
from searchers.catalog import SEARCHERS, budget_settings, searcher_class, searcher_maker, searcher_settings
from supernet.errors import InputError
from supernet.space import Choice, SearchSpace

SPACE = SearchSpace("letters", [Choice("a", ("x", "y")), Choice("b", ("x", "y"))])


def test_searchers_are_listed_with_descriptions() -> None:
    listed = list_searchers()
    assert list(listed) == list(SEARCHERS)
    assert all(0 < len(line) <= 60 and "\n" not in line for line in listed.values())
    assert list(list_searchers("*evolution")) == ["aging-evolution", "top-k-evolution"]
    assert list_searchers("no-such-*") == {}


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in ("optuna", "pnas")])
def test_every_name_makes_a_searcher(name: str) -> None:
    searcher = searcher_maker(name)(SPACE, seed=3, feasible=None)
    assert type(searcher) is searcher_class(name)
    assert searcher.seed == 3
    assert len(searcher.ask(1)) == 1


@pytest.mark.parametrize("name", SEARCHERS)
def test_settings_are_constructor_parameters(name: str) -> None:
    settings = searcher_settings(name)
    assert "metric" in settings
    assert not {"space", "seed", "feasible"} & settings.keys()


def test_a_preset_has_its_own_values() -> None:
    spos = searcher_maker("spos")(SPACE, mutants=24)
    assert isinstance(spos, TopKEvolution)
    assert (spos.mutants, spos.crossovers) == (24, 25)
    assert searcher_class("aging-evolution") is AgingEvolution


def test_settings_follow_the_budget_unless_the_published_ones_are_named() -> None:
    assert budget_settings("reinforce", SPACE, 300) == {"learning_rate": 0.0035, "minibatch": 10}
    assert budget_settings("reinforce", SPACE, 300, {"minibatch": 5}) == {"learning_rate": 0.0035}
    assert budget_settings("nsga2", SPACE, 300) == {"population_size": 20}
    assert budget_settings("aging-evolution", SPACE, 200) == {"population_size": 20, "tournament_size": 5}
    assert budget_settings("aging-evolution", SPACE, 200, {"population_size": 40}) == {"tournament_size": 10}
    for name in ("reinforce", "nsga2", "aging-evolution"):
        assert budget_settings(name, SPACE, 20_000) == {}
        assert budget_settings(f"{name}:published", SPACE, 300) == {}
        assert searcher_class(f"{name}:published") is searcher_class(name)
        searcher_maker(f"{name}:published")(SPACE, **budget_settings(name, SPACE, 60)).ask(1)
    assert budget_settings("enas", SPACE, 300) == budget_settings("random", SPACE, 300) == {}
    for name in ("enas", "random"):
        with pytest.raises(InputError, match=f"'{name}' has the same settings for every budget"):
            searcher_maker(f"{name}:published")
    with pytest.raises(InputError, match="did you mean 'reinforce'"):
        searcher_class("reinforc:published")


def test_an_unknown_searcher_is_an_error() -> None:
    for find in (searcher_class, searcher_maker, searcher_settings):
        with pytest.raises(InputError, match="there is no searcher 'aging'; did you mean 'aging-evolution'"):
            find("aging")
