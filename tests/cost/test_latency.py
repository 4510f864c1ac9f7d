"""Measured latency as a cost: consistent within a table, with exact limits over it, and larger for larger networks."""

import json
import os
import random
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from helpers.detector_cases import tiny
from helpers.toy_spaces import TOY_SPACES
from supernet import create_supernet
from supernet.cost import CostTable, CostWindow, Feasible, LatencyTable, latency
from supernet.cost.count import COSTS
from supernet.cost.latency import TICK, Correction
from supernet.errors import InputError


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return LatencyTable(TOY_SPACES["chain"](input_size=32), seconds=0.002)


def test_an_entry_is_timed_once_and_the_other_costs_are_the_same(table: LatencyTable) -> None:
    plain = CostTable(TOY_SPACES["chain"](input_size=32))
    for arch in table.space.enumerate():
        costs = table(arch)
        assert costs == table(arch)
        assert {name: costs[name] for name in plain.costs} == plain(arch)
        assert costs["latency_ms"] > 0


def test_limits_and_windows_on_latency_are_exact(table: LatencyTable) -> None:
    times = sorted(table(arch)["latency_ms"] for arch in table.space.enumerate())
    assert table.extremes("latency_ms") == (times[0], times[-1])
    limit = times[len(times) // 2]
    feasible = Feasible(table, {"latency_ms": limit})
    fitting = [arch for arch in table.space.enumerate() if feasible(arch)]
    assert len(fitting) == sum(time <= limit for time in times) == CostWindow(table, "latency_ms", high=limit).count
    assert feasible(feasible.sample(random.Random(0)))
    with pytest.raises(InputError, match=r"no architecture .* latency_ms <= 0 ms"):
        Feasible(table, {"latency_ms": 0})
    with pytest.raises(InputError, match="did you mean 'latency_ms'"):
        Feasible(table, {"latencies": 1})
    with pytest.raises(InputError, match="no cost 'latency_ms'"):
        Feasible(CostTable(TOY_SPACES["chain"]()), {"latency_ms": 1})


def test_a_resumed_search_sees_the_same_latencies(tmp_path: Path) -> None:
    file = tmp_path / "latency.jsonl"
    first = LatencyTable(TOY_SPACES["chain"](), seconds=0.001, file=file)
    times = {arch: first(arch)["latency_ms"] for arch in first.space.enumerate()}
    with file.open("a") as unfinished:
        unfinished.write('{"step": "cut off by a kil')
    again = LatencyTable(TOY_SPACES["chain"](), seconds=0.001, file=file)
    assert {arch: again(arch)["latency_ms"] for arch in again.space.enumerate()} == times
    with pytest.raises(InputError, match="measured with batch 1, and now it is 8"):
        LatencyTable(TOY_SPACES["chain"](), batch=8, file=file)
    old = {"settings": {"batch": 1}}, {"step": "x", "microseconds": 250}
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    with pytest.raises(InputError, match=r"latency\.jsonl was written by another release, .* delete it"):
        LatencyTable(TOY_SPACES["chain"](), file=file)
    file.write_text("nonsense}\n")
    with pytest.raises(InputError, match="holds something other than latencies"):
        LatencyTable(TOY_SPACES["chain"](), file=file)


def test_latencies_are_milliseconds_whose_sums_are_exact(table: LatencyTable) -> None:
    for arch in list(table.space.enumerate())[:4]:
        total = table(arch)["latency_ms"]
        assert total % TICK == 0
        assert 0.2 < total / table.end_to_end(arch) < 20  # the same unit
        began = time.perf_counter()
        for _ in range(20):
            table._chain.subnet(arch)
        assert total < 1000 * (time.perf_counter() - began) * 100  # not thousands of times larger
    low, high = table.extremes("latency_ms") or (0, 0)
    bins = CostWindow(table, "latency_ms", low, high).bins((high - low) / 3)
    assert sum(window.count for window in bins) == table.space.size()
    with pytest.raises(InputError, match=r"latency_ms <= 0\.0005 ms; the cheapest has .* and the most expensive .* ms"):
        Feasible(table, {"latency_ms": 0.0005})


def test_large_networks_take_longer_and_the_error_is_reported() -> None:
    table = LatencyTable(create_supernet("nasbench-macro"), seconds=0.005)
    space = table.space
    small, large = space.from_indices([0] * 8), space.from_indices([2] * 8)
    assert 2 * table(small)["latency_ms"] < table(large)["latency_ms"]
    assert 2 * table.end_to_end(small) < table.end_to_end(large)
    report = table.error(4)
    assert report["n"] == 4
    assert 0 <= report["mean"] <= report["worst"]
    assert -1 <= report["tau"] <= 1
    assert report["bias"] > 0


def test_shared_cells_are_timed_on_demand() -> None:
    table = LatencyTable(TOY_SPACES["loose"](), seconds=0.002)
    assert table.edges("latency_ms") is None
    arch = table.space.sample(random.Random(0))
    assert table(arch)["latency_ms"] == table(arch)["latency_ms"] > 0


def test_a_detector_is_timed_on_images_of_their_sizes() -> None:
    """The image sizes in a detector's state are values, which must be repeated for the batch and not be filled."""
    detector = tiny("retinanet", seed=3)
    table, seen = LatencyTable(detector, batch=3, seconds=0.001), list[Tensor]()
    time = table._time

    def recording(module: nn.Module, state: Any) -> int:
        if isinstance(state, tuple):
            seen.append(tree_map(table._filled, state)[1])
        return time(module, state)

    table._time = recording  # type: ignore[method-assign]
    arch = table.space.sample(random.Random(0))
    costs = table(arch)
    assert costs["latency_ms"] >= len(detector.step_modules)
    assert {name: costs[name] for name in COSTS} == CostTable(detector)(arch)
    assert len(seen) == len(detector.step_modules) - 1
    assert all(torch.equal(sizes, torch.tensor([[64, 64]] * 3)) for sizes in seen)


def test_a_correction_is_the_line_through_whole_networks_and_its_error_that_of_unseen_ones() -> None:
    sums = [1.0, 2.0, 3.0, 5.0]
    exact = Correction.fitted(sums, [0.5 + 1.2 * x for x in sums])
    assert (exact.offset, exact.factor) == (pytest.approx(0.5), pytest.approx(1.2))
    assert exact.error == pytest.approx(0, abs=1e-9)
    assert exact.raw_error == pytest.approx(sum((0.5 + 0.2 * x) / (0.5 + 1.2 * x) for x in sums) / 4)
    noisy = Correction.fitted(sums, [1.3, 2.3, 3.8, 5.9])
    assert 0 < noisy.error < noisy.raw_error
    below = Correction.fitted(sums, [x - 0.5 for x in sums])
    assert below.offset == 0  # no network takes a negative time
    assert 0 < below.factor < 1


def test_a_table_is_corrected_once_and_a_resumed_search_sees_the_same(tmp_path: Path) -> None:
    file = tmp_path / "latency.jsonl"
    table = LatencyTable(TOY_SPACES["chain"](), seconds=0.001, file=file)
    assert table.is_new
    archs = list(table.space.enumerate())
    before = {arch: table(arch)["latency_ms"] for arch in archs}
    correction = table.correct(5)
    assert correction is not None
    assert correction.networks == 5
    assert table.correct() is correction
    after = {arch: table(arch)["latency_ms"] for arch in archs}
    for arch in archs:
        expected = correction.offset + correction.factor * before[arch]
        assert after[arch] == pytest.approx(expected, abs=4 * TICK * len(table.space.choices))
        assert after[arch] % TICK == 0
    assert table.extremes("latency_ms") == (min(after.values()), max(after.values()))
    again = LatencyTable(TOY_SPACES["chain"](), seconds=0.001, file=file)
    assert again.correction == correction
    assert {arch: again(arch)["latency_ms"] for arch in archs} == after


def test_a_device_that_slows_down_does_not_change_the_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = 1.0
    clocks = {name: getattr(time, name) for name in ("perf_counter", "thread_time")}
    slowed = {name: lambda clock=clock: clock() * speed for name, clock in clocks.items()}
    monkeypatch.setattr(latency, "time", SimpleNamespace(**slowed))
    space, file = TOY_SPACES["chain"](input_size=32), tmp_path / "latency.jsonl"
    arch = space.space.sample(random.Random(0))
    before = LatencyTable(space, seconds=0.02, file=file).end_to_end(arch)
    speed = 1000.0
    assert before / 30 < LatencyTable(space, seconds=0.02, file=file).end_to_end(arch) < 30 * before
    assert LatencyTable(space, seconds=0.02).end_to_end(arch) > 30 * before  # a new table starts at the new speed


def test_a_resumed_table_measures_against_the_same_network(tmp_path: Path) -> None:
    chain, file = TOY_SPACES["chain"](input_size=32), tmp_path / "latency.jsonl"
    arch = chain.space.sample(random.Random(0))

    def references() -> list[str]:
        return [line for line in file.read_text().splitlines() if '"reference"' in line]

    LatencyTable(chain, seconds=1e-6, file=file).end_to_end(arch)  # too short for a network of the space
    LatencyTable(chain, seconds=0.5, file=file).end_to_end(arch)
    assert len(references()) == 1
    assert '"layers"' in references()[0]
    file.unlink()
    LatencyTable(chain, seconds=0.5, file=file).end_to_end(arch)
    assert '"network"' in references()[0]
    file.write_text(file.read_text().replace('"network"', '"another"'))
    with pytest.raises(InputError, match="cannot be read as a file of latencies"):
        LatencyTable(chain, file=file)


def test_measuring_leaves_the_global_generator_as_it_was() -> None:
    chain = TOY_SPACES["chain"]()
    before = torch.get_rng_state()
    LatencyTable(chain, seconds=0.001).correct(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_measuring_beside_other_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latency.warn_under_load()
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 1.0, 1.0))
    with pytest.warns(UserWarning, match=r"a load of 2\.0 on 2 cores"):
        latency.warn_under_load()
