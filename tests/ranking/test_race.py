"""Stand-alone trainings decide between searched, simple and random networks; a killed race goes on to the same end."""

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supernet.errors import InputError, RunError
from supernet.ranking import rivals
from supernet.ranking.race import Result, Train, additive, race
from supernet.ranking.rivals import GRID, MOST_SCALED, differing, finalists, scaled_networks, simple_networks
from supernet.ranking.trainings import Job, Outcome, Trainings
from supernet.space import Arch, Choice, SearchSpace

OPTIONS = ("skip", "k3", "k5")
SPACE = SearchSpace("toy", [Choice(f"layer{number}", OPTIONS) for number in range(5)])
ARCHS = list(SPACE.enumerate())
GAIN = np.random.default_rng(5).random((5, 3)) * [0.2, 1.0, 1.2]
TRUTH = {arch: 50 + sum(float(GAIN[i, j]) for i, j in enumerate(SPACE.to_indices(arch))) for arch in ARCHS}
MACS = {arch: float(1 + sum(10 * j + i * j for i, j in enumerate(SPACE.to_indices(arch)))) for arch in ARCHS}
NOISE = 0.1


def label(job: Job, noise: float = NOISE) -> float:
    """The score of a training: the truth, an effect of the seed, noise, and less before the end."""
    draw = np.random.default_rng([int(job.arch.key, 16) % 2**32, job.seed]).standard_normal()
    return TRUTH[job.arch] + 0.3 * job.seed + noise * float(draw) - 5 * (1 - job.share)


def feasible(limit: float) -> Callable[[Arch], bool]:
    return lambda arch: MACS[arch] <= limit


def entrants(limit: float = 60.0) -> dict[str, Arch]:
    return simple_networks(SPACE, cost=MACS.__getitem__, feasible=feasible(limit), rng=random.Random(0))


def run(scores: dict[Arch, float], *, train: Train | None = None, **options: Any) -> Result:
    """A race under a limit, with the fifty best by score and two random networks."""
    inside = {arch: score for arch, score in scores.items() if MACS[arch] <= 60}
    best = finalists(SPACE, inside, 50, cost=MACS.__getitem__)
    return race(
        SPACE,
        best,
        train or (lambda jobs: [label(job) for job in jobs]),
        **{
            "simple": entrants(),
            "random": random.Random(1).sample(sorted(inside, key=lambda arch: arch.key), 2),
            "scores": scores,
            "cost": MACS.__getitem__,
            "noise": NOISE,  # critical values for an estimated noise take half a second
            **options,
        },
    )


def shared(seed: int = 0, noise: float = 0.3) -> dict[Arch, float]:
    rng = np.random.default_rng(seed)
    return {arch: TRUTH[arch] + noise * float(rng.standard_normal()) for arch in ARCHS}


def guesses(seed: int = 0) -> dict[Arch, float]:
    rng = np.random.default_rng(seed)
    return {arch: float(rng.standard_normal()) for arch in ARCHS}


def outcome(result: Result) -> tuple[object, ...]:
    """Everything but the time."""
    return result.winner, result.runners, result.margins, result.spent, result.ended, result.verdict


# -- who races --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [rivals.LISTED, 0])
@pytest.mark.parametrize("limit", [25.0, 40.0, 60.0, 1e9])
def test_the_largest_and_the_deepest_are_those_of_brute_force(
    limit: float, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the climb that larger spaces need."""
    monkeypatch.setattr(rivals, "LISTED", listed)
    inside = [arch for arch in ARCHS if MACS[arch] <= limit]

    def depth(arch: Arch) -> int:
        return sum(value != "skip" for value in arch.values())

    named = entrants(limit)
    assert max(map(MACS.__getitem__, named.values())) == max(map(MACS.__getitem__, inside))
    deepest = named["deepest, then largest"]
    assert (depth(deepest), MACS[deepest]) == max((depth(arch), MACS[arch]) for arch in inside)
    assert all(MACS[arch] <= limit for arch in named.values())
    assert len(set(named.values())) == len(named)


def test_decisions_of_a_kind_are_scaled_alike() -> None:
    stages = [
        choice
        for stage, depths in enumerate(((1, 2), (2, 3, 4)))
        for choice in (
            Choice(f"stage{stage}.depth", depths, ordered=True),
            Choice(f"stage{stage}.width", tuple(range(8, 72, 8)), ordered=True),
        )
    ]
    space = SearchSpace("compound", [Choice("input.resolution", (64, 96), ordered=True), *stages])
    archs = [tuple(arch.values()) for arch in scaled_networks(space)]
    assert archs[0] == (96, 2, 64, 4, 64)  # the largest first
    assert len(archs) == len(set(archs)) == 2 * 3 * GRID
    assert (96, 1, 64, 3, 64) in archs  # one block less in every stage
    assert (96, 1, 64, 2, 64) in archs  # and two, where a stage has them
    assert (64, 2, 64, 4, 64) in archs
    assert all(first == second for _, _, first, _, second in archs)  # widths
    many = SearchSpace("many", [Choice(f"c{i}.k{i}", tuple(range(9)), ordered=True) for i in range(12)])
    assert len(scaled_networks(many)) <= MOST_SCALED
    unordered = SearchSpace("ops", [Choice(f"b{i}", ("a", "b", "c")) for i in range(4)])
    assert [set(arch.values()) for arch in scaled_networks(unordered)] == [{"a"}, {"b"}, {"c"}]


def test_one_option_everywhere_at_the_largest_scale_that_fits() -> None:
    named = entrants(1e9)
    assert set(named["k3 everywhere"].values()) == {"k3"}
    (scaled,) = (arch for name, arch in entrants(30).items() if name.startswith("k3 everywhere at scale"))
    assert set(scaled.values()) == {"skip", "k3"}

    def widths(*values: int) -> Arch:
        return Arch({f"width{number}": value for number, value in enumerate(values)})

    elastic = SearchSpace("elastic", [Choice(f"width{i}", (16, 32, 48, 64), ordered=True) for i in range(3)])
    width = simple_networks(
        elastic,
        cost=lambda arch: float(sum(map(int, arch.values()))),
        feasible=lambda arch: sum(map(int, arch.values())) <= 110,
        rng=random.Random(0),
        published={
            "published": widths(64, 16, 16),
            "too large": widths(64, 64, 64),
        },
    )
    assert {tuple(arch.values()) for name, arch in width.items() if "everywhere" in name} == {(32, 32, 32)}
    assert "published" in width
    assert "too large" not in width


def test_no_simple_network_within_the_limits() -> None:
    with pytest.raises(InputError, match="within the limits; raise them"):
        entrants(0.5)


def test_finalists_are_distinct_and_the_cheapest_of_equal_scores_comes_first() -> None:
    scores = {arch: 1.0 if MACS[arch] < 100 else 0.0 for arch in ARCHS} | {ARCHS[7]: math.nan}
    best = finalists(SPACE, scores, 20, cost=MACS.__getitem__)
    assert len(set(best)) == 20
    assert ARCHS[7] not in best
    assert [MACS[arch] for arch in best] == sorted(MACS[arch] for arch in best)


def test_tied_finalists_differ_more_than_the_best_by_score() -> None:
    scores = shared()
    ranked = sorted(ARCHS, key=lambda arch: -scores[arch])
    thinned = finalists(SPACE, scores, 5, cost=MACS.__getitem__, tied=ranked[:60])
    assert thinned[0] == ranked[0]
    assert set(thinned) <= set(ranked[:60])

    def closest(archs: list[Arch]) -> int:
        return min(differing(a, b) for a in archs for b in archs if a != b)

    assert closest(thinned) > closest(ranked[:5])


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_search_paid() -> None:
    result = run(shared(), trainings=30)
    assert result.winner.arm == "search"
    assert result.paid
    assert result.verdict.startswith("the search paid: the winner minus the best simple network (")
    margin = result.margins["simple"].difference
    best = max(TRUTH[arch] for arch in ARCHS if MACS[arch] <= 60)
    assert TRUTH[result.winner.arch] > best - 3 * NOISE
    assert 0 < margin.low <= TRUTH[result.winner.arch] - TRUTH[result.margins["simple"].over.arch] <= margin.high


def test_the_noise_is_estimated_from_repeated_trainings() -> None:
    result = run(shared(), trainings=30, noise=None)
    assert NOISE / 2 < result.noise < 2 * NOISE
    assert result.winner.arm == "search"


def test_a_simple_network_wins_against_guesses() -> None:
    best = max((arch for arch in ARCHS if MACS[arch] <= 60), key=TRUTH.__getitem__)
    for seed in range(3):
        result = run(guesses(seed), simple={"the plain one": best, **entrants()})
        assert result.winner.arch == best
        assert not result.paid
        assert result.verdict.startswith("a simple network won (the plain one), take it; the search paid nothing: ")


def test_no_gain_is_shown_where_noise_is_large() -> None:
    """And the sentence says what could have been seen."""
    result = run(shared(), train=lambda jobs: [label(job, 1.0) for job in jobs], noise=1.0, seeds=1)
    assert not result.paid
    margin = result.margins.get("simple") or result.margins["search"]
    assert margin.detectable > 1.0
    if result.winner.arm == "search":
        assert f"a difference of {margin.detectable:.4f} or more would have been seen" in result.verdict


def test_one_training_each_shows_nothing_without_a_known_noise() -> None:
    result = run(shared(), seeds=1, noise=None)
    assert math.isnan(result.noise)
    assert not result.paid
    assert "no network was trained twice" in result.verdict
    assert result.ended == "the budget is spent"


@pytest.mark.parametrize("seed", range(6))
def test_the_winner_is_never_below_a_simple_network_in_its_own_trainings(seed: int) -> None:
    for scores in (shared(seed), guesses(seed)):
        result = run(scores, trainings=6 + 4 * seed, train=lambda jobs: [label(job, 0.5) for job in jobs], noise=0.5)
        if result.winner.arm != "simple":
            assert result.margins["simple"].difference.value >= 0


def test_equal_networks_rarely_pay() -> None:
    """Simultaneous intervals: in 40 races between equal networks at most 5 claim a gain; 2 are expected."""
    paid = 0
    for seed in range(40):
        draw = np.random.default_rng(seed).standard_normal
        result = run(guesses(seed), train=lambda jobs, draw=draw: draw(len(jobs)).tolist(), noise=1.0, trainings=12)
        paid += result.paid
    assert paid <= 5


def test_ties_go_to_the_cheapest() -> None:
    result = run(shared(), train=lambda jobs: [0.5] * len(jobs), noise=None)
    assert result.winner.cost == min(
        runner.cost for runner in result.runners if len(runner.scores) == len(result.winner.scores)
    )


@pytest.mark.parametrize(
    ("cheap", "dear", "winner"),
    [
        (0.65, 0.65, "simple"),  # less than half a standard error of a difference, 0.71, ahead of the simple network
        (0.75, 0.80, "cheap"),  # both are further ahead, and too close to each other
        (0.75, 1.50, "dear"),
        (-0.1, 0.75, "dear"),
    ],
)
def test_what_is_within_half_a_standard_error_counts_as_equal(cheap: float, dear: float, winner: str) -> None:
    by_cost = sorted(ARCHS, key=MACS.__getitem__)
    archs = {"cheap": by_cost[10], "simple": by_cost[5], "dear": by_cost[40]}
    scores = {archs["cheap"]: cheap, archs["simple"]: 0.0, archs["dear"]: dear}
    result = race(
        SPACE,
        [archs["cheap"], archs["dear"]],
        lambda jobs: [scores[job.arch] for job in jobs],
        simple={"one": archs["simple"]},
        cost=MACS.__getitem__,
        noise=1.0,
        seeds=1,
        trainings=4,
    )
    assert result.winner.arch == archs[winner]


def test_paired_seeds_leave_the_effect_of_the_seed_out() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4, 3)) + np.array([0, 50, -20])
    effects, covariance, residual, freedom = additive(scores.tolist())
    assert effects == pytest.approx(scores.mean(1))
    assert np.diag(covariance)[0] + np.diag(covariance)[1] - 2 * covariance[0, 1] == pytest.approx(2 / 3)
    centred = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    assert residual == pytest.approx((centred**2).sum())
    assert freedom == 6
    short = additive([scores[0].tolist(), scores[1].tolist(), [5.0]])
    assert short[0][0] - short[0][1] == pytest.approx((scores[0] - scores[1]).mean())


# -- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainings", [2, 3, 7, 20, 33.5])
@pytest.mark.parametrize("shares", [(1.0,), (0.25, 1.0), (0.1, 0.3, 1.0)])
def test_the_budget_is_kept_and_every_arm_is_trained(trainings: float, shares: tuple[float, ...]) -> None:
    jobs: list[Job] = []
    result = run(shared(), trainings=trainings, shares=shares, on_training=lambda job, _: jobs.append(job))
    assert result.spent <= trainings + 1e-9
    assert {"search", "simple"} <= {runner.arm for runner in result.runners if runner.scores}
    assert len(jobs) == len(set(jobs))
    own = {
        job: max((other.share for other in jobs[:place] if other[:2] == job[:2]), default=0.0)
        for place, job in enumerate(jobs)
    }
    assert all(before < job.share for job, before in own.items())
    assert sum(job.share - before for job, before in own.items()) == pytest.approx(result.spent)
    if len(shares) > 1 and trainings >= 7:
        assert result.spent < result.without_halving
    full = [job for job in jobs if job.share == 1 and job.seed == 0]
    if len(shares) == 2 and trainings == 20:
        assert len(full) <= len([job for job in jobs if job.share == shares[0]]) / 2 + 3


def test_seeds_are_paired_and_the_best_simple_network_keeps_up() -> None:
    result = run(shared())
    simple = max((r for r in result.runners if r.arm == "simple"), key=lambda r: r.mean)
    assert len(simple.scores) == len(result.winner.scores) > 1


def test_nothing_begins_after_the_minutes() -> None:
    record: dict[Job, Outcome] = {}
    run(shared(), record=record)
    timed = {job: Outcome(score, 60.0) for job, (score, _) in record.items()}
    result = run(shared(), record=timed, minutes=4.5, noise=None)
    assert result.seconds == 300
    assert result.ended == "the time is over"
    assert {runner.arm for runner in result.runners} == {"search", "simple", "random"}


def test_failed_trainings_are_named_and_the_rest_go_on() -> None:
    normal = run(shared())
    lost = normal.winner.arch
    result = run(shared(), train=lambda jobs: [None if job.arch == lost else label(job) for job in jobs])
    (failed,) = (runner for runner in result.runners if runner.failed)
    assert failed.arch == lost
    assert result.winner.arch != lost
    assert result.winner.scores


def test_all_trainings_failed() -> None:
    with pytest.raises(RunError, match=r"no network was trained to the end: the trainings of .* failed"):
        run(shared(), train=lambda jobs: [math.nan] * len(jobs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainings": 1.5}, "below two"),
        ({"trainings": math.nan}, "below two"),
        ({"minutes": 0}, "minutes=0 should be above 0"),
        ({"shares": (0.5, 0.25, 1.0)}, "should ascend"),
        ({"shares": (0.5,)}, "should ascend"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"seeds": 0}, "seeds=0"),
        ({"simple": {}}, "no simple network"),
        ({"random": [Arch({"other": "k3"})]}, "no choice"),
        ({"train": lambda jobs: []}, "returned 0 scores for 1 jobs"),
    ],
)
def test_wrong_input_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(shared(), **options)


def test_no_finalist_fits() -> None:
    with pytest.raises(InputError, match="no finalists"):
        race(SPACE, [], lambda jobs: [], simple=entrants(), cost=MACS.__getitem__)


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_stopped_race_repeats_nothing_and_ends_identically(tmp_path: Path, parallel: int) -> None:
    whole = run(shared(), shares=(0.25, 1.0), parallel=parallel)
    done: list[Job] = []

    class Stopped(Exception):
        pass

    attempts = 0
    while True:
        attempts += 1
        begun = len(done)

        def bounded(jobs: Sequence[Job], begun: int = begun) -> list[float | None]:
            if len(done) >= begun + 5:
                raise Stopped
            done.extend(jobs)
            return [label(job) for job in jobs]

        with Trainings(tmp_path / "race.db", SPACE, {"epochs": 3}) as record:
            try:
                result = run(shared(), train=bounded, shares=(0.25, 1.0), parallel=parallel, record=record)
                break
            except Stopped:
                continue
    assert attempts > 3
    assert len(done) == len(set(done))
    assert outcome(result) == outcome(whole)


KILLED = """
import os, signal, sys
from test_race import SPACE, label, run, shared
from supernet.ranking.trainings import Trainings
left = int(sys.argv[2])
def train(jobs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    print(jobs[0].arch.key, jobs[0].seed, flush=True)
    return [label(job) for job in jobs]
from pathlib import Path
with Trainings(Path(sys.argv[1]), SPACE, {}) as record:
    result = run(shared(), train=train, record=record)
print("winner", result.winner.arch.key, result.verdict)
"""


def test_a_killed_race_repeats_nothing_and_ends_identically(tmp_path: Path) -> None:
    lines: list[str] = []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for attempt in range(2):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "race.db"), str(8 if attempt < 1 else 100)]
        process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert process.returncode == (-signal.SIGKILL if attempt < 1 else 0), process.stderr
        lines += process.stdout.splitlines()
    *trained, last = lines
    assert len(trained) == len(set(trained)) > 17
    whole = run(shared())
    assert last == f"winner {whole.winner.arch.key} {whole.verdict}"


def test_a_record_belongs_to_one_recipe_and_one_space(tmp_path: Path) -> None:
    path, job = tmp_path / "race.db", Job(ARCHS[0], 2, 0.5)
    with Trainings(path, SPACE, {"epochs": 3, "lr": 0.1}) as record:
        record[job] = Outcome(0.5, 3.0)
        with pytest.raises(InputError, match="open in another process"):
            Trainings(path, SPACE, {"epochs": 3, "lr": 0.1})
    with pytest.raises(InputError, match="by another recipe: epochs is 3 there and 4 here"):
        Trainings(path, SPACE, {"epochs": 4, "lr": 0.1})
    with pytest.raises(InputError, match="of another space"):
        Trainings(path, SearchSpace("other", SPACE.choices[:2]), {"epochs": 3, "lr": 0.1})
    with Trainings(path, SPACE, {"epochs": 3, "lr": 0.1}) as record:
        assert dict(record) == {job: Outcome(0.5, 3.0)}
        del record[job]
    with Trainings(path, SPACE, {"epochs": 3, "lr": 0.1}) as record:
        assert not record
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read as a record of trainings"):
        Trainings(path, SPACE, {"epochs": 3, "lr": 0.1})


@pytest.mark.parametrize(
    "change", ["seconds = 'x'", "seconds = -1", "share = 7", "seed = 'x'", "arch = '{}'", "key = '0'"]
)
def test_rows_that_no_race_writes_are_damage(change: str, tmp_path: Path) -> None:
    path = tmp_path / "race.db"
    with Trainings(path, SPACE, {}) as record:
        record[Job(ARCHS[0], 0, 1.0)] = Outcome(0.5, 1.0)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE trainings SET {change}")
    db.close()
    with pytest.raises(InputError, match=r"race\.db cannot be read as .*(has seed|lacks|of another architecture)"):
        Trainings(path, SPACE, {})
