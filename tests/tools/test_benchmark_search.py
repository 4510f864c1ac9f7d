"""The benchmark of searchers as users run it, and every searcher on every space."""

import importlib
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.searcher_cases import MAKERS
from searchers import RandomSearch, Study, search
from searchers.testing import stand_in
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

SMALL = {kind: {"repeats": 1, "filters": 8, "blocks": 2} for kind in ("nasnet", "pnasnet", "amoebanet")}


@pytest.fixture(scope="module")
def bench() -> Any:
    """The modules of the benchmark in one namespace."""
    names = ("oracles", "curves", "fronts", "supernets", "search")
    modules = [importlib.import_module(f"supernet_tools.benchmarks.{name}") for name in names]
    return SimpleNamespace(**{key: value for module in modules for key, value in vars(module).items()})


@pytest.fixture(scope="module")
def macro(bench: Any) -> Any:
    """The NAS-Bench-Macro table."""
    return bench.nasbench_macro()


# -- every searcher on every space -------------------------------------------------------------------------------------


def spaces() -> list[Any]:
    """Every space; of those that differ only in widths or sizes, all but the first are slow tests."""
    from supernet.spaces import SPACES

    first_of_family = {"shufflenet-small", "nasbench-macro", "nasbench201", "plain-small-widths", "nasnet-cifar"}
    assert first_of_family <= set(SPACES)
    return [pytest.param(name, marks=[] if name in first_of_family else pytest.mark.slow) for name in SPACES]


def created(make: Callable[..., Any], space: SearchSpace) -> Any:
    """Returns the searcher, or None if it needs a ladder of cell sizes that this space does not have."""
    try:
        return make(space, seed=0)
    except InputError as error:
        if "ladder" in str(error):
            return None
        raise


@pytest.mark.parametrize("name", spaces())
def test_every_searcher_runs_on_every_space(name: str) -> None:
    """Conditions, ranges and normal forms need no special case: each searcher proposes fifteen networks."""
    import torch

    from supernet.spaces import builder

    with torch.device("meta"):
        space = builder(name)(**SMALL.get(name.partition("-")[0], {})).space

    def evaluate(archs: Any) -> list[dict[str, float]]:
        return [{"accuracy": stand_in(arch), "macs": stand_in(arch, "macs")} for arch in archs]

    for kind, make in MAKERS.items():
        searcher = created(make, space)
        if searcher is None:
            continue
        with Study(None, space) as study:
            search(searcher, evaluate, study, trials=15, batch=5)
            assert len(study) == 15, f"{kind} ended: {study.ended}"
            assert all(math.isfinite(t.metrics["accuracy"]) for t in study.trials())


# -- oracles -----------------------------------------------------------------------------------------------------------


def test_goals_are_read_from_the_table(macro: Any) -> None:
    assert len(macro.metrics) == 3_969
    assert macro.ranked[0] == pytest.approx(93.1267)
    assert [round(goal, 4) for goal in macro.goals.values()] == [93.1267, 93.01, macro.ranked[39]]


@pytest.mark.slow
def test_interactions_cannot_be_explained_by_single_decisions(bench: Any) -> None:
    """A sum over single decisions leaves only noise in one oracle, and about half of the variance in the other."""
    import numpy as np

    def unexplained(oracle: Any) -> float:
        archs = list(oracle.space.enumerate())
        rows = np.array([oracle.space.to_indices(arch) for arch in archs])
        scores = np.array([oracle.metrics[arch.key]["accuracy"] for arch in archs])
        parts = sum(  # the design is balanced, so effects are means
            np.array([scores[column == o].mean() - scores.mean() for o in range(4)])[column] for column in rows.T
        )
        return float(np.var(scores - scores.mean() - parts) / np.var(scores))

    additive, mixed = bench.oracle_of("additive-0"), bench.oracle_of("interactions-0")
    assert unexplained(additive) < 0.005
    assert 0.15 < unexplained(mixed) < 0.6
    assert len(additive.metrics) == additive.space.size() == 16_384
    assert additive.ranked[:2] == pytest.approx([2.354043, 2.352282])  # the same in every process


def test_a_partial_table_confines_the_search(bench: Any, tmp_path: Path, macro: Any) -> None:
    """Every searcher proposes only networks of the file; an empty cell is a failed training."""
    space = macro.space
    archs = list(space.enumerate())[::40]
    lines = [f"{''.join(map(str, space.to_indices(a)))},{'' if i == 3 else i}" for i, a in enumerate(archs)]
    path = tmp_path / "part.csv"
    path.write_text("arch,accuracy\n" + "\n".join(lines) + "\n", encoding="utf-8")
    oracle = bench.from_csv(path, "nasbench-macro")
    for kind in ("random", "local", "predictor", "nsga2"):
        best = bench.curve(oracle, MAKERS[kind](space, seed=1, feasible=oracle.feasible), evaluations=60, batch=1)
        assert len(best) == 60 or best[-1] == oracle.ranked[0]
    path.write_text("arch,accuracy\n00000000,1.5\n11111111,\n", encoding="utf-8")
    with pytest.raises(InputError, match="fewer than two networks"):
        bench.from_csv(path, "nasbench-macro")


# -- curves and goals --------------------------------------------------------------------------------------------------


class Scripted(RandomSearch):
    """Proposes a fixed list of architectures."""

    def __init__(self, space: Any, archs: list[Arch]) -> None:
        super().__init__(space)
        self.archs = archs

    def ask(self, n: int) -> list[Arch]:
        proposed, self.archs = self.archs[:n], self.archs[n:]
        return proposed


def test_a_curve_counts_distinct_networks_in_the_order_proposed(bench: Any, macro: Any) -> None:
    """Two architectures of one network count once; the search ends at the best network in the middle of a batch."""
    space = macro.space
    rows = ("00000000", "00100000", "00010000", "22222222", "22212220", "22222221")
    archs = [space.from_indices([int(digit) for digit in row]) for row in rows]
    scores = [macro.metrics[space.normal_form(arch).key]["accuracy"] for arch in archs]
    assert space.normal_form(archs[1]) == space.normal_form(archs[2]) or scores[1] != scores[2]
    expected, seen = [], set()
    for arch, score in zip(archs[:5], scores, strict=False):
        if (key := space.normal_form(arch).key) not in seen:
            seen.add(key)
            expected.append(max([*expected, score]))
    for batch in (1, 3, 6):
        assert bench.curve(macro, Scripted(space, list(archs)), evaluations=100, batch=batch) == expected
    assert bench.curve(macro, Scripted(space, list(archs)), evaluations=2, batch=6) == expected[:2]


def test_a_row_shows_means_over_the_searches_that_reached_a_goal(bench: Any, macro: Any) -> None:
    top = macro.ranked
    curves = [[80.0, top[5], top[0]], [80.0, 81.0, top[30]], [top[0]]]
    cells = bench.row(macro, curves, (1, 2))
    assert cells[0] == "2.0 ± 12.7 (2 of 3)"
    assert cells[1] == "1.5 ± 6.4 (2 of 3)"
    assert cells[2].startswith("2.0 ± ")
    regret = (2 * (top[0] - 80.0)) / 3
    assert cells[3].startswith(f"{regret:.3f} ± ")
    assert bench.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))


def test_the_predictor_finds_the_best_of_the_published_table(bench: Any, macro: Any) -> None:
    """39 evaluations on average over 200 seeds; aging evolution takes 117."""
    make = bench.maker("predictor")
    curves = [bench.curve(macro, make(macro.space, seed=s), evaluations=150, batch=1) for s in range(2)]
    assert sum(map(len, curves)) / 2 < 75
    assert all(best[-1] == macro.ranked[0] for best in curves)


def test_nsga2_covers_more_of_the_published_front_than_chance(bench: Any, macro: Any) -> None:
    from searchers import NSGA2, hypervolume

    reference, true = bench.reference_of(macro)
    whole = [bench.point(metrics) for metrics in macro.metrics.values()]
    assert hypervolume([p for p in whole if p[0] > 92], reference) < true
    shares = [
        sum(
            hypervolume(bench.evaluated_points(macro, make(macro.space, seed=seed, **settings), 200), reference)
            / true
            / 3
            for seed in range(3)
        )
        for make, settings in ((NSGA2, {"population_size": 20}), (RandomSearch, {}))
    ]
    assert shares[1] + 0.02 < shares[0] < 1


def test_pymoo_evaluates_as_many_networks_of_the_table(bench: Any, macro: Any) -> None:
    pytest.importorskip("pymoo")
    points = bench.pymoo_points(macro, 3, 10, 40)
    assert len(points) == 40
    assert set(points) <= {bench.point(metrics) for metrics in macro.metrics.values()}
    assert bench.pymoo_points(macro, 3, 10, 40) == points
    assert bench.pymoo_points(macro, 4, 10, 40) != points


@pytest.mark.slow
@pytest.mark.parametrize(("peer", "populations"), [("pymoo", (20, 100)), ("optuna", (20, 50, 100))])
def test_nsga2_covers_no_less_than_its_peers(bench: Any, macro: Any, peer: str, populations: tuple[int, ...]) -> None:
    """Share of the true hypervolume after 300 networks, 30 seeds at the same population: never behind beyond chance."""
    pytest.importorskip(peer)
    from searchers import NSGA2, hypervolume

    reference, true = bench.reference_of(macro)
    theirs_of = {"pymoo": bench.pymoo_points, "optuna": bench.optuna_points}[peer]
    for population in populations:
        differences = []
        for seed in range(30):
            searcher = NSGA2(macro.space, seed=seed, population_size=population)
            ours, theirs = (
                hypervolume(points, reference) / true
                for points in (bench.evaluated_points(macro, searcher, 300), theirs_of(macro, seed, population, 300))
            )
            differences.append(ours - theirs)
        mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        print(f"{peer}, N={population}: {mean:+.4f} ± {1.96 * error:.4f}")
        assert mean > -1.96 * error


# -- the script --------------------------------------------------------------------------------------------------------


def test_the_script_prints_a_table_and_writes_curves_and_a_plot(call: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    flags = ("regret", "--oracles", "conditional-0", "--seeds", 2, "--evaluations", 40, "--points", 20)
    names = ("random", "nsga2:population_size=10", "local-search")
    code, out, err = call("benchmarks.search", *flags, "--searchers", *names, "--out", tmp_path / "out")
    assert code == 0, err
    assert all(word in out for word in ("22,620 networks", "regret at 20", "random", "local-search", "of 2)"))
    document = json.loads((tmp_path / "out" / "regret-conditional-0.json").read_text())
    assert set(document["curves"]) == set(names)
    assert all(best == sorted(best) for runs in document["curves"].values() for best in runs)
    html = (tmp_path / "out" / "regret-conditional-0.html").read_text(encoding="utf-8")
    assert all(name in html for name in names)
    assert "distinct evaluations" in html


def test_a_searcher_that_does_not_fit_is_left_out_with_its_reason(call: Callable[..., Any], tmp_path: Path) -> None:
    """NSGA-II needs a second objective, and a table without costs has none."""
    path = tmp_path / "two.csv"
    path.write_text("arch,accuracy\n" + "\n".join(f"0000000{d},{d}" for d in range(3)) + "\n", encoding="utf-8")
    code, out, err = call("benchmarks.search", "regret", "--csv", path, "--seeds", 2, "--searchers", "nsga2", "random")
    assert code == 0, err
    assert "nsga2 is left out of two: trial 0" in out
    assert "no objective 'macs'" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--oracles", "nasbench-mackro"), "did you mean 'nasbench-macro'"),
        (("--oracles", "interactions"), "there is no oracle 'interactions'"),
        (("--searchers", "randm"), "did you mean 'random'"),
        (("--searchers", "random:seeds"), "NAME=VALUE"),
        (("--searchers", "random:metrik=1"), "did you mean 'metric'"),
        (("--batch", 0), "batch=0 should be greater than or equal to 1"),
        (("--csv", "nowhere.csv"), "there is no file nowhere.csv"),
    ],
)
def test_wrong_input_ends_in_one_line(call: Callable[..., Any], flags: tuple[object, ...], words: str) -> None:
    arguments = flags if "--oracles" in flags else ("--oracles", "nasbench-macro", *flags)
    code, _, err = call("benchmarks.search", "regret", "--seeds", 1, "--evaluations", 5, *arguments)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_objectives_that_are_not_scored_are_refused_before_a_search() -> None:
    """The function that creates searchers for a run refuses them, with the costs of a real supernet."""
    from supernet import create_supernet
    from supernet.cost import CostTable, Feasible
    from supernet_tools.pipeline import search as searching

    supernet = create_supernet("nasbench-macro", input_size=8)
    kind = SimpleNamespace(metric="accuracy", metrics=("accuracy", "loss"))
    run: Any = SimpleNamespace(space=supernet.space, cost=CostTable(supernet), kind=kind)
    free = Feasible(run.cost, {})

    def create(name: str, *settings: str) -> Any:
        return searching.create_searcher(name, run, free, 0, settings)

    nsga2 = create("nsga2", 'objectives=["-loss", "-params"]', "mutation=0.2")
    assert (nsga2.objectives, nsga2.mutation) == (("-loss", "-params"), 0.2)
    assert create("predictor", "acquisition=ucb", "beta=2").beta == 2.0
    with pytest.raises(InputError, match="objective '-mac' is not among what is scored; did you mean 'macs'"):
        create("nsga2", 'objectives=["accuracy", "-mac"]')


def test_settings_follow_the_budget_and_a_resumed_search_keeps_its_own(tmp_path: Path) -> None:
    """A search of 60 trials is extended to 600: its population stays that of 60."""
    from supernet import create_supernet
    from supernet.cost import CostTable, Feasible
    from supernet_tools.pipeline import search as searching

    supernet = create_supernet("nasbench-macro", input_size=8)
    kind = SimpleNamespace(metric="accuracy", metrics=("accuracy", "loss"))
    run: Any = SimpleNamespace(space=supernet.space, cost=CostTable(supernet), kind=kind, folder=tmp_path)

    def population(name: str, evaluations: int | None, *settings: str, study: str | None = None) -> int:
        free = Feasible(run.cost, {})
        searcher = searching.create_searcher(name, run, free, 0, settings, evaluations=evaluations, study=study)
        return int(searcher.population_size)

    assert population("aging-evolution", 200) == 20
    assert population("aging-evolution", 200, "population_size=35") == 35
    assert population("aging-evolution:published", 200) == population("aging-evolution", None) == 100
    assert population("nsga2", 300) == 20
    folder = searching.search_folder(tmp_path, "short")
    folder.mkdir(parents=True)
    searcher = searching.create_searcher("aging-evolution", run, Feasible(run.cost, {}), 0, (), evaluations=60)
    with Study(folder / "study.db", run.space) as study:
        search(searcher, lambda archs: [{"accuracy": stand_in(arch)} for arch in archs], study, trials=5)
    assert population("aging-evolution", 600, study="short") == 10
    assert population("aging-evolution", 600, study="another") == 60
    assert population("nsga2", 600, study="short") == 40  # of another class


def test_a_budget_that_does_not_reach_the_largest_cells_is_warned_of(tmp_path: Path) -> None:
    import torch

    from supernet.spaces import builder
    from supernet_tools.pipeline import search as searching

    with torch.device("meta"):
        space = builder("pnasnet-small")(filters=2, input_size=8, blocks=3).space
    kind = SimpleNamespace(metric="accuracy", metrics=("accuracy", "loss"))
    run: Any = SimpleNamespace(space=space, cost=SimpleNamespace(costs=("macs",)), kind=kind, folder=tmp_path)
    free: Any = SimpleNamespace(limits={})
    for settings, evaluations, words in (
        ((), 100, r"needs 138 evaluations .*136 \+ 1 \+ 1 over its levels.*100 are asked for"),
        (("beam=256",), 200, "needs 648 evaluations"),
    ):
        with pytest.warns(UserWarning, match=words):
            searching.create_searcher("pnas", run, free, 0, settings, evaluations=evaluations)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert searching.create_searcher("pnas", run, free, 0, (), evaluations=200).beam == 32


def test_gains_are_paired_with_random_search_of_the_same_seed(call: Callable[..., Any]) -> None:
    flags = ("--oracles", "nasbench-macro", "--seeds", 3, "--evaluations", 30, "--points", 10, 30)
    code, out, err = call("benchmarks.search", "gains", *flags, "--searchers", "random", "local-search", "enas")
    assert code == 0, err
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "±" in line]
    rows = {name: [float(value.split()[0]) for value in values] for name, *values in cells}
    assert rows["random"] == [0.0, 0.0]
    assert rows["local-search"][1] > 0.1
    assert set(rows) == {"random", "local-search", "enas"}


def test_formulas_have_mean_0_and_deviation_1_and_a_landscape_for_each_seed(bench: Any) -> None:
    import random

    for name in ("pyramid", "ladder"):
        first, second = bench.oracles_of(name, (0, 1))
        rng = random.Random(1)
        forms = [first.space.normal_form(first.space.sample(rng)) for _ in range(100)]
        scores, others = ([m["accuracy"] for m in oracle.score(forms)] for oracle in (first, second))
        assert abs(sum(scores) / 100) < 0.4
        assert scores != others
        assert first.name == f"{name}-0"
    with pytest.raises(InputError, match="did you mean 'pyramid-0'"):
        bench.oracle_of("pyramyd-0")
