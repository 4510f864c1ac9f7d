"""MorphNet (Gordon et al., CVPR 2018): widths shrink under a resource regulariser, then expand into the budget."""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from searchers.loop import Asked, Evaluate, Feasible, Limits, Metric
from searchers.morphnet.resources import (
    GAP,
    Resource,
    ShrinkingPenalty,
    filled,
    group_scales,
    histogram_gap,
    largest_multiplier,
    resource_cost,
    widened,
)
from searchers.study import Trial, score
from supernet.checked import Count, Positive, Rule, Seed, Share, arguments_explained, checked_arguments
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.spaces.widths import WidthChain


RESOURCES: dict[str, Resource] = {"macs": "flops", "params": "size"}
"""The resource to regularise for each limit."""

RELEASED_THRESHOLD = 1e-3  # as in the example of the released code
FORMAT = 1
MOST_BYTES = 900_000_000  # of weights in a snapshot; a field of SQLite holds 1e9 bytes at most

_log = logging.getLogger("searchers")


class Shrink(Protocol):
    """Trains the shared weights of one architecture in place, with a penalty and at a constant learning rate."""

    def __call__(self, supernet: Any, arch: Arch, penalty: ShrinkingPenalty, run: str) -> Any:
        """Trains until `penalty.settled`.

        Args:
            supernet: the weights to train.
            arch: the architecture to train.
            penalty: the penalty to add to the loss.
            run: the name of the training within the search, such as `round0-0`, for its checkpoint. A resumed search
                finds finished trainings by it and does not repeat them.
        """


@dataclass(frozen=True)
class Shrunk:
    """The result of one training.

    Attributes:
        run: the name of the training.
        strength: λ.
        threshold: channels with a larger |γ| are alive.
        alive: the number of alive channels per group.
        multiplier: ω, the factor for the alive widths.
        clipped: the groups that reach the largest width of the supernet.
        arch: the proposed architecture: ω times the alive widths, filled up on request.
        cost: the cost of `arch` in the units of the limit.
        checkpoint: the SHA-256 of the weights that score it, 16 hex digits.
    """

    run: str
    strength: float
    threshold: float
    alive: dict[str, int]
    multiplier: float
    clipped: tuple[str, ...]
    arch: Arch
    cost: int
    checkpoint: str

    @property
    def figures(self) -> dict[str, float]:
        """The numbers to keep beside the score; `checkpoint` has 48 bits, which a double represents exactly."""
        number, _, attempt = self.run.removeprefix("round").partition("-")
        return {
            "round": float(number),
            "attempt": float(attempt),
            "strength": self.strength,
            "multiplier": self.multiplier,
            "alive": float(sum(self.alive.values())),
            "clipped": float(len(self.clipped)),
            "checkpoint": float(int(self.checkpoint[:12], 16)),
        }


class MorphNet:
    """Shrinks widths under λ·G, expands the survivors uniformly to the budget, and repeats (the paper's Algorithm 1).

    A round trains the current widths with each λ of the scan, from the same weights. After each training, channels
    are sorted by |γ| (which does not change the outputs), and ω times the alive widths are proposed: an ordinary
    architecture, which is scored with the shared weights as they are then. The best of the scan starts the next round;
    the channels that it gains start at scale 1 and shift 0.

    Proposals come one at a time, since each is scored with its own weights. A whole search takes `rounds * len(scan)`
    trials. Evaluate with `searcher.scored(evaluate)`, where `evaluate` reads `searcher.supernet`, so that the study
    records rounds and checkpoint hashes; a resumed search is checked against them.

    Args:
        space: the space of the supernet.
        supernet: a supernet whose decisions are widths (`supernet.spaces.widths`); a copy of it is trained.
        train: see `Shrink`; a call of `train_supernet` with `penalty`, one architecture and a constant learning rate.
        seed: recorded only: the search draws nothing, and the training has its own seed.
        metric: the metric that compares the λ of a scan; with a leading minus, lower is better.
        feasible: exactly one limit, on `macs` (which regularises FLOPs) or on `params` (model size).
        rounds: how often to shrink and expand.
        strength: λ; None for 1 / (cost of the widths that the round starts from).
        scan: the multiples of λ that each round tries.
        threshold: channels with a larger |γ| are alive; "gap" for the gap of the histogram (training then uses 1e-3).
        fill: add single channels until the cost is within this share below the limit; 0 to add none.
        start: the widths to start from; None for the supernet's seed.
        patience: see `ShrinkingPenalty`.
        tolerance: see `ShrinkingPenalty`.
        inplace: whether to train the supernet itself.

    Attributes:
        history: the results of all trainings, in order.

    Raises:
        InputError: the space has no widths; a group has no batch norm with scale; there is not exactly one limit, or it
            is below one channel per group; the start is outside the space (such as a width of 0 where a channel is
            needed); or a number is out of range.
    """

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        supernet: "WidthChain",
        train: Annotated[Shrink, Rule("a function, see `Shrink`", callable, alone=True)],
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        rounds: Count = 1,
        strength: Positive | None = None,
        scan: Annotated[Sequence[Positive], Rule("at least one number", bool)] = (0.1, 1.0, 10.0),
        threshold: Positive | Literal["gap"] = RELEASED_THRESHOLD,
        fill: Share = 0.0,
        start: Mapping[str, int] | None = None,
        patience: Count = 3,
        tolerance: Positive = 0.01,
        inplace: bool = False,
    ) -> None:
        self.limit, self.budget = _limit(feasible)
        _check_supernet(space, supernet)
        self.space, self.seed, self.metric, self.feasible = space, seed, metric, feasible
        self.train, self.rounds, self.strength, self.scan = train, rounds, strength, tuple(scan)
        self.threshold, self.fill, self.patience, self.tolerance = threshold, fill, patience, tolerance
        self.start, self.inplace = None if start is None else dict(start), inplace
        self.history: list[Shrunk] = []
        self._layers = supernet.layers()
        self._largest = {choice.name: int(choice.options[-1]) for choice in space.choices}
        self._arch = space.normal_form(space.canonical(supernet.seed if start is None else start))
        self._check_budget()
        self.supernet = supernet if inplace else copy.deepcopy(supernet)
        self._round = 0
        self._tried: list[Shrunk] = []
        self._before: dict[str, Tensor] = {}  # the weights at the start of the round, while a scan needs them
        self._best: tuple[float, Shrunk, dict[str, Tensor]] | None = None  # of the round, with its weights
        self._scored = True  # whether the current weights have been scored

    def cost(self, widths: Mapping[str, int]) -> int:
        """The cost in the units of the limit: multiply-accumulates, or parameters with batch norm and biases."""
        return sum(layer.macs(widths) if self.limit == "macs" else layer.params(widths) for layer in self._layers)

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Trains and proposes one architecture, or none when all rounds are over."""
        if len(self._tried) == len(self.scan):
            self._conclude()
        if n < 1 or self._round == self.rounds:
            return []
        if not self._tried and len(self.scan) > 1:
            self._before = self._weights()
        elif self._tried:
            self.supernet.load_state_dict(self._before)
        shrunk = self._shrink(self.scan[len(self._tried)], f"round{self._round}-{len(self._tried)}")
        self._tried.append(shrunk)
        self.history.append(shrunk)
        self._scored = False
        return [shrunk.arch]

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Notes the score of the last proposal; other trials, such as those of a warm start, are ignored.

        Raises:
            InputError: the study was recorded with other weights than those of the training.
        """
        for trial in trials:
            if not self._tried or trial.arch != self._tried[-1].arch:
                continue
            self._scored = True
            if trial.failed:
                continue
            shrunk = self._tried[-1]
            recorded, now = trial.metrics.get("checkpoint"), shrunk.figures["checkpoint"]
            if recorded is not None and recorded != now and not trial.repeat:
                raise InputError(
                    f"trial {trial.number} was scored with other weights than {shrunk.run} has now ({int(recorded):x}, "
                    f"{int(now):x}): restore the training's checkpoint, data and settings, or use another study file"
                )
            value = score(trial, self.metric)
            if self._best is None or value > self._best[0]:
                self._best = (value, shrunk, self._weights() if len(self.scan) > 1 else {})

    def scored(self, evaluate: Evaluate) -> Evaluate:
        """Returns `evaluate` with round, λ, ω, alive channels and checkpoint hash added to each score."""
        return _Scored(self, evaluate)

    def snapshot(self) -> bytes:
        """Returns the search so far as safetensors, with the weights to resume from unless they exceed `MOST_BYTES`."""
        from safetensors.torch import save

        best = self._best[2] if self._best else {}
        needed = not self._scored or not (best if len(self._tried) == len(self.scan) else self._before)
        states = {"now": self._weights() if needed else {}, "best": best}
        states["before"] = self._before if len(self._tried) < len(self.scan) else {}
        tensors = {f"{kind}/{name}": tensor for kind, state in states.items() for name, tensor in state.items()}
        whole = sum(tensor.nbytes for tensor in tensors.values()) <= MOST_BYTES
        document = {
            "format": FORMAT,
            "space": self.space.digest(),
            "whole": whole,
            "round": self._round,
            "arch": dict(self._arch),
            "tried": len(self._tried),
            "told": self._scored,
            "history": [asdict(s) | {"arch": dict(s.arch)} for s in self.history],
            "best": None if self._best is None else [self._best[0], self.history.index(self._best[1])],
        }
        return save(tensors if whole else {}, {"morphnet": json.dumps(document)})

    def restore(self, data: bytes) -> None:
        """Restores a snapshot of a searcher with the same arguments.

        Raises:
            InputError: the snapshot is damaged, of another space, or without weights; nothing has changed then.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            document = json.loads(header["__metadata__"]["morphnet"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"this cannot be read as a MorphNet snapshot ({error}); search from the start") from error
        if (document["format"], document["space"]) != (FORMAT, self.space.digest()):
            raise InputError("the snapshot is of another space or release; search from the start")
        if not document["whole"]:
            raise InputError(f"the snapshot has no weights, as they exceed {MOST_BYTES:,} bytes; search from the start")
        states: dict[str, dict[str, Tensor]] = {"now": {}, "before": {}, "best": {}}
        for name, tensor in tensors.items():
            kind, _, name = name.partition("/")
            states[kind][name] = tensor
        self.supernet.load_state_dict(states["now"] or states["best"] or states["before"])
        self._before, self._scored = states["before"], document["told"]
        self._round, self._arch = document["round"], Arch(document["arch"])
        records = [s | {"arch": Arch(s["arch"]), "clipped": tuple(s["clipped"])} for s in document["history"]]
        self.history = [Shrunk(**record) for record in records]
        self._tried = self.history[len(self.history) - document["tried"] :]
        best = document["best"]
        self._best = None if best is None else (best[0], self.history[best[1]], states["best"])

    def _shrink(self, multiple: float, run: str) -> Shrunk:
        """Trains once and returns the resulting architecture."""
        resource = RESOURCES[self.limit]
        widths = {name: int(value) for name, value in self._arch.items()}
        base = self.strength or 1 / resource_cost(self._layers, widths, resource)
        counted = RELEASED_THRESHOLD if self.threshold == "gap" else self.threshold
        penalty = ShrinkingPenalty(
            supernet=self.supernet,
            layers=self._layers,
            resource=resource,
            strength=multiple * base,
            threshold=counted,
            patience=self.patience,
            tolerance=self.tolerance,
        )
        self.train(self.supernet, self._arch, penalty, run)
        scales = {name: scale.detach() for name, scale in group_scales(self.supernet.scales(self._arch)).items()}
        threshold = counted
        if self.threshold == "gap":
            threshold = histogram_gap(value for scale in scales.values() for value in scale.tolist())
            if not threshold:
                _log.warning(
                    "%s: no two scales have a gap of a factor %g between them, and all channels count as "
                    "alive; give a number as the threshold, or a larger strength",
                    run,
                    GAP,
                )
        self.supernet.permute({name: scale.argsort(descending=True, stable=True) for name, scale in scales.items()})
        alive = self._alive(scales, threshold)
        rescued = [name for name, n in alive.items() if n and not bool((scales[name] > threshold).any())]
        if rescued:
            _log.warning(
                "%s: no channel of %s is above the threshold %g, and one is kept; a smaller strength may help",
                run,
                ", ".join(rescued),
                threshold,
            )
        multiplier = largest_multiplier(alive, self._largest, self.cost, self.budget)
        expanded = widened(alive, multiplier, self._largest)
        if self.fill:
            expanded = filled(expanded, alive, self._largest, self.cost, limit=self.budget, share=self.fill)
        clipped = tuple(name for name, width in expanded.items() if width == self._largest[name])
        if clipped:
            _log.warning(
                "%s: %d groups have the largest width of the supernet: %s; a wider supernet would let them grow",
                run,
                len(clipped),
                ", ".join(clipped),
            )
        return Shrunk(
            run,
            multiple * base,
            threshold,
            alive,
            float(multiplier),
            clipped,
            self.space.canonical(expanded),
            self.cost(expanded),
            _digest(self.supernet),
        )

    def _alive(self, scales: "Mapping[str, Tensor]", threshold: float) -> dict[str, int]:
        """Channels above the threshold per group, at least 1 unless the space has 0; branches vanish as a whole."""
        counts = {
            choice.name: max(
                int(choice.options[0]), int((scales[choice.name] > threshold).sum()) if choice.name in scales else 0
            )
            for choice in self.space.choices
        }
        return {name: int(n) for name, n in self.space.normal_form(self.space.canonical(counts)).items()}

    def _conclude(self) -> None:
        """Ends a round: the best of the scan starts the next one."""
        best = self._best or (0.0, self._tried[-1], {})
        if best[2]:
            self.supernet.load_state_dict(best[2])
        self._arch = best[1].arch
        self._round += 1
        if self._round < self.rounds:
            self.supernet.reset_scales(best[1].alive)
        self._tried, self._best, self._before = [], None, {}

    def _weights(self) -> "dict[str, Tensor]":
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.supernet.state_dict().items()}

    def _check_budget(self) -> None:
        least = self.cost(dict.fromkeys(self._largest, 1))
        if least > self.budget:
            raise InputError(
                f"the limit {self.limit} <= {self.budget:,.0f} is below the smallest network of {self.space.name!r}, "
                f"one channel per group, which has {least:,}; raise it"
            )
        widths = {name: int(value) for name, value in self._arch.items()}
        table: Any = getattr(self.feasible, "cost", None)
        counted = self.cost(widths) if table is None else table(self._arch)[self.limit]
        if counted != self.cost(widths):
            raise InputError(
                f"feasible counts {counted:,} {self.limit} where the supernet has {self.cost(widths):,}; give "
                "Feasible(CostTable(supernet), …) of this supernet at its own input size"
            )


class _Scored:
    """An evaluator that adds the figures of the searcher's last training to each score."""

    def __init__(self, searcher: MorphNet, evaluate: Evaluate) -> None:
        self._searcher, self._evaluate = searcher, evaluate

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the evaluator."""
        settings: Mapping[str, Any] = getattr(self._evaluate, "settings", {})
        return settings

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        """Evaluates the architectures and adds the figures of the training."""
        figures = self._searcher.history[-1].figures
        return [None if metrics is None else {**metrics, **figures} for metrics in self._evaluate(archs)]


def _digest(supernet: "WidthChain") -> str:
    sha = hashlib.sha256()
    for tensor in supernet.state_dict().values():
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _limit(feasible: Feasible | None) -> tuple[str, float]:
    limits = dict(getattr(feasible, "limits", {}))
    if len(limits) != 1 or not limits.keys() <= RESOURCES.keys():
        raise InputError(
            f"MorphNet keeps one limit, on one of {', '.join(RESOURCES)}, not {limits or 'none'}; give "
            'feasible=Feasible(CostTable(supernet), {"macs": …})'
        )
    return next(iter(limits.items()))


def _check_supernet(space: SearchSpace, supernet: Any) -> None:
    if not hasattr(supernet, "layers"):
        raise InputError(
            f"space {space.name!r} has no widths to shrink; MorphNet takes a WidthChain, such as 'resnet-20-widths'"
        )
    if supernet.space.digest() != space.digest():
        raise InputError(f"the supernet is of space {supernet.space.name!r}, not of {space.name!r}; give its own space")
    bare = [name for name, scales in supernet.scales(supernet.seed).items() if not scales]
    if bare:
        raise InputError(
            f"group {bare[0]!r} of {space.name!r} has no batch norm with scale to regularise; build the "
            "supernet with affine batch norm"
        )
