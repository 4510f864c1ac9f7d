"""The health of a supernet in training: visits and gradients of its options, the spread of losses, and depth.

A ranking goes wrong in training, long before it is measured: options that are seldom visited or hardly updated fall
behind, and paths whose losses differ by less than the noise of a batch cannot be ranked. All of this is read from what
a step computes anyway, and the device has to wait only once per epoch.
"""

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.chain import Chain, Searchable
from supernet.checked import Count, Natural, checked_arguments
from supernet.ranking.depth import layers
from supernet.ranking.growth import Slope, slope
from supernet.space import Arch

EVERY = 10  # steps between two measurements of gradients: their norms cost as much as an update
TENTHS = 10
MOST_PATHS = 4096  # the last paths of a tenth; τ over this many has a standard deviation of 0.01
MOST_SHOWN = 200  # options up to which each has its own curves in TensorBoard
MEAN_DECAY = 0.98  # decay of the running mean that is subtracted from losses to remove their downward trend


class Monitor:
    """Watches one training; hand it to `train_supernet` and read `report()` afterwards.

    Args:
        chain: the supernet; for one without decisions nothing is recorded.
        depth: the number of layers of an architecture; `supernet.ranking.depth.layers` by default.
        cost: the costs of an architecture, such as a `CostTable`; with their MACs the growth of the advantage of size
            is recorded (`supernet.ranking.growth`).
        every: steps between two measurements of gradients, at least 1.

    Raises:
        InputError: no chain, or no steps between two measurements.
    """

    @checked_arguments
    def __init__(
        self,
        chain: Chain,
        *,
        depth: Callable[[Arch], float] = layers,
        cost: Callable[[Arch], Mapping[str, float]] | None = None,
        every: Count = EVERY,
    ) -> None:
        self.chain, self.depth, self.cost, self.every = chain, depth, cost, every
        self.steps = 0
        self._visits = {choice.name: [0] * len(choice.options) for choice in chain.space.choices}
        self._gradients: dict[tuple[str, int], Tensor | float] = {}
        self._gaps: list[float] = []  # in this epoch: loss of a path minus the running mean
        self._paths: deque[tuple[float, float, float]] = deque(maxlen=MOST_PATHS)  # in this tenth: depth, gap, MACs
        self._mean: float | None = None
        self._tenth = 0
        self._epochs: list[dict[str, float]] = []
        self._depths: list[dict[str, Any]] = []
        self._slopes: list[Slope] = []

    @checked_arguments
    def begin(self, steps: Natural) -> None:
        """Sets the number of steps of the whole training. Raises `InputError` for a negative one."""
        self.steps = steps

    def gradients(self, step: int, archs: Sequence[Arch]) -> None:
        """Measures the gradients of a training step, after the last backward pass and before clipping.

        The squared norm of the active gradients of a chain step is credited to the options chosen in that step.
        """
        if not self._visits or step % self.every:
            return
        credits: dict[tuple[str, int], dict[int, Tensor]] = {}
        for arch in archs:
            for name, (block, sub, layout) in zip(self.chain.step_names, self.chain.walk(arch), strict=True):
                if not isinstance(block, Searchable):
                    continue
                used = {id(p): p.grad for p, _ in block.active_parts(sub, layout) if p.grad is not None}
                for choice in block.space.active(sub):
                    key = f"{name}.{choice.name}", choice.index(sub[choice.name])
                    credits.setdefault(key, {}).update(used)
        gradients = {number: gradient for part in credits.values() for number, gradient in part.items()}
        if not gradients:
            return
        norms = dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))
        for key, part in credits.items():
            if part:
                squared = torch.stack([norms[number] for number in part]).square().sum()
                self._gradients[key] = self._gradients.get(key, 0.0) + squared

    def losses(self, step: int, archs: Sequence[Arch], values: Sequence[float]) -> None:
        """Records the paths of a step with their losses; this may happen later than the step."""
        if not self._visits:
            return
        if self.steps and (tenth := step * TENTHS // self.steps) > self._tenth:
            self._close_tenth()
            self._tenth = tenth
        before = self._mean
        for arch, loss in zip(archs, values, strict=True):
            for choice in self.chain.space.active(arch):
                self._visits[choice.name][choice.index(arch[choice.name])] += 1
            if before is not None:  # one mean for all paths of a step, since they saw the same images
                self._gaps.append(loss - before)
                macs = self.cost(arch)["macs"] if self.cost is not None else 0.0
                self._paths.append((self.depth(arch), loss - before, macs))
        mean = statistics.fmean(values)
        self._mean = mean if before is None else MEAN_DECAY * before + (1 - MEAN_DECAY) * mean

    def close_epoch(self, step: int) -> dict[str, float]:
        """Closes an epoch and returns its TensorBoard scalars; only here the device has to wait.

        Returns:
            `health/loss_spread`: standard deviation of the losses of the epoch's paths; `health/visits_least`: visits
            of the least visited option, where 1 is its fair share; `health/depth_tau` of the last tenth, once there is
            one; and for each option, unless there are too many, its shares of visits and of gradient.
        """
        if not self._visits:
            return {}
        if step >= self.steps > 0:
            self._close_tenth()
        self._read()
        row = {"loss_spread": statistics.stdev(self._gaps) if len(self._gaps) > 1 else math.nan}
        row["visits_least"] = min(_least(counts) for counts in self._visits.values())
        self._gaps.clear()
        self._epochs.append({"step": step, **row})
        if self._depths:
            row["depth_tau"] = self._depths[-1]["tau"]
        scalars = {f"health/{name}": value for name, value in row.items() if math.isfinite(value)}
        if sum(map(len, self._visits.values())) <= MOST_SHOWN:
            for kind, shares in (("visits", self.visits()), ("gradient", self.gradient_shares())):
                for choice, options in shares.items():
                    scalars |= {f"health/{kind}/{choice}/{option}": value for option, value in options.items()}
        return scalars

    def visits(self) -> dict[str, dict[str, float]]:
        """Returns for each choice and option its share of the choice's visits."""
        return {name: self._named(name, _shares(counts)) for name, counts in self._visits.items()}

    def gradient_shares(self) -> dict[str, dict[str, float]]:
        """Returns for each choice and option the share of the squared gradient norm that its steps received."""
        self._read()
        shares = {}
        for name, counts in self._visits.items():
            sums = [float(self._gradients.get((name, index), 0.0)) for index in range(len(counts))]
            shares[name] = self._named(name, _shares(sums))
        return shares

    def report(self) -> dict[str, Any]:
        """Returns everything for JSON: counts and shares per option, spread per epoch, ranking by depth per tenth."""
        counts = {name: self._named(name, counts) for name, counts in self._visits.items()}
        epochs = [
            {name: value if math.isfinite(value) else None for name, value in row.items()} for row in self._epochs
        ]
        depths = [{**row, "tau": row["tau"] if math.isfinite(row["tau"]) else None} for row in self._depths]
        sizes = [dataclasses.asdict(one) for one in self._slopes]
        return {"visits": counts, "gradient": self.gradient_shares(), "epochs": epochs, "depth": depths, "size": sizes}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs to resume identically, as plain values."""
        self._read()
        return {
            "visits": {name: list(counts) for name, counts in self._visits.items()},
            "gradients": [[name, index, value] for (name, index), value in self._gradients.items()],
            "gaps": list(self._gaps),
            "paths": [list(path) for path in self._paths],
            "mean": self._mean,
            "tenth": self._tenth,
            "epochs": [dict(row) for row in self._epochs],
            "depths": [dict(row) for row in self._depths],
            "slopes": [dataclasses.asdict(one) for one in self._slopes],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Resumes from a checkpoint; if that was written without a monitor, recording starts here."""
        if not state:
            return
        self._visits = {name: list(counts) for name, counts in state["visits"].items()}
        self._gradients = {(name, index): value for name, index, value in state["gradients"]}
        self._gaps = list(state["gaps"])
        paths = [(*path, 0.0)[:3] for path in state["paths"]]  # earlier releases wrote no MACs
        self._paths = deque(paths, maxlen=MOST_PATHS)
        self._mean, self._tenth = state["mean"], state["tenth"]
        self._epochs, self._depths = [dict(row) for row in state["epochs"]], [dict(row) for row in state["depths"]]
        self._slopes = [Slope(**row) for row in state.get("slopes", ())]

    def _close_tenth(self) -> None:
        """Records how well depth ranks the paths of a tenth by their losses, where τ is 1 if deeper was always better,
        and the slope of the losses over the logarithm of the MACs.
        """
        if not self._paths:
            return
        from supernet.ranking.statistics import kendall  # scipy's statistics take a second to import

        depths, gaps, macs = zip(*self._paths, strict=True)
        if self.cost is not None:
            sized = [(math.log(cost), gap) for cost, gap in zip(macs, gaps, strict=True) if cost > 0]
            one = slope(self._tenth + 1, *zip(*sized, strict=True)) if sized else None
            self._slopes += [one] if one is not None else []
        by_depth: dict[float, list[float]] = {}
        for depth, gap, _ in self._paths:
            by_depth.setdefault(depth, []).append(gap)
        self._depths.append(
            {
                "tenth": self._tenth + 1,
                "paths": len(depths),
                "tau": kendall(depths, [-gap for gap in gaps]),
                "gap": {f"{depth:g}": statistics.fmean(values) for depth, values in sorted(by_depth.items())},
            }
        )
        self._paths.clear()

    def _read(self) -> None:
        """Fetches all sums that are still on the device, in one transfer."""
        waiting = [key for key, value in self._gradients.items() if isinstance(value, Tensor)]
        if waiting:
            values = torch.stack([torch.as_tensor(self._gradients[key]) for key in waiting]).tolist()
            self._gradients.update(zip(waiting, values, strict=True))

    def _named(self, name: str, values: Sequence[float]) -> dict[str, float]:
        return {str(option): value for option, value in zip(self.chain.space[name].options, values, strict=True)}


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def _least(counts: Sequence[int]) -> float:
    """Returns the smallest share, as a multiple of the fair share; 1 for a choice that was never active."""
    return min(_shares(counts)) * len(counts) if sum(counts) else 1.0
