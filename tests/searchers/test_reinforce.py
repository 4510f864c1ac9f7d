"""The controller is a distribution over legal architectures, and its updates are those of PPO and REINFORCE."""

import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import searchers
from helpers.searcher_cases import CONDITIONAL, AtMost, Counter, chain_space, noise, small_reinforce, trial
from searchers import RandomSearch, Reinforce, Study, Trial, loop, search
from searchers.reinforce.controller import Controller, embedding_rows, ppo_loss, reinforce_loss
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

OPTIONS = ("k3", "k5", "k7", "skip")
BANDIT = SearchSpace("bandit", [Choice(f"block{i}", OPTIONS) for i in range(4)])
BEST = BANDIT.from_indices((2, 0, 3, 1))


def controller(space: SearchSpace, *, peaked: float = 1.0, **settings: Any) -> Controller:
    """A policy whose softmax weights are multiplied by `peaked`, so that it is far from uniform."""
    defaults = {"seed": 1, "hidden": 12, "temperature": None, "tanh_constant": None, "learning_rate": 0.01}
    policy = Controller(space, **{**defaults, **settings})  # type: ignore[arg-type]
    with torch.no_grad():
        policy.weights["head"] *= peaked
        policy.weights["head_bias"] *= peaked
    return policy


def agreement(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    """The share of decisions that are those of `BEST`."""
    shares = [sum(arch[name] == BEST[name] for name in arch) / len(arch) for arch in archs]
    return [{"accuracy": share, "loss": 1 - share} for share in shares]


def gradients(policy: Controller, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    slopes = torch.autograd.grad(loss, list(policy.weights.values()))
    return dict(zip(policy.weights, slopes, strict=True))


def copied(searcher: Reinforce) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in searcher.controller.weights.items()}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# -- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [CONDITIONAL, BANDIT, chain_space(3), SearchSpace("one", [Choice("a", ("x",))])])
@pytest.mark.parametrize("limits", [{}, {"temperature": 5.0, "tanh_constant": 2.5}])
def test_the_probabilities_of_all_architectures_sum_to_one(space: SearchSpace, limits: dict[str, float]) -> None:
    policy = controller(space, peaked=20.0, **limits)
    archs = [space.to_indices(arch) for arch in space.enumerate()]
    chances = policy.log_prob(archs)[0].double().exp()
    assert chances.sum().item() == pytest.approx(1.0, abs=1e-4)
    if space.size() > 1:
        assert chances.max() > 3 * chances.min()
    assert set(policy.sample(500)) <= set(archs)


def test_an_option_that_a_choice_lacks_has_probability_zero() -> None:
    """Softmaxes are stored at the width of the widest choice, 40 here."""
    policy = controller(CONDITIONAL, peaked=20.0)
    legal = CONDITIONAL.to_indices(CONDITIONAL.canonical({"depth": 3, "a": "x", "b": "x", "c": 0, "c.scale": 2.0}))
    beyond = [(*legal[:-1], 3), (*legal[:-1], 39)]  # the last has three options
    assert policy.log_prob([legal])[0].exp().item() > 0
    assert policy.log_prob(beyond)[0].exp().tolist() == [0.0, 0.0]
    for vector in policy.sample(2000):
        assert all(index < len(choice.options) for index, choice in zip(vector, CONDITIONAL.choices, strict=True))


def test_samples_have_the_probabilities_that_the_update_computes() -> None:
    """Sampling walks decision by decision, the update reads whole vectors; both skip inactive decisions."""
    space = SearchSpace(
        "nested",
        [
            Choice("depth", (1, 2)),
            Choice("fixed", ("only",)),
            Choice("a", OPTIONS[:3], when=("depth", (2,))),
            Choice("b", OPTIONS[:2], when=("a", ("k3", "k7"))),
            Choice("c", (True, False)),
        ],
    )
    policy = controller(space, peaked=40.0, seed=3)
    vectors = [space.to_indices(arch) for arch in space.enumerate()]
    expected = dict(zip(vectors, policy.log_prob(vectors)[0].exp().tolist(), strict=True))
    drawn, n = policy.sample(20_000), 20_000
    for vector, chance in expected.items():
        assert drawn.count(vector) / n == pytest.approx(chance, abs=4 * math.sqrt(chance / n) + 1e-4)
    assert max(expected.values()) > 5 * min(expected.values())


def test_choices_with_the_same_options_share_an_embedding_and_longer_ones_continue_it() -> None:
    ops = ("conv", "pool")
    inputs = [Choice(f"block{b}.input", range(b + 2)) for b in range(3)]
    choices = [
        Choice("blocks", range(1, 4)),
        *inputs,
        Choice("op0", ops),
        Choice("flag", (False, True)),
        Choice("op1", ops),
    ]
    rows, size = embedding_rows(SearchSpace("mixed", choices))
    assert rows[1] == rows[2] == rows[3]  # 0, 1 and 0, 1, 2 are the first of 0, 1, 2, 3
    assert rows[4] == rows[6]
    assert len({rows[0], rows[1], rows[4], rows[5]}) == 4  # 1, 2, 3 are other states; False is not 0
    assert size == 4 + 3 + 2 + 2


def test_tanh_and_temperature_bound_how_certain_the_policy_can_be() -> None:
    free = controller(BANDIT, peaked=1e4)
    bounded = controller(BANDIT, peaked=1e4, tanh_constant=1.5)
    cold = controller(BANDIT, peaked=1e4, temperature=1e6)
    vectors = free.sample(50)
    assert free.log_prob(vectors)[1].max() < 0.5
    for logits in (1.5, 0.0):  # at best e**c against 3 e**-c
        least = 4 * math.log(math.exp(-logits) / (math.exp(logits) + 3 * math.exp(-logits)))
        policy = bounded if logits else cold
        assert policy.log_prob(vectors)[0].min() > least - 0.1
    assert cold.log_prob(vectors)[1].min() > 4 * math.log(4) - 0.01


# -- the updates -----------------------------------------------------------------------------------------------------


def test_at_ratio_one_the_gradient_of_ppo_is_that_of_reinforce() -> None:
    policy = controller(CONDITIONAL, peaked=5.0)
    vectors = policy.sample(20)
    advantage = torch.linspace(-1, 2, 20)
    log_prob = policy.log_prob(vectors)[0]
    by_ppo = gradients(policy, ppo_loss(log_prob, log_prob.detach(), advantage, clip=0.2))
    by_reinforce = gradients(policy, reinforce_loss(policy.log_prob(vectors)[0], advantage))
    for name, gradient in by_reinforce.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(by_ppo[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_reinforce_is_the_slope_of_the_expected_reward() -> None:
    """Over all architectures: d/dw Σ p(a) R(a) = Σ p(a) R(a) d/dw log p(a), the left side by differences."""
    space = chain_space(3, form=False)
    vectors = [space.to_indices(arch) for arch in space.enumerate()]
    reward = torch.tensor([noise(arch) / 100 for arch in space.enumerate()])
    policy = controller(space, peaked=10.0)
    chances = policy.log_prob(vectors)[0].detach().exp()
    slope = gradients(policy, reinforce_loss(policy.log_prob(vectors)[0], len(vectors) * chances * reward))
    for name in ("head_bias", "recurrent"):
        weight, at = policy.weights[name], slope[name].abs().argmax()
        values = []
        for step in (-1e-2, 1e-2):
            with torch.no_grad():
                weight.view(-1)[at] += step
                values.append((policy.log_prob(vectors)[0].exp() * reward).sum().item())
                weight.view(-1)[at] -= step
        assert -slope[name].view(-1)[at].item() == pytest.approx((values[1] - values[0]) / 2e-2, rel=0.02)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.3, 1, False), (0.7, 1, True), (1.3, -1, True), (0.7, -1, False)]
)
def test_ppo_stops_where_the_ratio_has_moved_far_enough(ratio: float, advantage: float, moves: bool) -> None:
    log_prob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = ppo_loss(log_prob, torch.zeros(1), torch.tensor([float(advantage)]), clip=0.2)
    (slope,) = torch.autograd.grad(loss, log_prob)
    assert slope.item() == pytest.approx(-ratio * advantage if moves else 0.0)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_the_bonus_raises_the_entropy_and_without_it_equal_rewards_move_nothing(algorithm: Any) -> None:
    def after(entropy: float) -> tuple[float, bool]:
        settings = {"minibatch": 10, "hidden": 12, "learning_rate": 0.02}
        searcher = Reinforce(BANDIT, algorithm=algorithm, entropy=entropy, baseline_start=0.5, **settings)  # type: ignore[arg-type]
        with torch.no_grad():
            searcher.controller.weights["head_bias"] *= 20
        start = copied(searcher)
        ask_and_tell(searcher, 100, value=0.5)
        vectors = [BANDIT.to_indices(arch) for arch in BANDIT.enumerate()]
        log_prob, _ = searcher.controller.log_prob(vectors)
        return -(log_prob.exp() * log_prob).sum().item(), same(start, copied(searcher))

    (without, still), (with_bonus, moved) = after(0.0), after(0.5)
    assert still
    assert not moved
    assert with_bonus > without + 0.1


def ask_and_tell(searcher: Reinforce, trials: int, *, value: float | None = None) -> None:
    """Asks and tells one trial at a time; the score is `value`, or the agreement with `BEST`."""
    for number in range(trials):
        (arch,) = searcher.ask(1)
        score = agreement([arch])[0]["accuracy"] if value is None else value
        searcher.tell([trial(number, arch, score)])


def test_the_baseline_is_the_average_of_the_rewards_before() -> None:
    """By hand, for batches (1, 0), then (0, 1) at 0.9; the start is the mean of the first batch, or a number."""

    def advantages(**settings: Any) -> list[float]:
        searcher = Reinforce(BANDIT, minibatch=2, hidden=4, baseline=0.9, **settings)
        seen: list[float] = []
        searcher._learn = lambda drawn, values: seen.extend(values)  # type: ignore[method-assign]
        for number, value in enumerate((1.0, 0.0, 0.0, 1.0)):
            (arch,) = searcher.ask(1)
            searcher.tell([trial(number, arch, value)])
        return seen

    after = 0.9 * (0.9 * 0.5 + 0.1)  # of 0.5, after rewards 1 and 0
    assert advantages() == pytest.approx([0.5, -0.5, -after, 1 - after])
    after = 0.9 * (0.9 * 0.2 + 0.1)
    assert advantages(baseline_start=0.2) == pytest.approx([0.8, -0.2, -after, 1 - after])
    levels = [0.1, 0.09, 0.081, 0.1729]  # each reward enters the baseline before it is compared
    expected = [reward - level for reward, level in zip((1.0, 0.0, 0.0, 1.0), levels, strict=True)]
    assert advantages(baseline_start=0.0, baseline_first=True) == pytest.approx(expected)
    with_entropy = advantages(baseline_start=0.0, entropy_to="reward", entropy=0.5)
    assert with_entropy[0] == pytest.approx(1.0 + 0.5 * 4 * math.log(4), abs=0.01)  # weights near zero: four decisions
    assert advantages(baseline_start=0.0, entropy=0.5)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("settings", [{}, {"algorithm": "reinforce"}, {"metric": "-loss"}], ids=str)
def test_a_bandit_is_solved(settings: dict[str, Any]) -> None:
    searcher = Reinforce(BANDIT, hidden=24, learning_rate=0.01, **settings)

    def chance() -> float:
        return searcher.controller.log_prob([BANDIT.to_indices(BEST)])[0].exp().item()

    assert chance() < 0.01
    with Study(None, BANDIT) as study:
        best = search(searcher, agreement, study, trials=800, batch=20)
        assert best.arch == BEST
        assert sum(t.arch == BEST for t in study.trials()[-100:]) > 50
    assert chance() > 0.6


def test_published_settings() -> None:
    nasnet, enas = Reinforce.nasnet(BANDIT), Reinforce.enas(BANDIT, seed=4)
    assert loop.settings_of(nasnet) == loop.settings_of(Reinforce(BANDIT)) == loop.settings_of(Reinforce.nasfpn(BANDIT))
    wanted = {"learning_rate": 0.00035, "minibatch": 20, "hidden": 100, "entropy": 0.00001, "baseline": 0.95}
    assert wanted.items() <= loop.settings_of(nasnet).items()
    assert nasnet.controller.weights["recurrent"].shape == (400, 100)
    assert all(weight.abs().max() <= 0.1 for weight in nasnet.controller.weights.values())
    assert all(weight.abs().max() > 0.09 for weight in nasnet.controller.weights.values())
    released = {"algorithm": "reinforce", "learning_rate": 0.0035, "minibatch": 10, "hidden": 64, "tanh_constant": 1.1}
    assert released.items() <= loop.settings_of(enas).items()
    assert enas.seed == 4


def test_settings_for_a_small_budget_learn_in_it_and_the_published_ones_do_not() -> None:
    """Six decisions that add up, 200 trials: the chance of the best architecture, at first 1 of 4,096."""
    space = SearchSpace("sum", [Choice(f"block{i}", OPTIONS) for i in range(6)])

    def summed(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        return [{"accuracy": sum(space.to_indices(arch)) / 18} for arch in archs]

    def chance(**settings: Any) -> float:
        searcher = Reinforce(space, **settings)
        with Study(None, space) as study:
            search(
                searcher, lambda archs: [{"accuracy": sum(space.to_indices(a)) / 18} for a in archs], study, trials=200
            )
        return searcher.controller.log_prob([(3,) * 6])[0].exp().item()

    assert chance(**Reinforce.for_budget(space, 200)) > 0.02
    assert chance() < 0.002


# -- limits, failures, repeats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"penalty": -50.0}, {"metric": "-loss"}], ids=str)
def test_samples_outside_the_limits_are_penalised_and_become_rare(settings: dict[str, Any]) -> None:
    """The default penalty is the lowest score so far, since zero would be a prize where scores are negative."""
    space, limits = chain_space(form=False), AtMost({"k5": 1})  # a third of all
    searcher = Reinforce(space, feasible=limits, hidden=16, learning_rate=0.01, minibatch=10, **settings)

    def outside() -> float:
        return statistics.fmean(not limits(space.from_indices(v)) for v in searcher.controller.sample(500))

    assert outside() > 0.5
    evaluate = Counter()
    with Study(None, space) as study:
        search(searcher, evaluate, study, trials=200)
    assert all(limits(arch) for arch in evaluate.shown)
    assert outside() < 0.2


def test_samples_outside_can_be_ignored() -> None:
    """As with a table of a part of a space: nothing is learnt from what is missing."""
    space, limits = chain_space(form=False), AtMost({"k5": 1})
    for penalty, learns in (("ignored", False), (None, True)):
        searcher = Reinforce(space, feasible=limits, hidden=8, minibatch=30, penalty=penalty)  # type: ignore[arg-type]
        before = copied(searcher)
        for number in range(25):  # fewer than a minibatch
            (arch,) = searcher.ask(1)
            searcher.tell([trial(number, arch, 0.5)])
        assert same(before, copied(searcher)) is not learns


class OneInThousands(AtMost):
    """Limits with a single architecture, which only the exact sampler finds."""

    drawn = 0

    def __call__(self, arch: Arch) -> bool:
        return arch == BEST

    def sample(self, rng: random.Random) -> Arch:
        self.drawn += 1
        return BEST


def test_the_exact_sampler_helps_if_the_controller_finds_nothing() -> None:
    space = SearchSpace("wide", [Choice(c.name, (*OPTIONS, *range(60))) for c in BANDIT.choices])
    limits = OneInThousands({"k5": 0})
    searcher = Reinforce(space, feasible=limits, hidden=8)
    assert searcher.ask(3) == [BEST] * 3
    assert limits.drawn == 3
    with pytest.raises(InputError, match="the smallest k5 of this space is 0"):
        Reinforce(chain_space(), feasible=AtMost({"k5": -1}), hidden=8).ask(1)


def test_failed_and_unasked_trials_teach_the_policy_nothing() -> None:
    searcher = small_reinforce(BANDIT)
    before = copied(searcher)
    for number in range(40):
        (arch,) = searcher.ask(1)
        searcher.tell([Trial.of(BANDIT, arch, {}, number=number, failed="out of memory")])
    rng = random.Random(0)
    searcher.tell([trial(number, BANDIT.sample(rng), 0.9) for number in range(40)])
    assert same(before, copied(searcher))
    assert searcher._level == pytest.approx(0.9)  # the baseline knows them
    ask_and_tell(searcher, 14)
    assert not same(before, copied(searcher))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_reward_that_is_not_finite_is_named(value: float) -> None:
    searcher = small_reinforce(BANDIT)
    (arch,) = searcher.ask(1)
    with pytest.raises(InputError, match=f"trial 3 .*{re.escape(f'accuracy={value}')}"):
        searcher.tell([trial(3, arch, value)])


def test_evaluations_that_are_sometimes_nan_leave_the_policy_finite() -> None:
    def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        return [
            {"accuracy": math.nan if arch["block0"] == "k3" else m["accuracy"]}
            for arch, m in zip(archs, agreement(archs), strict=True)
        ]

    searcher = Reinforce(BANDIT, hidden=24, learning_rate=0.01)
    with Study(None, BANDIT) as study:
        best = search(searcher, evaluate, study, trials=600, batch=20, max_failures=1000)
        assert 20 < sum(bool(t.failed) for t in study.trials()) < 300
    assert best.arch == BEST
    assert all(weight.isfinite().all() for weight in searcher.controller.weights.values())


def test_equal_rewards_and_a_policy_that_only_repeats_end_with_a_message() -> None:
    space = chain_space(3)
    searcher = Reinforce(space, hidden=8, learning_rate=1.0, minibatch=50, epochs=1, entropy=0)
    with Study(None, space) as study:
        search(searcher, lambda archs: [{"accuracy": 0.5} for _ in archs], study, trials=10**9)
        assert study.ended == "the last 1,000 trials brought no new network (15 are evaluated)"
    searcher = Reinforce(BANDIT, hidden=8, learning_rate=1.0, minibatch=50, epochs=1, entropy=0)
    with Study(None, BANDIT) as study:
        search(searcher, agreement, study, trials=10**9)
        assert "the last 1,000 trials brought no new network" in study.ended
        assert study.evaluations < BANDIT.size()


BAD = {
    "algorithm": "poo",
    "entropy_to": "rewards",
    "minibatch": 0,
    "hidden": 0,
    "epochs": 0,
    "learning_rate": 0.0,
    "clip": -0.1,
    "temperature": 0.0,
    "tanh_constant": math.nan,
    "penalty": math.inf,
    "baseline_start": math.nan,
    "entropy": -1.0,
    "baseline": 1.0,
}


@pytest.mark.parametrize("name", BAD)
def test_a_setting_out_of_range_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}={BAD[name]!r}"):
        Reinforce(BANDIT, **{name: BAD[name]})


def test_neither_generators_nor_threads_of_torch_are_touched() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    ask_and_tell(small_reinforce(BANDIT), 25)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


LIGHT = """
import sys
import searchers
searchers.Reinforce, searchers.PNAS
print(sorted({"torch", "numpy", "scipy"} & sys.modules.keys()))
"""


def test_the_classes_load_without_torch() -> None:
    root = Path(searchers.__path__[0]).parent
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


# -- long evidence -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_ten_thousand_trials_cost_five_milliseconds_each(algorithm: Any, tmp_path: Path) -> None:
    space = SearchSpace("twenty", [Choice(f"block{i}", OPTIONS) for i in range(20)])
    with Study(tmp_path / "study.db", space) as study:
        searcher = Reinforce(space, algorithm=algorithm)
        search(searcher, lambda archs: [{"accuracy": noise(a)} for a in archs], study, trials=100)  # loads torch
        began = time.process_time()
        search(
            Reinforce(space, algorithm=algorithm),
            lambda archs: [{"accuracy": noise(a)} for a in archs],
            study,
            trials=10_100,
        )
    cost = (time.process_time() - began) / 10_000
    print(f"{algorithm}: {1e3 * cost:.2f} ms a trial (processor), the study on disk included")
    assert cost < 5e-3


def evaluations_to(goal: float, searcher: Any, results: Mapping[Arch, Mapping[str, float]]) -> int:
    """The number of distinct networks evaluated until one has the accuracy `goal`."""

    class Reached(Exception):
        pass

    def stop(scored: Trial) -> None:
        if scored.metrics["accuracy"] >= goal:
            raise Reached

    with Study(None, searcher.space) as study:
        try:
            search(searcher, lambda archs: [results[a] for a in archs], study, trials=10_000, on_trial=stop)
        except Reached:
            return study.evaluations
        raise AssertionError(f"the goal was not reached: {study.ended}")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"learning_rate": 0.0035, "minibatch": 10}], ids=str)
def test_on_nasbench_macro_the_best_percent_comes_sooner_than_at_random(settings: dict[str, Any]) -> None:
    from supernet import create_supernet
    from supernet.spaces.nasbench_macro import table

    space, results = create_supernet("nasbench-macro").space, table()
    ranked = sorted((results[form]["accuracy"] for form in {space.normal_form(a) for a in results}), reverse=True)
    goal = ranked[len(ranked) // 100]
    seeds = range(40)
    ours = [evaluations_to(goal, Reinforce(space, seed=seed, **settings), results) for seed in seeds]
    chance = [evaluations_to(goal, RandomSearch(space, seed=seed), results) for seed in seeds]
    gain = statistics.fmean(chance) - statistics.fmean(ours)
    error = 1.96 * math.sqrt((statistics.variance(ours) + statistics.variance(chance)) / len(seeds))
    print(
        f"controller {statistics.fmean(ours):.1f}, random {statistics.fmean(chance):.1f} evaluations to {goal}; "
        f"sooner by {gain:.1f} ± {error:.1f}"
    )
    assert gain > error
