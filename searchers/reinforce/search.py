"""Search by reinforcement learning: a controller proposes and is rewarded by scores (NASNet, NAS-FPN, ENAS)."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self

from annotated_types import Gt, Lt

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import sample
from searchers.study import Trial, score
from supernet.checked import (
    Count,
    NonNegative,
    Positive,
    Rate,
    Seed,
    Share,
    Size,
    Units,
    arguments_explained,
    checked_arguments,
)
from supernet.errors import InputError
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, SearchSpace

Algorithm = Literal["ppo", "reinforce"]
Ignored = Literal["ignored"]
EntropyTo = Literal["loss", "reward"]

TRIES = 100
"""Samples per requested architecture before a random one within the limits takes its place."""

FEW = 1_000
"""Evaluations below which `Reinforce.for_budget` departs from the published settings."""

LARGEST = 1e15  # reward: Adam squares gradients in float32, whose largest value is 3e38
Reward = Annotated[float, Gt(-LARGEST), Lt(LARGEST)]


class _Sample(NamedTuple):
    """A sample, with its log probability and entropy under the policy that drew it."""

    indices: tuple[int, ...]
    log_prob: float
    entropy: float


class Reinforce:
    """A recurrent controller trained by proximal policy optimisation or by REINFORCE.

    The controller (`Controller`) samples valid architectures, and their scores are its rewards. After every `minibatch`
    samples it takes `epochs` steps of Adam on them. The advantage of a sample, one number for all its decisions, is its
    reward minus the baseline, a moving average of earlier rewards. Settings that no paper gives are marked [?].

    Any number may be asked for at a time. The same network may be proposed again, and its known score counts again.
    Architectures that are asked for before an update was complete come from the policy before it, which PPO's ratio
    accounts for; the published schedule is a batch that divides `minibatch`. A failed trial is not a sample. Trials
    that were never proposed, as in a warm start, only move the baseline.

    A sample outside the limits is never evaluated; the controller gets `penalty` as its reward. If `TRIES` samples per
    requested architecture give too few within the limits, random architectures within the limits fill the batch.

    The published rate is for 20,000 networks. After 300, it has changed the policy so little that the search is random;
    `for_budget` gives settings for budgets below `FEW`.

    Args:
        space: the space to search.
        seed: the seed of its weights and draws.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits.
        algorithm: "ppo" or "reinforce".
        learning_rate: the learning rate of Adam.
        minibatch: the number of samples per update.
        hidden: the number of units of the LSTM, which has one layer.
        entropy: the weight of the summed entropy of all decisions; the papers' values are for accuracies from 0 to 1.
        entropy_to: "loss" differentiates the entropy; "reward" adds it to the reward, as ENAS's code does.
        baseline: the weight of the past in the moving average b ← `baseline` · b + (1 - `baseline`) · reward.
        baseline_start: the first value of the baseline [?]; None for the mean reward of the first update.
        baseline_first: whether a reward enters the baseline before it is compared with it, as in ENAS's code.
        clip: the largest change of a ratio, PPO's ε [?].
        epochs: steps on one minibatch [?]; REINFORCE takes one.
        temperature: a divisor of the logits; None for no division [?].
        tanh_constant: see `Controller` [?].
        penalty: the reward of a sample outside the limits; None for the lowest reward so far; "ignored" for no reward,
            if being outside says nothing about an architecture, as with a table that lists a part of a space. The
            number must suit the metric: 0 is the worst accuracy but the best negative loss.

    Raises:
        InputError: an unknown algorithm, or a number out of range.
    """

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        algorithm: Algorithm = "ppo",
        learning_rate: Rate = 0.00035,
        minibatch: Size = 20,
        hidden: Units = 100,
        entropy: NonNegative = 0.00001,
        entropy_to: EntropyTo = "loss",
        baseline: Share = 0.95,
        baseline_start: Reward | None = None,
        baseline_first: bool = False,
        clip: Positive = 0.2,
        epochs: Count = 5,
        temperature: Positive | None = None,
        tanh_constant: Positive | None = None,
        penalty: Reward | Ignored | None = None,
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.algorithm: Algorithm = algorithm
        self.learning_rate = learning_rate
        self.minibatch = minibatch
        self.hidden = hidden
        self.entropy = entropy
        self.entropy_to: EntropyTo = entropy_to
        self.baseline = baseline
        self.baseline_start = baseline_start
        self.baseline_first = baseline_first
        self.clip = clip
        self.epochs = epochs
        self.temperature = temperature
        self.tanh_constant = tanh_constant
        self.penalty = penalty
        from searchers.reinforce.controller import Controller  # loads torch, which importing the package does not

        self.controller = Controller(
            space,
            seed=derive_seed("reinforce", seed),
            hidden=hidden,
            temperature=temperature,
            tanh_constant=tanh_constant,
            learning_rate=learning_rate,
        )
        self._queue: deque[_Sample] = deque()  # within the limits, not proposed yet
        self._asked: dict[tuple[int, ...], list[_Sample]] = {}  # proposed and not scored yet
        self._batch: list[tuple[_Sample, float]] = []  # with rewards, for the next update
        self._level = baseline_start  # the baseline
        self._lowest: float | None = None  # reward so far
        self._fallbacks = 0

    @staticmethod
    @checked_arguments
    def for_budget(
        space: SearchSpace, evaluations: Count, overrides: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Settings for a small budget: ten times the published rate and updates twice as often below `FEW` evaluations.

        At the published rate, 300 evaluations are 75 steps of Adam, after which every probability is within a few per
        cent of where it began. Measurements are in docs/benchmarks/searchers.md.

        Args:
            space: not used.
            evaluations: the number of networks that the search will score.
            overrides: settings chosen by hand, which are not looked at.
        """
        return {"learning_rate": 0.0035, "minibatch": 10} if evaluations < FEW else {}

    @classmethod
    def nasnet(cls, space: SearchSpace, **settings: Any) -> Self:
        """The settings of NASNet (Zoph et al., CVPR 2018, appendix A): PPO, 100 units, minibatches of 20."""
        published = {"learning_rate": 0.00035, "minibatch": 20, "hidden": 100, "entropy": 0.00001, "baseline": 0.95}
        return cls(space, **{"algorithm": "ppo", **published, **settings})

    @classmethod
    def nasfpn(cls, space: SearchSpace, **settings: Any) -> Self:
        """The settings of NAS-FPN (Ghiasi et al., CVPR 2019, § 4.2), which uses the controller of NASNet."""
        return cls.nasnet(space, **settings)

    @classmethod
    def enas(cls, space: SearchSpace, **settings: Any) -> Self:
        """The released settings of ENAS for cells (Pham et al., ICML 2018): REINFORCE, 64 units, minibatches of 10.

        The paper itself gives 100 units, `temperature=5` and `tanh_constant=2.5`. Parts of the code that are specific
        to its own space are left out: attention for the inputs, a smaller constant for operations, and their initial
        biases.
        """
        released = {
            "algorithm": "reinforce",
            "learning_rate": 0.0035,
            "minibatch": 10,
            "hidden": 64,
            "entropy": 0.0001,
            "entropy_to": "reward",
            "baseline": 0.99,
            "baseline_start": 0.0,
            "baseline_first": True,
            "tanh_constant": 1.1,
        }
        return cls(space, **{**released, **settings})

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes `n` architectures. Raises `InputError` if the limits exclude every draw."""
        tries = TRIES * n
        while len(self._queue) < n and tries > 0:
            tries -= self._draw(n)
        while len(self._queue) < n:
            self._queue.append(self._random())
        taken = [self._queue.popleft() for _ in range(n)]
        for drawn in taken:
            self._asked.setdefault(drawn.indices, []).append(drawn)
        return [self.space.from_indices(drawn.indices) for drawn in taken]

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Rewards the samples and updates the policy when a minibatch is complete.

        Raises:
            InputError: a score is not finite, or too large to learn from.
        """
        for trial in trials:
            waiting = self._asked.get(self.space.to_indices(trial.arch), [])
            drawn = waiting.pop(0) if waiting else None
            if drawn is not None and not waiting:
                del self._asked[drawn.indices]
            if trial.failed or not (self.feasible is None or self.feasible(trial.arch)):
                continue
            reward = score(trial, self.metric)
            if not abs(reward) < LARGEST:
                raise InputError(
                    f"trial {trial.number} ({trial.key}) has {self.metric}={reward}, from which a controller cannot "
                    "learn; score it with a finite number, or mark it as failed"
                )
            self._lowest = reward if self._lowest is None else min(self._lowest, reward)
            if drawn is None:
                self._level = reward if self._level is None else self._moved(reward)
            else:
                self._reward(drawn, reward)

    def _draw(self, n: int) -> int:
        """Fills the queue from the policy, up to `n` or to the need of the next update; returns the number of samples.

        A sample outside the limits is rewarded at once, which may complete a minibatch.
        """
        waiting = sum(map(len, self._asked.values())) + len(self._batch)
        drawn = self._valued(self.controller.sample(max(n, self.minibatch - waiting) - len(self._queue)))
        for sampled in drawn:
            if self.feasible is None or self.feasible(self.space.from_indices(sampled.indices)):
                self._queue.append(sampled)
                continue
            penalty = self._lowest if self.penalty is None else self.penalty
            if penalty is not None and penalty != "ignored":
                self._reward(sampled, penalty)
        return len(drawn)

    def _random(self) -> _Sample:
        """A random sample within the limits."""
        rng = generator("reinforce", self.seed, self._fallbacks)
        self._fallbacks += 1
        return self._valued([self.space.to_indices(sample(self.space, rng, self.feasible))])[0]

    def _valued(self, vectors: Sequence[tuple[int, ...]]) -> list[_Sample]:
        """Index vectors as samples of the current policy."""
        log_prob, entropy = self.controller.log_prob(vectors)
        return [_Sample(*values) for values in zip(vectors, log_prob.tolist(), entropy.tolist(), strict=True)]

    def _moved(self, reward: float) -> float:
        """The baseline after a reward."""
        assert self._level is not None
        return self.baseline * self._level + (1 - self.baseline) * reward

    def _reward(self, drawn: _Sample, reward: float) -> None:
        """Adds a sample to the minibatch, and updates the policy when it is complete."""
        self._batch.append((drawn, reward))
        if len(self._batch) == self.minibatch:
            batch, self._batch = self._batch, []
            self._learn([drawn for drawn, _ in batch], self._advantages(batch))

    def _advantages(self, batch: Sequence[tuple[_Sample, float]]) -> list[float]:
        """The rewards minus the baseline, which is updated on the way."""
        bonus = self.entropy if self.entropy_to == "reward" else 0.0
        rewards = [reward + bonus * drawn.entropy for drawn, reward in batch]
        before = self._level = math.fsum(rewards) / len(rewards) if self._level is None else self._level
        levels = []
        for reward in rewards:
            self._level = self._moved(reward)
            levels.append(self._level if self.baseline_first else before)
        return [reward - level for reward, level in zip(rewards, levels, strict=True)]

    def _learn(self, drawn: Sequence[_Sample], advantages: Sequence[float]) -> None:
        """Updates the policy on one minibatch."""
        import torch

        from searchers.reinforce.controller import ppo_loss, reinforce_loss

        vectors = [sampled.indices for sampled in drawn]
        old = torch.tensor([sampled.log_prob for sampled in drawn])
        advantage = torch.tensor(advantages)
        bonus = self.entropy if self.entropy_to == "loss" else 0.0
        for _ in range(self.epochs if self.algorithm == "ppo" else 1):
            log_prob, entropy = self.controller.log_prob(vectors)
            if self.algorithm == "ppo":
                loss = ppo_loss(log_prob, old, advantage, clip=self.clip)
            else:
                loss = reinforce_loss(log_prob, advantage)
            self.controller.step(loss - bonus * entropy.mean())

    def snapshot(self) -> bytes:
        """Returns its whole state, for `restore` of a fresh searcher with the same settings."""
        state = {
            "queue": list(self._queue),
            "asked": [drawn for waiting in self._asked.values() for drawn in waiting],
            "batch": self._batch,
            "level": self._level,
            "lowest": self._lowest,
            "fallbacks": self._fallbacks,
        }
        return self.controller.to_bytes(state)

    def restore(self, data: bytes) -> None:
        """Restores the state that `snapshot` returned. Raises `InputError` for anything else."""
        state = self.controller.from_bytes(data)
        self._queue = deque(map(_read, state["queue"]))
        self._asked = {}
        for drawn in map(_read, state["asked"]):
            self._asked.setdefault(drawn.indices, []).append(drawn)
        self._batch = [(_read(drawn), reward) for drawn, reward in state["batch"]]
        self._level, self._lowest, self._fallbacks = state["level"], state["lowest"], state["fallbacks"]


def _read(values: Sequence[Any]) -> _Sample:
    indices, log_prob, entropy = values
    return _Sample(tuple(indices), log_prob, entropy)
