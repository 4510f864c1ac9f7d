"""Measured latency as a cost: a table of timed steps, and how far their sum is from timing whole networks."""

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from supernet.chain import Chain, materialize
from supernet.cost.count import COSTS
from supernet.cost.table import CostTable, Entry, shapes
from supernet.errors import InputError
from supernet.files import environment
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
        file: keeps what was measured, one line of JSON per entry, so that a resumed search meets the same figures.

    Raises:
        InputError: `file` was measured under other settings or on another machine.
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
        file: Path | None = None,
    ) -> None:
        super().__init__(supernet, input_shape)
        self.batch, self.device, self.seconds, self.file = batch, device, seconds, file
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._start.cost["latency"] = 0
        self._timed: dict[str, int] = {}
        if file is not None:
            self._read(file)

    def _step(self, index: int, arch: Arch, before: Entry) -> Entry:
        entry = super()._step(index, arch, before)
        if "latency" not in entry.cost:
            name = f"{index} {arch.to_json()} {shapes(before.state)} {before.layout}"
            if name not in self._timed:
                module = materialize(self._chain.step_module(index), arch, before.layout).eval()
                self._timed[name] = self._time(module, before.state)
                self._note({"step": name, "microseconds": self._timed[name]})
            entry.cost["latency"] = self._timed[name]
        return entry

    def _read(self, file: Path) -> None:
        settings = {
            **environment(self.device),
            "batch": self.batch,
            "shape": list(self.input_shape),
            "processor": platform.processor() or platform.machine(),
            "space": self.space.digest(),
            "channels_last": self.memory_format is torch.channels_last,
        }
        if not file.exists():
            self._note({"settings": settings})
            return
        text = file.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            with file.open("a", encoding="utf-8") as open_file:
                open_file.write("\n")  # what a killed writer began stays a line of its own
        lines = text.splitlines()
        try:
            first, *entries = (json.loads(line) for line in lines if line.endswith("}"))  # a killed writer's is cut
            known = first["settings"]
            self._timed = {entry["step"]: int(entry["microseconds"]) for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} holds no latencies of this project; delete it to measure anew") from error
        for name, value in settings.items():
            if known.get(name) != value:
                raise InputError(
                    f"{file} was measured with {name} {known.get(name)!r}, and now it is {value!r}; restore that, or "
                    "delete the file to measure anew"
                )

    def _note(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

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
            "mean": statistics.mean(errors),
            "worst": max(errors),
            "bias": statistics.mean(table / timed for table, timed in pairs),
            "tau": float(kendalltau(*zip(*pairs, strict=True)).statistic),
            "n": archs,
        }

    def _time(self, module: nn.Module, state: Any) -> int:
        """Median microseconds of a module that is built on the meta device; values have no influence on the time."""
        from torch.utils.benchmark import Timer  # its import warns where there is no CUDA

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
        if not leaf.is_meta:  # values, such as the sizes of images, and no activations
            return leaf.repeat(self.batch, *[1] * (leaf.ndim - 1))
        full = torch.rand(leaf.shape[0] * self.batch, *leaf.shape[1:], device=self.device)
        return full.to(memory_format=self.memory_format) if full.ndim == 4 else full
