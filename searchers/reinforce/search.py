"""Search by reinforcement learning: a controller proposes, the score is its reward (NASNet, NAS-FPN, ENAS)."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

from searchers.loop import Feasible
from searchers.proposals import sample
from searchers.study import Trial, score
from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, SearchSpace

Algorithm = Literal["ppo", "reinforce"]
EntropyTo = Literal["loss", "reward"]

TRIES = 100
"""Samples per architecture asked for, before a random one within the limits takes its place."""

LARGEST = 1e15  # of a reward: Adam squares gradients in float32, which ends at 3e38


class _Sample(NamedTuple):
    """What a sample was worth to the policy that drew it."""

    indices: tuple[int, ...]
    log_prob: float
    entropy: float


class Reinforce:
    """A recurrent controller trained by proximal policy optimisation or by REINFORCE.

    The controller (`Controller`) samples architectures, legal ones only; their scores are its rewards. After every
    `minibatch` samples it takes `epochs` steps of Adam on them. The advantage of a sample, one number for all of its
    decisions, is its reward less the baseline, a moving average of earlier rewards. Settings that no paper gives are
    marked [?].

    Any number may be asked for at a time, and the same network may be proposed again: its known score counts again.
    What is asked for before an update is told was drawn by the policy before it (PPO's ratio accounts for that); the
    published schedule is a batch that divides `minibatch`. A failed trial is no sample. Trials that were never asked
    for, which a warm start tells, move the baseline alone.

    A sample outside the limits is told to the controller with `penalty` as its reward, and never evaluated. When
    `TRIES` samples for each architecture asked for bring too few within, random ones within the limits take their
    place.

    Args:
        space: to search.
        seed: of its weights and draws.
        metric: to maximise; with a leading minus, to minimise.
        feasible: limits that every proposal keeps; None for none.
        algorithm: "ppo" or "reinforce".
        learning_rate: of Adam.
        minibatch: samples of an update.
        hidden: units of the LSTM, of its one layer.
        entropy: weight of the entropy of all decisions, summed; the papers' are for accuracies from 0 to 1.
        entropy_to: "loss" differentiates the entropy; "reward" adds it to the reward, as ENAS's code does.
        baseline: weight of the past in the moving average b ← `baseline` · b + (1 - `baseline`) · reward.
        baseline_start: its first value [?]; None for the mean reward of the first update.
        baseline_first: each reward enters the baseline before it is compared with it, as in ENAS's code.
        clip: largest change of a ratio, PPO's ε [?].
        epochs: steps on one minibatch [?]; REINFORCE takes one.
        temperature: of the logits; None for none [?].
        tanh_constant: see `Controller` [?].
        penalty: the reward of a sample outside the limits; None for the lowest reward told so far. A number must suit
            the metric: 0 is the worst accuracy and the best negative loss.

    Raises:
        InputError: an unknown algorithm, or a number that cannot be meant.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        metric: str = "accuracy",
        feasible: Feasible | None = None,
        algorithm: Algorithm = "ppo",
        learning_rate: float = 0.00035,
        minibatch: int = 20,
        hidden: int = 100,
        entropy: float = 0.00001,
        entropy_to: EntropyTo = "loss",
        baseline: float = 0.95,
        baseline_start: float | None = None,
        baseline_first: bool = False,
        clip: float = 0.2,
        epochs: int = 5,
        temperature: float | None = None,
        tanh_constant: float | None = None,
        penalty: float | None = None,
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
        self._check()
        from searchers.reinforce.controller import Controller  # torch, which the package does without

        self.controller = Controller(
            space,
            seed=derive_seed("reinforce", seed),
            hidden=hidden,
            temperature=temperature,
            tanh_constant=tanh_constant,
            learning_rate=learning_rate,
        )
        self._queue: deque[_Sample] = deque()  # within the limits, not asked for yet
        self._asked: dict[tuple[int, ...], list[_Sample]] = {}  # and not told yet
        self._batch: list[tuple[_Sample, float]] = []  # with their rewards, for the next update
        self._level = baseline_start  # the baseline
        self._lowest: float | None = None  # reward told
        self._fallbacks = 0

    @classmethod
    def nasnet(cls, space: SearchSpace, **settings: Any) -> Self:
        """The settings of NASNet (Zoph et al., CVPR 2018, appendix A): PPO, 100 units, minibatches of 20."""
        published = {"learning_rate": 0.00035, "minibatch": 20, "hidden": 100, "entropy": 0.00001, "baseline": 0.95}
        return cls(space, **{"algorithm": "ppo", **published, **settings})

    @classmethod
    def nasfpn(cls, space: SearchSpace, **settings: Any) -> Self:
        """The settings of NAS-FPN (Ghiasi et al., CVPR 2019, § 4.2), which takes over the controller of NASNet."""
        return cls.nasnet(space, **settings)

    @classmethod
    def enas(cls, space: SearchSpace, **settings: Any) -> Self:
        """The released settings of ENAS for cells (Pham et al., ICML 2018): REINFORCE, 64 units, minibatches of 10.

        The paper itself gives 100 units, `temperature=5` and `tanh_constant=2.5`. Left out is what the code knows of
        its own space: attention for the inputs, a smaller constant for operations, and their initial biases.
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

    def ask(self, n: int) -> list[Arch]:
        """`n` architectures. Raises `InputError` if the limits exclude every draw."""
        left = TRIES * n
        while len(self._queue) < n and left > 0:
            left -= self._draw(n)
        while len(self._queue) < n:
            self._queue.append(self._random())
        taken = [self._queue.popleft() for _ in range(n)]
        for drawn in taken:
            self._asked.setdefault(drawn.indices, []).append(drawn)
        return [self.space.from_indices(drawn.indices) for drawn in taken]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Rewards what was asked for, and learns when a minibatch is complete.

        Raises:
            InputError: a score that is no finite number a network can learn from.
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
                    f"trial {trial.number} ({trial.key}) has {self.metric}={reward}, no reward that a controller can "
                    "learn from; score it with a finite number, or mark it as failed"
                )
            self._lowest = reward if self._lowest is None else min(self._lowest, reward)
            if drawn is None:
                self._level = reward if self._level is None else self._moved(reward)
            else:
                self._reward(drawn, reward)

    def _draw(self, n: int) -> int:
        """Fills the queue from the policy, to `n` or to what the next update needs; returns how many samples it took.

        A sample outside the limits is rewarded at once, and may be the one that completes a minibatch.
        """
        waiting = sum(map(len, self._asked.values())) + len(self._batch)
        drawn = self._valued(self.controller.sample(max(n, self.minibatch - waiting) - len(self._queue)))
        for each in drawn:
            if self.feasible is None or self.feasible(self.space.from_indices(each.indices)):
                self._queue.append(each)
            elif self.penalty is not None or self._lowest is not None:
                self._reward(each, self._lowest if self.penalty is None else self.penalty)  # type: ignore[arg-type]
        return len(drawn)

    def _random(self) -> _Sample:
        rng = generator("reinforce", self.seed, self._fallbacks)
        self._fallbacks += 1
        return self._valued([self.space.to_indices(sample(self.space, rng, self.feasible))])[0]

    def _valued(self, vectors: Sequence[tuple[int, ...]]) -> list[_Sample]:
        log_prob, entropy = self.controller.log_prob(vectors)
        return [_Sample(*each) for each in zip(vectors, log_prob.tolist(), entropy.tolist(), strict=True)]

    def _moved(self, reward: float) -> float:
        """The baseline after a reward."""
        assert self._level is not None
        return self.baseline * self._level + (1 - self.baseline) * reward

    def _reward(self, drawn: _Sample, reward: float) -> None:
        self._batch.append((drawn, reward))
        if len(self._batch) == self.minibatch:
            batch, self._batch = self._batch, []
            self._learn([drawn for drawn, _ in batch], self._advantages(batch))

    def _advantages(self, batch: Sequence[tuple[_Sample, float]]) -> list[float]:
        """Rewards less the baseline, which moves on."""
        bonus = self.entropy if self.entropy_to == "reward" else 0.0
        rewards = [reward + bonus * drawn.entropy for drawn, reward in batch]
        before = self._level = math.fsum(rewards) / len(rewards) if self._level is None else self._level
        levels = []
        for reward in rewards:
            self._level = self._moved(reward)
            levels.append(self._level if self.baseline_first else before)
        return [reward - level for reward, level in zip(rewards, levels, strict=True)]

    def _learn(self, drawn: Sequence[_Sample], advantages: Sequence[float]) -> None:
        import torch

        from searchers.reinforce.controller import ppo_loss, reinforce_loss

        vectors, old = [each.indices for each in drawn], torch.tensor([each.log_prob for each in drawn])
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
        """All of its state, which `restore` brings a fresh searcher with the same settings to."""
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
        """The state that `snapshot` wrote. Raises `InputError` for anything else."""
        state = self.controller.from_bytes(data)
        self._queue = deque(map(_read, state["queue"]))
        self._asked = {}
        for drawn in map(_read, state["asked"]):
            self._asked.setdefault(drawn.indices, []).append(drawn)
        self._batch = [(_read(drawn), reward) for drawn, reward in state["batch"]]
        self._level, self._lowest, self._fallbacks = state["level"], state["lowest"], state["fallbacks"]

    def _check(self) -> None:
        for name, given, known in (
            ("algorithm", self.algorithm, Algorithm),
            ("entropy_to", self.entropy_to, EntropyTo),
        ):
            if given not in get_args(known):
                raise InputError(f"{name}={given!r} is unknown; {nearest(given, get_args(known))}")
        for name, size in (("minibatch", self.minibatch), ("hidden", self.hidden), ("epochs", self.epochs)):
            if size < 1:
                raise InputError(f"{name}={size} is too small; give at least 1")
        positive = {"learning_rate": self.learning_rate, "clip": self.clip}
        positive |= {"temperature": self.temperature, "tanh_constant": self.tanh_constant}  # type: ignore[dict-item]
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value} must be a number above 0")
        for name, level in (("baseline_start", self.baseline_start), ("penalty", self.penalty)):
            if level is not None and not abs(level) < LARGEST:
                raise InputError(f"{name}={level} is no reward; give a finite number, or None")
        if not (math.isfinite(self.entropy) and self.entropy >= 0):
            raise InputError(f"entropy={self.entropy} is no weight of a bonus; give 0 or more")
        if not 0 <= self.baseline < 1:
            raise InputError(f"baseline={self.baseline} is no weight of the past; give a number from 0 to below 1")


def _read(values: Sequence[Any]) -> _Sample:
    indices, log_prob, entropy = values
    return _Sample(tuple(indices), log_prob, entropy)
