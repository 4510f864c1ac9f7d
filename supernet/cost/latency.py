"""Measured latency as a cost: a table of timed steps, and its error against the timing of whole networks."""

import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from supernet.chain import Chain, materialize
from supernet.checked import Count, Device, Seed, checked_arguments, is_number, is_whole, shown
from supernet.cost.count import COSTS
from supernet.cost.table import CostTable, Entry, Shape, shapes
from supernet.errors import InputError, UnwritableError
from supernet.files import environment
from supernet.paths import check_file, work_saved
from supernet.space import Arch

FORMAT = 2
"""The format of files of measurements. 2 has milliseconds where earlier releases had microseconds."""
TICK = 2.0**-10
"""Milliseconds of which all latencies are multiples, so that sums of them are exact."""
FEWEST = 3
"""Networks that a correction needs: two lie on a line, whatever their times."""
TURN = 2.0
"""Milliseconds of a turn: calls of one module before another is called; a single call may take longer."""
FEWEST_TURNS = 5
"""The fewest turns of an entry, however long they take."""
SLOWEST = 3
"""The turns of a reference network may take this many times the time for an entry; a slower one is not used."""
FINE_THREAD_CLOCK = time.get_clock_info("thread_time").resolution <= 1e-6
"""Whether the system tells a thread's processor time by the microsecond; Windows does by the 64th of a second."""
NETWORKS = 8
"""Networks that are timed as a whole to correct a table."""


@dataclass(frozen=True)
class Correction:
    """How sums of separately timed steps become the time of a network, on one device: `offset + factor * sum`.

    A step that is timed alone finds its weights in the cache, so sums are too small, by a share that hardly depends on
    the network.

    Attributes:
        offset: milliseconds, at least 0.
        factor: above 0.
        error: mean relative error of a network that the fit has not seen (each left out in turn).
        raw_error: the same without a correction.
        networks: the number of networks.
    """

    offset: float
    factor: float
    error: float
    raw_error: float
    networks: int

    @classmethod
    def fitted(cls, sums: Sequence[float], times: Sequence[float]) -> "Correction":
        """Returns the correction with the smallest squared relative errors.

        Args:
            sums, times: milliseconds of the same networks, at least three, by the table and timed as a whole.

        Raises:
            InputError: fewer networks than three, or a time that is not positive.
        """
        if not len(sums) == len(times) >= FEWEST or not all(
            is_number(ms) and 0 < ms < math.inf for ms in (*sums, *times)
        ):
            raise InputError(
                f"sums={shown(sums)} and times={shown(times)} should be positive milliseconds of the same networks, at "
                f"least {FEWEST}"
            )
        errors = []
        for left, (x, t) in enumerate(zip(sums, times, strict=True)):
            others = [[*values[:left], *values[left + 1 :]] for values in (sums, times)]
            offset, factor = _line(*others)
            errors.append(abs(offset + factor * x - t) / t)
        raw = [abs(x - t) / t for x, t in zip(sums, times, strict=True)]
        offset, factor = _line(sums, times)
        return cls(offset, factor, statistics.mean(errors), statistics.mean(raw), len(sums))


def _line(sums: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Returns the offset and the factor with the smallest squared relative errors.

    A network takes no negative time: where the offset would be below 0, it is 0.
    """
    rows = [(1 / t, x / t) for x, t in zip(sums, times, strict=True)]
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(r[0] for r in rows), sum(r[1] for r in rows)
    determinant = aa * bb - ab * ab
    if determinant > 1e-9 * aa * bb:
        offset, factor = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if offset >= 0 and factor > 0:
            return offset, factor
    return 0.0, b / bb


class LatencyTable(CostTable):
    """A `CostTable` with one more cost, `latency_ms`: milliseconds of a forward pass in eval mode on this machine.

    Each combination of a step, its decisions and its input is timed once, when it is first needed, and an
    architecture's latency is the sum over its steps. Each one takes turns with a reference network of the space and is
    timed relative to it, so latencies stay comparable on a device that slows down or speeds up.

    Where steps do not share decisions the table is finite, and windows and limits on latency are exact with respect to
    this table; a second measurement would give another one, so use one table for a search. In a space with shared cells
    the cells of each architecture are timed on demand.

    Args:
        supernet: only its shapes are kept.
        input_shape: (C, H, W); the supernet's own by default.
        batch: images per forward pass.
        device: the device to time on.
        seconds: time to spend on each entry, half of it on what it takes turns with; up to three times as much where
            networks are slow.
        channels_last: whether images and weights are in channels-last memory format.
        file: keeps the measurements, one line of JSON per entry, so that a resumed search sees the same latencies.

    Attributes:
        correction: what the sums are corrected by; None until `correct`.

    Raises:
        InputError: `file` was measured under other settings or on another machine.
    """

    costs = (*COSTS, "latency_ms")

    @checked_arguments
    def __init__(
        self,
        supernet: Chain,
        input_shape: Shape = None,
        *,
        batch: int = 1,
        device: Device = "cpu",
        seconds: float = 0.1,
        channels_last: bool = True,
        file: Path | None = None,
    ) -> None:
        if not is_whole(batch, 1, 100_000):
            raise InputError(f"batch={batch!r} should be an integer from 1 to 100,000")
        if not is_number(seconds, 1e-6, 3600):
            raise InputError(f"seconds={seconds!r} should be a number from 1e-6 to 3600, the time to spend on an entry")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's own reasons, e.g. a build without CUDA
            raise InputError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
        super().__init__(supernet, input_shape)
        self.batch, self.device, self.seconds, self.file = batch, device, seconds, file
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.start.cost["latency_ms"] = 0
        self._timed: dict[str, float] = {}
        self._unit: float | None = None  # milliseconds of the reference network when the first entry was measured
        self._reference_kind = ""  # "network" or "layers" once it was chosen
        self.correction: Correction | None = None
        modules = self._chain.step_modules
        self._first = next((i for i, step in enumerate(modules) if getattr(step, "timed", True)), 0)
        if file is not None:
            check_file(file, "the file of latencies")
            if not file.parent.is_dir():
                raise InputError(f"there is no folder {file.parent} for the file of latencies; create it first")
            self._read(file)

    def step(self, index: int, arch: Arch, before: Entry) -> Entry:
        """Returns the entry of one step, timing it if it is new to the table."""
        entry = super().step(index, arch, before)
        if not getattr(self._chain.step_module(index), "timed", True):
            entry.cost["latency_ms"] = 0  # images are resized before a network sees them, once for all sizes
        if "latency_ms" not in entry.cost:
            name = f"{index} {arch.to_json()} {shapes(before.state)} {before.layout}"
            if name not in self._timed:
                module = materialize(self._chain.step_module(index), arch, before.layout).eval()
                self._timed[name] = self._time(module, before.state)
                self._append({"step": name, "milliseconds": self._timed[name]})
                work_saved.set()
            entry.cost["latency_ms"] = self._corrected(self._timed[name], first=index == self._first)
        return entry

    def _corrected(self, milliseconds: float, *, first: bool) -> float:
        """Returns what a step adds to a network; the first one adds the offset as well."""
        if self.correction is None:
            return milliseconds
        added = self.correction.factor * milliseconds + (self.correction.offset if first else 0.0)
        return max(round(added / TICK), 1) * TICK

    @checked_arguments
    def correct(self, networks: Annotated[int, Ge(FEWEST)] = NETWORKS, *, seed: Seed = 0) -> Correction | None:
        """Times random networks as a whole, and corrects all latencies of the table from here on.

        A table is corrected once, before the first search that uses it: afterwards its latencies stay as they are.

        Args:
            networks: the number of distinct networks, at least three.
            seed: the seed of the draws.

        Returns:
            the correction with its error, or None in a space of fewer than three networks.

        Raises:
            InputError: fewer networks than three, or a negative seed.
        """
        if self.correction is None:
            rng = Random(seed)
            archs = list(dict.fromkeys(self.space.normal_form(self.space.sample(rng)) for _ in range(4 * networks)))
            if len(archs) < FEWEST:
                return None
            pairs = [(self(arch)["latency_ms"], self.end_to_end(arch)) for arch in archs[:networks]]
            self.correction = Correction.fitted(*zip(*pairs, strict=True))
            self._append({"correction": asdict(self.correction)})
            self._entries.clear()  # with uncorrected latencies
            self.__dict__.pop("_graph", None)
            self.__dict__.pop("listing", None)
        return self.correction

    @property
    def is_new(self) -> bool:
        """Whether nothing has been measured yet."""
        return not self._timed

    def _read(self, file: Path) -> None:
        settings = {
            "format": FORMAT,
            "unit": "ms",
            **environment(self.device),
            "batch": self.batch,
            "shape": list(self.input_shape),
            "processor": platform.processor() or platform.machine(),
            "space": self.space.digest(),
            "channels_last": self.memory_format is torch.channels_last,
        }
        if not file.exists():
            self._append({"settings": settings})
            return
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as a file of latencies; delete it to measure again") from error
        if text and not text.startswith("{") and text.strip():
            raise InputError(f"{file} holds something other than latencies; give another file")
        if not text.strip():  # a killed process created it and wrote nothing
            self._append({"settings": settings})
            return
        if not text.endswith("\n"):
            self._write("\n")  # ends the line that a killed process left unfinished
        lines = text.splitlines()
        try:
            first, *entries = (json.loads(line) for line in lines if line.endswith("}"))  # skips unfinished lines
            known = dict(first["settings"])
            if known.get("format") != FORMAT:
                raise InputError(
                    f"{file} was written by another release, with latencies in another unit (format "
                    f"{known.get('format', 1)}, this one reads {FORMAT}); delete it to measure again in milliseconds"
                )
            self._timed = {
                str(e["step"]): float(e["milliseconds"]) for e in entries if not e.keys() & {"correction", "reference"}
            }
            for entry in entries:
                if "reference" in entry:
                    self._reference_kind, self._unit = str(entry["reference"]), float(entry["milliseconds"])
                    if self._reference_kind not in {"network", "layers"} or not 0 < self._unit < math.inf:
                        raise ValueError("the reference is unknown or takes no positive time")
                if "correction" in entry:
                    self.correction = Correction(**entry["correction"])
                    if not 0 < self.correction.factor < math.inf or not 0 <= self.correction.offset < math.inf:
                        raise ValueError("the correction is not a line with a positive slope")
            if not all(math.isfinite(value) and value > 0 and value % TICK == 0 for value in self._timed.values()):
                raise ValueError("a latency is not a positive multiple of 1/1024 ms")
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{file} cannot be read as a file of latencies; delete it to measure again") from error
        for name, value in settings.items():
            if known.get(name) != value:
                raise InputError(
                    f"{file} was measured with {name} {known.get(name)!r}, and now it is {value!r}; restore that "
                    "setting, or delete the file to measure again"
                )

    def _append(self, line: dict[str, Any]) -> None:
        self._write(json.dumps(line) + "\n")

    def _write(self, text: str) -> None:
        if self.file is None:
            return
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UnwritableError(
                f"{self.file} cannot be written ({error.strerror}); the measurements before are intact. Make room; the "
                "same command then goes on"
            ) from error

    def resolution(self, cost: str) -> float:
        """Returns the number of which all values of a cost are multiples."""
        return TICK if cost == "latency_ms" else super().resolution(cost)

    def end_to_end(self, arch: Arch) -> float:
        """Times the whole network and returns milliseconds."""
        return self._time(self._chain.subnet(arch).eval(), self.start.state)

    @checked_arguments
    def error(self, archs: Count = 20, *, seed: Seed = 0) -> dict[str, float]:
        """Compares the table with end-to-end timing of random architectures.

        Returns:
            `mean` and `worst` relative error; `bias`, the mean of table / end-to-end time, above 1 where separate
            timing misses overlap; `tau`, Kendall's tau-b between the two; `n`.

        Raises:
            InputError: fewer architectures than one.
        """
        from scipy.stats import kendalltau

        rng = Random(seed)
        sampled = [self.space.sample(rng) for _ in range(archs)]
        pairs = [(self(arch)["latency_ms"], self.end_to_end(arch)) for arch in sampled]
        errors = [abs(table - timed) / timed for table, timed in pairs]
        return {
            "mean": statistics.mean(errors),
            "worst": max(errors),
            "bias": statistics.mean(table / timed for table, timed in pairs),
            "tau": float(kendalltau(*zip(*pairs, strict=True)).statistic),
            "n": archs,
        }

    def _time(self, module: nn.Module, state: Any) -> float:
        """Returns the milliseconds of a module from the meta device, at the speed the device had for the first entry.

        Other work, or another clock rate, changes all times together by more than networks differ. So the module takes
        turns with a reference network that is the same all along, and the result is the median ratio of a turn's times.
        """
        real, inputs = self._real(module), tree_map(self._filled, state)
        with torch.inference_mode():
            reference, images, unit = self._reference
            once = self._warm(real, inputs)
            turn = max(TURN, min(once, unit))
            calls, unit_calls = (max(1, min(1000, round(turn / each))) for each in (once, unit))
            turns: list[tuple[float, float]] = []
            end = time.perf_counter() + self.seconds
            while len(turns) < FEWEST_TURNS or time.perf_counter() < end:
                turns.append((self._per_call(real, inputs, calls), self._per_call(reference, images, unit_calls)))
        if self._unit is None:
            self._unit = statistics.median(spent for _, spent in turns)
            self._append({"reference": self._reference_kind, "milliseconds": self._unit})
        milliseconds = self._unit * statistics.median(spent / beside for spent, beside in turns)
        return max(round(milliseconds / TICK), 1) * TICK

    @cached_property
    def _reference(self) -> tuple[nn.Module, Any, float]:
        """The network that every timing takes turns with, its input, and its milliseconds when it was chosen.

        A network of the space slows down as others do: repeated timings of a network vary by 1 to 2.5 %. Where they are
        too slow to take a turn for every entry, a few layers are the reference, and timings vary by 3 to 5.5 %.
        """
        if self._reference_kind != "layers":
            network = self._real(self._chain.subnet(self.space.sample(Random(0))).eval())
            images = tree_map(self._filled, self.start.state)
            unit = self._warm(network, images)
            if self._reference_kind == "network" or unit * FEWEST_TURNS <= SLOWEST * self.seconds * 1e3:
                self._reference_kind = "network"
                return network, images, unit
        self._reference_kind = "layers"
        with torch.device("meta"):
            layers = nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 128, 1),
                nn.Conv2d(128, 128, 5, padding=2, groups=128),
                nn.Conv2d(128, 32, 1),
            )
            state = torch.empty(1, 32, 16, 16)
        real, images = self._real(layers.eval()), self._filled(state)
        return real, images, self._warm(real, images)

    def _real(self, module: nn.Module) -> nn.Module:
        """Returns a module from the meta device on the table's device, filled with ones."""
        real = module.to_empty(device=self.device).to(memory_format=self.memory_format)
        with torch.no_grad():
            for tensor in (*real.parameters(), *real.buffers()):
                tensor.fill_(1)
        return real

    def _warm(self, module: nn.Module, inputs: Any) -> float:
        """Returns the milliseconds of a call after two that choose kernels."""
        self._per_call(module, inputs, 2)
        return self._per_call(module, inputs, 1)

    def _per_call(self, module: nn.Module, inputs: Any, calls: int) -> float:
        """Returns the mean milliseconds of consecutive calls."""
        # a single thread computes all the while, so its processor time leaves out only the turns of other processes
        alone = FINE_THREAD_CLOCK and self.device == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if alone else time.perf_counter
        _synchronize(self.device)
        begin = clock()
        for _ in range(calls):
            module(inputs)
        _synchronize(self.device)
        return (clock() - begin) * 1e3 / calls

    def _filled(self, leaf: Any) -> Any:
        """Returns a real tensor for one of a state's meta tensors, for the whole batch."""
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.is_meta:  # these are values, such as the sizes of images, not activations
            return leaf.repeat(self.batch, *[1] * (leaf.ndim - 1))
        full = torch.ones(leaf.shape[0] * self.batch, *leaf.shape[1:], device=self.device)
        return full.to(memory_format=self.memory_format) if full.ndim == 4 else full


def _synchronize(device: str) -> None:
    """Waits until a device has done what it was given; the CPU has it done when a call returns."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def warn_under_load() -> None:
    """Warns if other work on this machine makes measured latencies too long."""
    if not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > max(1.5, 0.75 * cores):  # this process has a load of 1 itself
        warnings.warn(
            f"this machine is busy (a load of {load:.1f} on {cores} cores), so latencies measured now are too long, "
            "all by about the same factor; for the milliseconds of an idle machine measure again when it is idle",
            stacklevel=2,
        )
