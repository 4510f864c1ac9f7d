"""Progressive search: the levels of the published algorithm, its surrogates, and their benefit."""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from helpers.searcher_cases import CONDITIONAL, Cheap, chain_space, trial
from searchers import PNAS, RandomSearch, Study, Trial, search, testing
from searchers.pnas.ladder import find_ladder
from searchers.pnas.search import EPOCHS, spearman
from searchers.pnas.surrogate import LadderSurrogate, ranking
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value, compose

PARTS = ("left", "right", "left_op", "right_op")
OPS = ("sep3", "sep5", "max3", "identity", "dil3")


def operands_sorted(arch: Arch) -> dict[str, Value]:
    """An addition commutes: in every block the smaller of the two operands stands left."""
    values = dict(arch)
    for b in range(sum(name.endswith(".left") for name in arch)):
        left, right, left_op, right_op = (f"block{b}.{part}" for part in PARTS)
        pairs = sorted([(int(arch[left]), str(arch[left_op])), (int(arch[right]), str(arch[right_op]))])
        (values[left], values[left_op]), (values[right], values[right_op]) = pairs
    return values


def ladder(blocks: int, ops: Sequence[str] = OPS, *, form: bool = True, extra: Sequence[Choice] = ()) -> SearchSpace:
    """The decisions of a PNASNet cell."""
    choices = [Choice("blocks", range(1, blocks + 1), ordered=True)]
    for b in range(blocks):
        when = ("blocks", tuple(range(b + 1, blocks + 1))) if b else None
        choices += [Choice(f"block{b}.{part}", range(b + 2) if "op" not in part else ops, when) for part in PARTS]
    return SearchSpace("ladder", [*choices, *extra], operands_sorted if form else None)


SPACE = ladder(3, OPS[:3])  # 21 cells of one block, and 45 and 78 blocks to add
OP_VALUE = {"sep3": 0.9, "sep5": 1.0, "max3": 0.3, "identity": 0.5, "dil3": 0.6}


def cells(size: int, space: SearchSpace) -> set[str]:
    return {space.normal_form(arch).key for arch in space.fix({"blocks": size}).enumerate()}


def oracle(arch: Arch, seed: int = 0) -> float:
    """A score with interactions: the value of a block depends on the blocks that it reads."""
    total, outputs = 0.0, []
    for b in range(int(arch["blocks"])):
        left, right, *ops = (arch[f"block{b}.{part}"] for part in PARTS)
        own = sum(OP_VALUE[str(op)] for op in ops) / 2
        other = 0.25 if len(set(ops)) == 2 else -0.1
        read = [outputs[int(state) - 2] for state in (left, right) if int(state) > 1]
        apart = 0.15 if left != right else 0.0
        outputs.append(own + other + apart + 0.3 * sum(value - 0.7 for value in read))
        total += outputs[-1]
    noise = (int(arch.key, 16) * (2 * seed + 1)) % 1009 / 1009
    return 0.7 + 0.1 * total / (2 + len(outputs)) + 0.01 * noise


def scored(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    return [{"accuracy": oracle(arch), "loss": 1 - oracle(arch)} for arch in archs]


def small(space: SearchSpace, **settings: Any) -> PNAS:
    """A search whose surrogate is trained within a hundredth of a second."""
    return PNAS(space, **{"beam": 24, "embedding": 8, "hidden": 16, "epochs": 20, **settings})


def run(searcher: PNAS, *, batch: int = 1, trials: int = 10**6, evaluate: Any = scored) -> list[Trial]:
    with Study(None, searcher.space) as study:
        search(searcher, evaluate, study, trials=trials, batch=batch, max_failures=10**6)
        return study.trials()


# -- the levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, pytest.param(9, marks=pytest.mark.slow)])
def test_it_keeps_the_contract_of_a_searcher(limit: int | None) -> None:
    def make(space: SearchSpace, **settings: Any) -> PNAS:
        return small(space, **{"beam": 12, "members": 2, "epochs": 1, "embedding": 4, "hidden": 4, **settings})

    feasible = None if limit is None else Cheap(SPACE, {"changed": limit})
    testing.check_searcher(make, SPACE, feasible=feasible, trials=28)


def test_the_first_level_is_every_one_block_cell_once_and_the_later_ones_are_k_each() -> None:
    trials = run(small(SPACE))
    sizes = [int(t.arch["blocks"]) for t in trials]
    assert sizes == [1] * 21 + [2] * 24 + [3] * 24
    assert {t.key for t in trials[:21]} == cells(1, SPACE)
    assert len({t.key for t in trials}) == len(trials)
    assert not any(t.repeat for t in trials)
    for extended in trials[21:]:  # each extends a cell of the level before
        size = int(extended.arch["blocks"])
        parents = {t.key for t in trials if t.arch["blocks"] == size - 1}
        shorter = {f"block{b}.{p}": extended.arch[f"block{b}.{p}"] for b in range(size - 1) for p in PARTS}
        arch = SPACE.canonical({**next(SPACE.enumerate()), **shorter, "blocks": size - 1})
        assert SPACE.normal_form(arch).key in parents


def test_with_eight_operations_there_are_136_cells_of_one_block() -> None:
    space = ladder(2, tuple("abcdefgh"))
    sizes = [int(t.arch["blocks"]) for t in run(small(space, epochs=1), trials=137, evaluate=testing.evaluate)]
    assert sizes == [1] * 136 + [2]


def test_k_larger_than_a_level_takes_all_of_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    space = ladder(2, OPS[:2])
    with caplog.at_level(logging.INFO, logger="searchers"):
        trials = run(small(space, beam=10_000))
    assert {t.key for t in trials} == cells(1, space) | cells(2, space)
    assert f"all {len(cells(2, space))} cells of 2 blocks, fewer than beam=10000" in caplog.text


def test_the_next_level_is_the_best_of_all_expansions_by_the_surrogate() -> None:
    """Compared with every expansion written out, brought to its normal form and predicted."""
    searcher = small(SPACE)
    trials = [trial(n, arch, oracle(arch), space=SPACE) for n, arch in enumerate(searcher.ask(21))]
    searcher.tell(trials)
    chosen = searcher.ask(24)
    guesses = {}
    for arch in SPACE.fix({"blocks": 2}).enumerate():
        form = SPACE.normal_form(SPACE.canonical(arch))
        blocks = [[SPACE[f"block{b}.{p}"].index(form[f"block{b}.{p}"]) for p in PARTS] for b in range(2)]
        guesses[form] = blocks
    predicted = dict(zip(guesses, searcher._model.predict(list(guesses.values())), strict=True))
    best = sorted(predicted.values(), reverse=True)[:24]
    assert sorted((predicted[arch] for arch in chosen), reverse=True) == pytest.approx(best, abs=1e-6)


def test_failed_cells_are_not_expanded_and_a_level_without_scores_ends_the_search() -> None:
    def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        return [None if arch["block0.left_op"] == "max3" else scored([arch])[0] for arch in archs]

    trials = run(small(SPACE, beam=10), evaluate=evaluate)
    assert sum(bool(t.failed) for t in trials) > 3
    assert not any(t.arch["block0.left_op"] == "max3" for t in trials if t.arch["blocks"] != 1)
    searcher = small(SPACE)
    with Study(None, SPACE) as study, pytest.raises(InputError, match="all failed"):
        search(searcher, lambda archs: [None for _ in archs], study, trials=100, max_failures=100)
    assert len(study) == 21


def test_a_constant_score_does_not_stop_the_search_and_a_minus_minimises() -> None:
    assert len(run(small(SPACE), evaluate=lambda archs: [{"accuracy": 7.5} for _ in archs])) == 69
    for_loss, for_accuracy = run(small(SPACE, metric="-loss")), run(small(SPACE))
    assert [t.arch for t in for_loss] == [t.arch for t in for_accuracy]
    percent = run(small(SPACE), evaluate=lambda archs: [{"accuracy": 100 * oracle(arch)} for arch in archs])
    assert sum(a.key == b.key for a, b in zip(percent, for_accuracy, strict=True)) > 60  # rounding may swap a few


def test_a_warm_start_is_learnt_from_and_not_proposed_again() -> None:
    known = run(small(SPACE), trials=30)
    searcher = small(SPACE, seed=5)
    searcher.tell(known)
    archs = [arch for _ in range(4) for arch in searcher.ask(10)]
    assert not {SPACE.normal_form(arch).key for arch in archs} & {t.key for t in known}
    sizes = [int(arch["blocks"]) for arch in archs]
    assert sizes == sorted(sizes)
    assert set(sizes) == {2, 3}


def test_limits_exclude_cells_from_every_level_and_impossible_ones_are_explained() -> None:
    limit = Cheap(SPACE, {"changed": 5})
    trials = run(small(SPACE, feasible=limit))
    assert all(limit(t.arch) for t in trials)
    assert {int(t.arch["blocks"]) for t in trials} == {1, 2, 3}
    with pytest.raises(InputError, match="the smallest is 0"):
        small(SPACE, feasible=Cheap(SPACE, {"changed": -1})).ask(1)


def test_the_first_proposals_are_those_on_record() -> None:
    """Eight of each level: by seed alone in the first, by what a surrogate learnt in the others."""
    trials = run(small(SPACE))
    numbers = [
        [list(SPACE.to_indices(t.arch))[: 1 + 4 * size] for t in trials if t.arch["blocks"] == size][:8]
        for size in (1, 2, 3)
    ]
    assert numbers == GOLDEN


GOLDEN: list[list[list[int]]] = [
    [
        [0, 1, 1, 2, 2],
        [0, 0, 0, 2, 2],
        [0, 0, 0, 0, 1],
        [0, 0, 1, 0, 2],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 0],
        [0, 1, 1, 2, 1],
    ],
    [
        [1, 0, 1, 1, 1, 0, 1, 1, 1],
        [1, 0, 1, 1, 1, 0, 2, 1, 1],
        [1, 0, 1, 1, 0, 0, 1, 1, 1],
        [1, 0, 1, 1, 1, 0, 1, 1, 0],
        [1, 0, 1, 0, 1, 0, 1, 1, 1],
        [1, 0, 1, 1, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 2, 2, 1, 1],
        [1, 0, 0, 1, 1, 0, 1, 1, 1],
    ],
    [
        [2, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0],
        [2, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0],
        [2, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0],
        [2, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1],
        [2, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1],
        [2, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0],
        [2, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1],
        [2, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    ],
]


# -- which spaces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [chain_space(), CONDITIONAL, ladder(1), ladder(3).fix({"blocks": 2})])
def test_a_space_without_a_ladder_is_refused_with_the_remedy(space: SearchSpace) -> None:
    with pytest.raises(InputError, match=f"space '{space.name}' has no ladder.*take a pnasnet space"):
        PNAS(space)


def test_two_ladders_are_named_and_one_can_be_chosen() -> None:
    space = compose("both", {"normal": ladder(2), "reduce": ladder(3)})
    with pytest.raises(InputError, match=r"ladders \['normal.blocks', 'reduce.blocks'\]"):
        PNAS(space)
    with pytest.raises(InputError, match=r"did you mean 'reduce\.blocks'"):
        PNAS(space, ladder="reduce.block")
    with pytest.raises(InputError, match=r"no ladder 'normal\.block0\.left'"):
        PNAS(space, ladder="normal.block0.left")
    searcher = small(space, ladder="reduce.blocks")
    assert set(searcher.held) == {name for name in space.sample(testing.random.Random(0)) if name.startswith("normal")}
    assert all(arch.sub("normal") == next(ladder(2).enumerate()) for arch in searcher.ask(30))


def test_decisions_outside_the_ladder_are_fixed_at_their_first_option() -> None:
    extra = [Choice("outputs", ("loose", "chosen")), Choice("output0", (False, True), when=("outputs", ("chosen",)))]
    space = compose("net", {"cell": ladder(2, OPS[:2], extra=extra)})
    searcher = small(space)
    assert searcher.held == {"cell.outputs": "loose", "cell.output0": False}
    trials = run(searcher, evaluate=testing.evaluate)
    assert {t.arch["cell.outputs"] for t in trials} == {"loose"}
    assert len(trials) == 10 + 24


def test_the_spaces_of_pnasnet_are_ladders() -> None:
    from supernet.blocks.cells.graph import cell_space
    from supernet.blocks.cells.ops import PNASNET_OPS

    space = compose("pnasnet", {"stem": SearchSpace("", []), "cell": cell_space(PNASNET_OPS, blocks=5, fewer=True)})
    pnas_ladder = find_ladder(space)
    assert pnas_ladder.choice.name == "cell.blocks"
    assert [pnas_ladder.counts(b) for b in range(5)] == [[b + 2, b + 2, 8, 8] for b in range(5)]
    assert pnas_ladder.decisions == [(0, 6), (0, 6), (1, 8), (1, 8)]
    assert (
        len(
            {
                space.normal_form(pnas_ladder.arch(space, [block])).key
                for block in itertools.product(range(2), range(2), range(8), range(8))
            }
        )
        == 136
    )


BAD = {
    "surrogate": "svm",
    "targets": "raw",
    "probes": -1,
    "beam": 0,
    "members": 0,
    "embedding": 0,
    "hidden": 0,
    "epochs": 0,
    "learning_rate": 0.0,
    "later_learning_rate": math.nan,
}


@pytest.mark.parametrize("name", BAD)
def test_a_setting_out_of_range_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}={BAD[name]!r}"):
        PNAS(SPACE, **{name: BAD[name]})


# -- surrogates --------------------------------------------------------------------------------------------------------

DECISIONS = [(0, 5), (0, 5), (1, 6), (1, 6)]


def random_cells(n: int, size: int, seed: int = 0) -> list[list[list[int]]]:
    drawn = torch.Generator().manual_seed(seed)
    columns = [torch.randint(options, (n, size), generator=drawn) for _, options in DECISIONS]
    cells: list[list[list[int]]] = torch.stack(columns, dim=2).tolist()
    return cells


def surrogate(kind: Any, **settings: Any) -> LadderSurrogate:
    return LadderSurrogate(kind, DECISIONS, **{"seed": 3, "embedding": 12, "hidden": 16, **settings})


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_only_the_lstm_sees_the_order_of_blocks(kind: str) -> None:
    model = surrogate(kind)
    rows = random_cells(40, 3)
    model.fit(rows, [0.5 + 0.05 * row[0][2] for row in rows], learning_rate=0.02, epochs=60)
    apart = [
        max(
            abs(a - b)
            for a, b in zip(model.predict(rows), model.predict([[row[i] for i in order] for row in rows]), strict=True)
        )
        for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))
    ]
    assert apart[0] == 0
    assert max(apart) < 1e-6 if kind == "mlp" else min(apart[1:]) > 0.01


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_any_number_of_blocks_is_accepted_and_a_batch_changes_nothing(kind: str) -> None:
    model = surrogate(kind)
    rows = [row for size in (1, 4, 2) for row in random_cells(5, size)]
    assert model.predict(rows) == pytest.approx([model.predict([row])[0] for row in rows], abs=1e-6)
    assert model.predict(rows) == pytest.approx([0.86] * len(rows), abs=0.1)  # the sigmoid of 1.8


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_expansions_are_predicted_as_if_written_out(kind: str) -> None:
    model = surrogate(kind)
    parents, options = random_cells(7, 2), [4, 4, 6, 6]
    written = [[*row, list(block)] for row in parents for block in itertools.product(*map(range, options))]
    assert model.expanded(parents, options).tolist() == pytest.approx(model.predict(written), abs=1e-6)


def test_each_member_sees_four_fifths_and_each_cell_is_seen_by_four() -> None:
    model = surrogate("mlp")
    shown = model.fit(random_cells(40, 2), [0.5] * 40, learning_rate=0.01, epochs=1)
    assert [len(member) for member in shown] == [32] * 5
    assert all(sum(n in member for member in shown) == 4 for n in range(40))
    few = surrogate("mlp").fit(random_cells(3, 1), [0.5] * 3, learning_rate=0.01, epochs=1)
    assert few == [[0, 1, 2]] * 5


def test_a_member_learns_nothing_from_cells_that_it_leaves_out() -> None:
    """Only the target of one cell differs: the member that leaves it out ends with the same weights."""
    rows, weights = random_cells(40, 2), []
    for target in (0.2, 0.9):
        model = surrogate("mlp")
        shown = model.fit(rows, [target, *[0.5] * 39], learning_rate=0.01, epochs=5)
        weights.append(model.weights["first"].detach())
    (left_out,) = [member for member in range(5) if 0 not in shown[member]]
    assert [torch.equal(weights[0][member], weights[1][member]) for member in range(5)] == [
        member == left_out for member in range(5)
    ]


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_loss_is_the_mean_absolute_error(kind: str) -> None:
    """Of targets that no input explains, it converges to the median, not to the mean."""
    model = surrogate(kind, members=1)
    model.fit([[[0, 0, 0, 0]]] * 9, [0.2] * 5 + [0.9] * 4, learning_rate=0.02, epochs=300)
    assert model.predict([[[0, 0, 0, 0]]])[0] == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_it_ranks_cells_one_block_larger_than_any_it_learnt_from(kind: str) -> None:
    def value(row: Sequence[Sequence[int]]) -> float:
        return 0.5 + 0.4 * statistics.fmean(block[2] + block[3] for block in row) / 10

    model, rows = surrogate(kind), random_cells(120, 2)
    model.fit(rows, [value(row) for row in rows], learning_rate=0.01, epochs=100)
    larger = random_cells(60, 3, seed=1)
    correlation = spearman(model.predict(larger), [value(row) for row in larger])
    assert correlation is not None
    assert correlation > 0.7


def test_equal_predictions_are_ranked_at_random_and_others_by_value() -> None:
    assert ranking(torch.tensor([0.1, 0.3, 0.2]), seed=0) == [1, 2, 0]
    equal = {tuple(ranking(torch.full((4,), 0.5) + 1e-9 * torch.arange(4), seed=seed)) for seed in range(40)}
    assert len(equal) > 10


def test_rank_correlations_of_every_level_are_on_record() -> None:
    searcher = small(SPACE, epochs=60, probes=20)
    trials = run(searcher)
    correlations = searcher.correlations
    assert set(correlations) == {1, 2, 3}
    assert correlations[1].extrapolation is correlations[1].beam is None
    assert correlations[3].fit is None  # nothing is chosen after it, so the surrogate is not trained on it
    assert correlations[1].fit is not None
    assert correlations[1].fit > 0.5
    assert correlations[2].extrapolation is not None
    assert correlations[2].extrapolation > 0.1
    for size in (2, 3):
        value = correlations[size].beam
        assert value is not None
        assert -1 <= value <= 1
        assert 24 < sum(t.arch["blocks"] == size for t in trials) <= 24 + 20
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert spearman([1, 1, 2], [3, 3, 9]) == pytest.approx(1.0)
    assert spearman([1, 1], [2, 3]) is None


def test_the_beam_says_less_about_a_surrogate_than_random_cells() -> None:
    """The predictions of the best few are all alike, so their order is mostly noise."""
    searchers = [small(SPACE, epochs=60, probes=40, seed=seed) for seed in range(3)]
    for searcher in searchers:
        run(searcher)
    beam, chance = ([getattr(s.correlations[2], name) for s in searchers] for name in ("beam", "extrapolation"))
    assert statistics.fmean(beam) < statistics.fmean(chance) - 0.1


def test_random_cells_are_not_expanded_and_known_ones_are_not_scored_twice() -> None:
    searcher = small(SPACE, probes=60)
    trials = run(searcher)
    assert len({t.key for t in trials}) == len(trials)
    assert len(searcher._levels[1]) == 24
    assert len(searcher._random[1]) == 60
    chosen = [cell.blocks for cell in searcher._levels[1]]
    for cell in searcher._levels[2]:  # a cell without one of its blocks, in any order, is of the level before
        first = [SPACE.normal_form(searcher._ladder.arch(SPACE, cell.blocks[:2]))]
        assert any(searcher._ladder.read(form) in chosen for form in first)


def test_predictions_are_those_that_chose_the_level() -> None:
    searcher = small(SPACE, probes=5)
    searcher.tell([trial(n, arch, oracle(arch), space=SPACE) for n, arch in enumerate(searcher.ask(21))])
    searcher.ask(1)
    cells = [*searcher._levels[1], *searcher._random[1]]
    assert searcher.predict([cell.arch for cell in cells]) == pytest.approx([cell.predicted for cell in cells])


def test_targets_are_shifted_by_level_or_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second level scores 0.3 more: with common targets its mean is above that of the first by as much."""
    means: dict[str, list[float]] = {}
    for targets in ("level", "common"):
        searcher = small(SPACE, targets=targets, epochs=1)

        def record(rows: Any, values: list[float], targets: str = targets, **settings: Any) -> None:
            means.setdefault(targets, []).append(statistics.fmean(values))

        monkeypatch.setattr(searcher._model, "fit", record)
        run(searcher, evaluate=lambda archs: [{"accuracy": 0.1 * oracle(a) + 0.02 * (a["blocks"] - 1)} for a in archs])
    assert means["level"] == pytest.approx([0.86, 0.86], abs=0.01)
    assert means["common"][1] > 0.9


def test_the_lstm_takes_fewer_epochs_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for settings in ({"surrogate": "mlp"}, {"surrogate": "lstm"}, {"surrogate": "lstm", "epochs": 7}):
        searcher = PNAS(SPACE, embedding=4, hidden=4, beam=2, **settings)
        monkeypatch.setattr(searcher._model, "fit", lambda *_, epochs, **__: taken.append(epochs))
        run(searcher, trials=22)
    assert taken == [EPOCHS["mlp"], EPOCHS["lstm"], 7]
    assert EPOCHS["lstm"] < EPOCHS["mlp"]


def test_the_beam_follows_the_budget() -> None:
    """21 cells of one block, and two levels more."""
    assert PNAS.for_budget(SPACE, 121) == {"beam": 50}
    assert PNAS.for_budget(SPACE, 121, {"probes": 10}) == {"beam": 40}
    assert PNAS.for_budget(SPACE, 10) == {"beam": 1}
    assert PNAS.for_budget(SPACE, 21 + 512) == {}
    searcher = small(SPACE, **PNAS.for_budget(SPACE, 61))
    assert searcher.schedule == [21, 20, 20]
    assert [t.arch["blocks"] for t in run(searcher, trials=61)].count(3) == 20


# -- the benefit -------------------------------------------------------------------------------------------------------


def compared(seeds: range, **settings: Any) -> list[float]:
    """By seed, how much better PNAS ends than random search of the largest cells with as many evaluations."""
    space = ladder(4)
    gains = []
    for seed in seeds:

        def evaluate(archs: Sequence[Arch], seed: int = seed) -> list[Mapping[str, float]]:
            return [{"accuracy": oracle(arch, seed)} for arch in archs]

        with Study(None, space) as study:
            ours = search(small(space, seed=seed, **settings), evaluate, study, trials=10**6, batch=5)
            trials = len(study)
        largest = space.fix({"blocks": 4})
        with Study(None, largest) as study:
            theirs = search(RandomSearch(largest, seed=seed), evaluate, study, trials=trials)
        gains.append(ours.metrics["accuracy"] - theirs.metrics["accuracy"])
    return gains


def test_it_beats_random_search_of_the_largest_cells() -> None:
    gains = compared(range(1), beam=20, embedding=16, hidden=32, epochs=40, members=2)
    assert gains[0] > 0


@pytest.mark.slow
def test_it_beats_random_search_over_many_seeds() -> None:
    """With the surrogate of the paper's search, at its published size."""
    gains = compared(range(24), beam=40, embedding=100, hidden=100, epochs=100)
    error = 1.96 * statistics.stdev(gains) / math.sqrt(len(gains))
    mean, wins = statistics.fmean(gains), sum(gain > 0 for gain in gains)
    print(f"better than random by {mean:.4f} ± {error:.4f}, in {wins} of {len(gains)} searches")
    assert mean > error
