"""Statistics of rankings against scipy and by hand, and known properties of the shipped table."""

import json
import math
import random
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from supernet import Arch, Choice, SearchSpace, create_supernet
from supernet.errors import InputError
from supernet.ranking.depth import layers
from supernet.ranking.report import RANDOM, SHARED, Report, fidelity
from supernet.ranking.statistics import (
    Interval,
    bootstrap_interval,
    kendall,
    mean_interval,
    membership,
    paired,
    replicate,
    resamples,
    share_better,
    spearman,
    top,
    welch,
)
from supernet.ranking.truth import Truth, distinct, read_truth
from supernet.spaces.nasbench_macro import arch_of, table

MACRO = create_supernet("nasbench-macro").space
FOUR = SearchSpace("four", [Choice(f"c{i}", ("identity", "a", "b")) for i in range(4)])


@cache
def shipped() -> Truth:
    return distinct(MACRO, table())


def costs_of(archs: list[Arch]) -> dict[Arch, dict[str, float]]:
    return {arch: table()[arch] for arch in archs}


def four(n: int) -> list[Arch]:
    return list(FOUR.enumerate())[:n]


def simple(scores: list[float | None], truth: list[float | None], **options: object) -> Report:
    """Returns a report over the first architectures of a small space, cheaper ones first."""
    archs = four(len(scores))
    costs = {arch: {"macs": 1.0 + i, "params": 1.0} for i, arch in enumerate(archs)}
    pairs = dict(zip(archs, scores, strict=True)), dict(zip(archs, truth, strict=True))
    return fidelity(*pairs, space=FOUR, costs=costs, times=20, **options)  # type: ignore[arg-type]


# -- correlations -----------------------------------------------------------------------------------------------------


def test_tau_b_by_hand() -> None:
    # pairs: 12 tie in scores, 13 and 23 agree; τ-b = (2 - 0) / sqrt((3 - 1) · 3)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert kendall([1, 2], [5, 6]) == 1
    assert kendall([1, 2], [6, 5]) == -1
    assert spearman([1, 2], [6, 5]) == pytest.approx(-1)


def test_correlations_agree_with_scipy_where_values_tie() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 10, 200):
        a, b = rng.integers(6, size=(2, size))
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


@pytest.mark.parametrize("statistic", [kendall, spearman])
def test_correlations_are_nan_where_there_is_no_ranking(statistic: Callable[..., float]) -> None:
    assert math.isnan(statistic([1, 1, 1], [1, 2, 3]))
    assert math.isnan(statistic([1, 2, 3], [7, 7, 7]))
    assert math.isnan(statistic([1], [2]))
    with pytest.raises(InputError, match="of the same networks"):
        statistic([1, 2], [1, 2, 3])


# -- intervals --------------------------------------------------------------------------------------------------------


def test_bootstrap_intervals_follow_the_seed_and_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    hits, rho = 0, 0.6
    truth = 2 / math.pi * math.asin(rho)  # τ of a normal pair
    whole = np.ones(120, bool)
    for seed in range(40):
        a, noise = rng.normal(size=(2, 120))
        b = rho * a + math.sqrt(1 - rho**2) * noise
        result = bootstrap_interval(
            kendall(a, b), replicate(kendall, a, b, draws=resamples(120, 60, seed), within=whole)
        )
        hits += result.low <= truth <= result.high
    assert hits >= 34
    again = replicate(kendall, a, b, draws=resamples(120, 60, 39), within=whole)
    assert bootstrap_interval(kendall(a, b), again) == result
    other = replicate(kendall, a, b, draws=resamples(120, 60, 40), within=whole)
    assert bootstrap_interval(kendall(a, b), other) != result


def test_an_interval_needs_resamples_with_a_value() -> None:
    result = bootstrap_interval(
        1.0,
        replicate(kendall, np.array([1.0, 2]), np.array([1.0, 2]), draws=resamples(2, 50, 0), within=np.ones(2, bool)),
    )
    assert result.value == 1
    assert math.isnan(result.low)
    assert str(result) == "1.000"
    assert str(bootstrap_interval(0.5, np.linspace(0, 1, 101))) == "0.500 (0.025 to 0.975)"
    assert math.isnan(bootstrap_interval(math.nan, np.ones(10)).low)


def test_a_band_is_resampled_within() -> None:
    values, inside = np.arange(10.0), np.arange(10) < 4
    seen: list[set[float]] = []

    def note(a: np.ndarray, b: np.ndarray) -> float:
        seen.append(set(a))
        return float(len(a))

    sizes = replicate(note, values, values, draws=resamples(10, 30, 0), within=inside)
    assert set().union(*seen) == {0, 1, 2, 3}
    assert 2 < sizes.mean() < 6


def test_the_interval_of_a_mean_is_students() -> None:
    """For five values 1.96 standard errors would cover 88 %, not 95 %."""
    values = [3.0, 5.0, 4.0, 8.0, 6.0]
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    result = mean_interval(values)
    assert result.value == pytest.approx(5.2)
    assert (result.low, result.high) == pytest.approx(theirs)
    assert (result.high - result.low) / 2 > 1.4 * 1.96 * float(stats.sem(values))
    assert mean_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert math.isnan(mean_interval([2.0]).low)
    assert math.isnan(mean_interval([]).value)


# -- the top ----------------------------------------------------------------------------------------------------------


def test_the_top_by_hand() -> None:
    result = top([9, 8, 7, 1], [0.7, 0.9, 0.1, 0.8], 2)
    assert result.precision.value == 0.5  # of the true top {1, 3} it has 1
    assert (result.precision.low, result.precision.high) == pytest.approx(
        stats.binomtest(1, 2).proportion_ci(0.95, "wilson")
    )
    assert result.regret == 0
    assert result.rank == 1
    assert top([9, 8, 7, 1], [0.7, 0.9, 0.1, 0.8], 1).rank == 3
    assert top([9, 8, 7, 1], [0.7, 0.9, 0.1, 0.8], 1).regret == pytest.approx(0.2)
    assert top([1, 2], [1, 2], 50).precision.value == 1
    with pytest.raises(InputError, match="top 0"):
        top([1], [1], 0)


def test_the_share_of_better_networks_by_hand() -> None:
    truth = [0.7, 0.9, 0.1, 0.8]
    assert share_better([9, 8, 7, 1], truth) == 0.5  # 0.9 and 0.8 are better than 0.7
    assert share_better([1, 9, 1, 1], truth) == 0
    assert share_better([9, 9, 1, 9], truth) == pytest.approx((0.5 + 0 + 0.25) / 3), "ties count at their mean"
    assert share_better([1, 2, 2], [5, 5, 5]) == 0
    for scores in ([], [1.0, 2.0, 3.0]):
        with pytest.raises(InputError, match=f"{len(scores)} scores and 4 true values"):
            share_better(scores, truth)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_ties_at_the_edge_count_at_their_mean_over_all_orders(k: int) -> None:
    scores, truth = [3.0, 2, 2, 2, 1], [0.1, 0.5, 0.9, 0.7, 0.8]
    overlaps, regrets, ranks = [], [], []
    best = sorted(range(5), key=lambda i: -truth[i])
    for order in permutations(range(5)):
        chosen = sorted(order, key=lambda i: -scores[i])[:k]  # stable: the order decides between ties
        overlaps.append(len(set(chosen) & set(best[:k])) / k)
        regrets.append(0.9 - max(truth[i] for i in chosen))
        ranks.append(1 + min(best.index(i) for i in chosen))
    result = top(scores, truth, k)
    assert result.precision.value == pytest.approx(np.mean(overlaps))
    assert result.regret == pytest.approx(np.mean(regrets))
    assert result.rank == pytest.approx(np.mean(ranks))


def test_constant_scores_are_a_random_draw() -> None:
    result = top([0.0] * 100, np.arange(100.0), 10)
    assert result.precision.value == pytest.approx(0.1)
    assert result.rank == pytest.approx(101 / 11)  # the mean of the least of 10 out of 100
    assert membership(np.zeros(4), 1) == pytest.approx([0.25] * 4)


# -- two groups -------------------------------------------------------------------------------------------------------


def test_groups_are_compared_as_scipy_does() -> None:
    a, b = [0.91, 0.92, 0.95], [0.90, 0.88, 0.89, 0.93]
    theirs = stats.ttest_ind(a, b, equal_var=False)
    result = welch(a, b)
    assert result.p == pytest.approx(theirs.pvalue)
    assert (result.mean.low, result.mean.high) == pytest.approx(theirs.confidence_interval(0.95))
    theirs = stats.ttest_rel(a, b[:3])
    result = paired(a, b[:3])
    assert result.p == pytest.approx(theirs.pvalue)
    assert (result.mean.low, result.mean.high) == pytest.approx(theirs.confidence_interval(0.95))


def test_the_detectable_difference_is_found_with_power_0_8() -> None:
    rng = np.random.default_rng(0)
    base = stats.norm.ppf((np.arange(8) + 0.5) / 8)
    base /= base.std(ddof=1)
    shift = welch(base.tolist(), base.tolist()).detectable
    result = [welch((rng.normal(size=8) + shift).tolist(), rng.normal(size=8).tolist()).p < 0.05 for _ in range(250)]
    assert np.mean(result) == pytest.approx(0.8, abs=0.05)


def test_groups_without_spread() -> None:
    alone = welch([0.9], [0.8, 0.7])
    assert alone.mean.value == pytest.approx(0.15)
    assert math.isnan(alone.mean.low)
    assert math.isnan(alone.detectable)
    assert math.isnan(paired([1.0], [2.0]).p)
    assert welch([2.0, 2.0], [1.0, 1.0]).mean == Interval(1.0, 1.0, 1.0)
    assert (welch([1.0, 1.0], [1.0, 1.0]).p, paired([1.0, 1.0], [1.0, 1.0]).p) == (1.0, 1.0)
    with pytest.raises(InputError, match="groups of 0"):
        welch([], [1.0])


# -- the shipped table ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Report:
    result = shipped()
    return fidelity(
        None, result.values, space=MACRO, costs=costs_of(list(result.values)), repeats=result.repeats, times=5
    )


def test_agreement_of_trivial_rankers_with_the_table(published: Report) -> None:
    taus = {ranker.name: ranker.tau.value for ranker in published.rankers}
    assert published.n == 3969
    assert taus["depth"] == pytest.approx(0.679, abs=5e-4)
    assert taus["MACs"] == pytest.approx(0.546, abs=1e-3)
    assert taus["params"] == pytest.approx(0.216, abs=1e-3)
    assert taus["depth, then MACs"] == pytest.approx(0.630, abs=1e-3)
    assert abs(taus[RANDOM]) < 0.05
    assert SHARED not in taus
    assert "depth is best" in published.verdict
    assert "0.679" in published.verdict
    assert [band.n for band in published.rankers[0].bands] == [368, 1137, 1533, 931]
    better = {ranker.name: ranker.better for ranker in published.rankers}
    assert better[RANDOM] == pytest.approx(0.5, abs=0.01)
    assert better["MACs"] < better["depth"] < 0.1, "of many equally deep networks the mean counts"


def test_two_trainings_of_the_table_agree_at_0_88(published: Report) -> None:
    ceiling = published.ceiling
    assert ceiling is not None
    assert (ceiling.runs, ceiling.n) == (3, 3969)
    assert ceiling.seed_to_seed == pytest.approx(0.88, abs=2e-3)
    assert ceiling.seed_to_seed < ceiling.seed_to_rest < ceiling.exact < 1
    assert ceiling.bands[0] > ceiling.bands[3]
    assert "0.879" in published.verdict


def test_the_exact_ceiling_holds_where_the_expectation_is_known() -> None:
    rng = np.random.default_rng(0)
    archs = list(shipped().values)[:2000]
    true = rng.normal(size=2000)
    runs = true + rng.normal(size=(3, 2000))
    truth = dict(zip(archs, runs.mean(0).tolist(), strict=True))
    repeats = dict(zip(archs, runs.T.tolist(), strict=True))
    report = fidelity(None, truth, space=MACRO, costs=costs_of(archs), repeats=repeats, times=2)
    assert report.ceiling is not None
    assert report.ceiling.exact == pytest.approx(kendall(true, runs.mean(0)), abs=0.02)


def test_picks_within_limits_of_the_table(published: Report) -> None:
    window = published.limits[1]
    assert (window.limit, window.n) == (0.5, 1505)
    assert window.picks["depth, then MACs"] == 3
    assert window.picks[RANDOM] == pytest.approx(753, abs=1)
    assert not window.wins
    assert published.limits[-1].n == 3969


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled() -> Report:
    """A report on simulated shared-weight scores: the truth minus a penalty on depth, plus noise."""
    rng = np.random.default_rng(0)
    archs = random.Random(0).sample(list(shipped().values), 400)
    values = {arch: shipped().values[arch] or 0.0 for arch in archs}
    scores = {arch: value - 0.35 * layers(arch) + float(rng.normal(0, 0.3)) for arch, value in values.items()}
    earlier = {arch: value + float(rng.normal(0, 0.5)) for arch, value in scores.items()}
    return fidelity(
        scores,
        shipped().values,
        space=MACRO,
        costs=costs_of(archs),
        repeats=shipped().repeats,
        times=40,
        draws=5,
        checkpoints={"same": scores, "earlier": earlier},
        others={"truth": values},
        largest=max(row["macs"] for row in table().values()),
    )


def test_the_verdict_calls_a_good_ranking_better_than_trivial_ones(sampled: Report) -> None:
    shared, exact = sampled.rankers[:2]
    assert shared.name == SHARED
    assert exact.tau.value == pytest.approx(1)
    assert exact.tops[0].precision.value == 1
    depth = next(ranker for ranker in sampled.rankers if ranker.name == "depth")
    assert shared.tau.low <= shared.tau.value <= shared.tau.high
    assert depth.ahead.value == pytest.approx(shared.tau.value - depth.tau.value)
    assert depth.ahead.low > 0
    assert depth.ahead.high - depth.ahead.low < (shared.tau.high - shared.tau.low) + (depth.tau.high - depth.tau.low)
    assert "better than every trivial ranker: depth" in sampled.verdict
    assert sampled.limits[1].picks["truth"] == 1
    assert [top.k for top in shared.tops] == [1, 10, 50]


def test_equal_trainings_are_where_the_curve_crosses(sampled: Report) -> None:
    equal, tau = sampled.equal_trainings, sampled.rankers[0].tau.value
    assert equal is not None
    assert not equal.beyond
    (few, low), (many, high) = equal.curve[-2:]
    assert low < tau <= high
    assert few < equal.trainings <= many
    assert f"About {equal.trainings:.0f} stand-alone trainings" in sampled.verdict


def test_stability_is_agreement_between_score_lists(sampled: Report) -> None:
    assert sampled.stability["same"] == pytest.approx(1)
    assert 0.6 < sampled.stability["earlier"] < 0.98


def test_the_verdict_does_not_call_depth_alone_good() -> None:
    archs = random.Random(1).sample(list(shipped().values), 200)
    scores = {arch: layers(arch) for arch in archs}
    report = fidelity(scores, shipped().values, space=MACRO, costs=costs_of(archs), times=20, draws=2)
    assert "no better than depth" in report.verdict
    worse = {arch: -value for arch, value in scores.items()}
    report = fidelity(worse, shipped().values, space=MACRO, costs=costs_of(archs), times=20, draws=2)
    assert "worse than depth" in report.verdict
    assert not any(window.wins for window in report.limits)


def test_failed_networks_are_named_and_counted() -> None:
    report = simple([1.0, 2.0, None, 4.0, math.nan, 6.0], [1.0, None, 3.0, 4.0, None, 6.0])
    keys = [arch.key for arch in four(6)]
    assert report.failed == {keys[1]: "no truth", keys[2]: "no score", keys[4]: "no score and no truth"}
    assert report.n == 3
    assert "3 more failed" in report.verdict
    assert report.rankers[0].tau.value == 1
    with pytest.raises(InputError, match="1 of 3 networks"):
        simple([1.0, None, 2.0], [1.0, 2.0, None])


def test_two_networks_and_constant_scores() -> None:
    report = simple([1.0, 2.0], [3.0, 4.0])
    assert report.rankers[0].tau.value == 1
    assert math.isnan(report.rankers[0].tau.low)
    assert report.equal_trainings is None
    constant = simple([5.0] * 30, [float(i % 7) for i in range(30)])
    assert math.isnan(constant.rankers[0].tau.value)
    assert "no ranking" in constant.verdict
    assert constant.equal_trainings is None
    assert constant.rankers[0].tops[1].precision.value == pytest.approx(1 / 3)
    document = json.loads(json.dumps(constant.to_json(), allow_nan=False))
    assert document["rankers"][0]["tau"]["value"] is None
    assert document["n"] == 30


def test_one_network_under_two_names_is_refused() -> None:
    twins = [arch_of("00020000"), arch_of("00002000")]
    values = {arch: 1.0 for arch in twins}
    with pytest.raises(InputError, match="the same network"):
        fidelity(values, values, space=MACRO, costs=costs_of(twins))


def test_rankers_by_depth_need_depths() -> None:
    names = {ranker.name for ranker in simple([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], depth=lambda arch: 7.0).rankers}
    assert names == {SHARED, "MACs", "params", RANDOM}
    assert layers(arch_of("01200000")) == 2


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_csv_file_may_write_architectures_as_digits_numbers_or_json(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    json_arch = arch_of("00000001").to_json().replace('"', '""')
    path.write_text(
        f'arch,accuracy,accuracy_1,accuracy_2\n20000000,0.5,0.4,0.6\n1-0-0-0-0-0-0-0,0.7,0.7,\n"{json_arch}",,,\n'
    )
    result = read_truth(path, MACRO)
    last = MACRO.normal_form(arch_of("00000001"))
    assert result.values == {arch_of("20000000"): 0.5, arch_of("10000000"): 0.7, last: None}
    assert result.repeats == {arch_of("20000000"): (0.4, 0.6)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_file_of_a_spreadsheet_is_read(delimiter: str, encoding: str, tmp_path: Path) -> None:
    """Byte order marks, other delimiters with decimal commas, Windows' line ends, empty lines and cells, equal rows."""
    number = "0.5" if delimiter == "," else "0,5"
    lines = [["arch", "accuracy"], ["20000000", number], ["20000000", number, ""], ["", ""], ["10000000", ""]]
    path = tmp_path / "truth.csv"
    path.write_bytes("\r\n".join(map(delimiter.join, lines)).encode(encoding))
    assert read_truth(path, MACRO).values == {arch_of("20000000"): 0.5, arch_of("10000000"): None}


def test_cells_beyond_the_header_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("arch,accuracy\n20000000,0.5,a note\n10000000,0.7\n")
    with pytest.warns(UserWarning, match=r"1 lines of .* more cells than the header.* line 2"):
        assert list(read_truth(path, MACRO).values.values()) == [0.5, 0.7]


def test_a_table_is_read_by_distinct_networks() -> None:
    result = shipped()
    assert len(result.values) == len(result.repeats) == 3969
    arch = arch_of("00020000")
    assert result.values[arch] == table()[arch]["accuracy"]
    assert arch_of("00002000") not in result.values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch,acc\n20000000,1\n", "no column 'accuracy'"),
        ("accuracy\n1\n", "no column 'arch'"),
        ("arch,accuracy\n20000000,much\n", "line 2: could not convert"),
        ("arch,accuracy\n90000000,1\n", "line 2: index 9"),
        ("arch,accuracy\n200,1\n", "line 2: space"),
        ("", "no column 'arch'"),
        ("arch,accuracy,accuracy\n20000000,1,2\n", "two columns 'accuracy'"),
        ("arch,accuracy\n20000000,inf\n", "line 2: accuracy 'inf' is not finite; leave the cell"),
        ("arch,accuracy\n20000000,nan\n", "line 2: accuracy 'nan' is not finite"),
        ("arch,accuracy\n20000000,0,5\n", "line 2: it has 3 cells, not 2; .* decimal point"),
        ("arch,accuracy\n,0.5\n", "line 2: the cell of the column 'arch' is empty"),
        ('arch,accuracy\n"' + '{""a"":' * 2000 + '",0.5\n', "line 2: an architecture is a JSON object"),
        ("arch,accuracy\n20000000,0.5\n\n20000000,0.6\n", "line 4: the architecture of line 2 again"),
        ("arch,accuracy\n20000000,0.5\n2-0-0-0-0-0-0-0,0.6\n", "line 3: the architecture of line 2 again"),
    ],
)
def test_errors_in_a_table_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_truth(path, MACRO)
    with pytest.raises(InputError, match="there is no file"):
        read_truth(tmp_path / "none.csv", MACRO)
    with pytest.raises(InputError, match="column='arch' has the architectures"):
        read_truth(path, MACRO, column="arch")
