"""Measured latency as a cost: a table of timed steps, and how far their sum is from timing whole networks."""

import statistics
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.benchmark import Timer

from supernet.cost import COSTS, CostTable
from supernet.searchable import Chain
from supernet.space import Arch


class LatencyTable(CostTable):
    """A `CostTable` with a further cost, `latency`: microseconds of a forward pass in eval mode, on this machine.

    Every (step, its decisions, its input) is timed once, when it is first needed, and an architecture's latency is the
    sum over its steps. Where steps do not share decisions the table is finite, and windows and limits on latency are
    as exact as those on MACs; of what is measured, not of what another run would measure. A space with shared cells
    times the cells of each architecture on demand. What a table measured stays with it: use one table for a search.

    Args:
        supernet: only its shapes are kept.
        input_shape: (C, H, W); the supernet's own by default.
        batch: images per forward pass.
        device: where it is timed.
        seconds: of timing per entry.
        channels_last: memory order of images and weights.
    """

    costs = (*COSTS, "latency")

    def __init__(
        self,
        supernet: Chain,
        input_shape: Sequence[int] | None = None,
        *,
        batch: int = 1,
        device: str = "cpu",
        seconds: float = 0.05,
        channels_last: bool = True,
    ) -> None:
        super().__init__(supernet, input_shape)
        self.batch, self.device, self.seconds = batch, device, seconds
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def _measure(self, module: nn.Module, state: Any) -> tuple[dict[str, int], Any]:
        cost, after = super()._measure(module, state)
        return {**cost, "latency": self._time(module, state)}, after

    def end_to_end(self, arch: Arch) -> int:
        """Microseconds of the whole network, timed anew."""
        return self._time(self._chain.subnet(arch).eval(), self._start.state)

    def error(self, archs: int = 20, *, seed: int = 0) -> dict[str, float]:
        """The table against end-to-end timing of random architectures.

        Returns:
            `mean` and `worst` relative error; `bias`, the mean ratio of table to timing (above 1 where separate steps
            miss what runs together saves); `tau`, Kendall's tau-b between the two; `n`.
        """
        from scipy.stats import kendalltau

        rng = Random(seed)
        drawn = [self.space.sample(rng) for _ in range(archs)]
        pairs = [(self(arch)["latency"], self.end_to_end(arch)) for arch in drawn]
        errors = [abs(table - timed) / timed for table, timed in pairs]
        return {
            "mean": statistics.mean(errors), "worst": max(errors),
            "bias": statistics.mean(table / timed for table, timed in pairs),
            "tau": float(kendalltau(*zip(*pairs, strict=True)).statistic), "n": archs,
        }  # fmt: skip

    def _time(self, module: nn.Module, state: Any) -> int:
        """Median microseconds of a module that is built on the meta device; values have no influence on the time."""
        real = module.to_empty(device=self.device).to(memory_format=self.memory_format)
        with torch.no_grad():
            for tensor in (*real.parameters(), *real.buffers()):
                tensor.fill_(1)
        given = tree_map(self._filled, state)
        with torch.inference_mode():
            timer = Timer(
                "module(state)", globals={"module": real, "state": given}, num_threads=torch.get_num_threads()
            )
            measured = timer.blocked_autorange(min_run_time=self.seconds)
        return max(round(measured.median * 1e6), 1)

    def _filled(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        full = torch.rand(leaf.shape[0] * self.batch, *leaf.shape[1:], device=self.device)
        return full.to(memory_format=self.memory_format) if full.ndim == 4 else full
