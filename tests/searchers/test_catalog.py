"""Every searcher of the catalog can be found, described and made."""

import pytest

from searchers import AgingEvolution, TopKEvolution, list_searchers
from searchers.catalog import SEARCHERS, searcher_class, searcher_maker, searcher_settings
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


def test_an_unknown_searcher_is_an_error() -> None:
    for find in (searcher_class, searcher_maker, searcher_settings):
        with pytest.raises(InputError, match="there is no searcher 'aging'; did you mean 'aging-evolution'"):
            find("aging")
