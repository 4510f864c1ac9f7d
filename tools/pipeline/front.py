"""Exports the best networks of a search with the shared weights: the front of score and cost, or one per limit."""

import csv
import itertools
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from searchers import Trial
from searchers.pareto import pareto_front
from supernet.errors import InputError
from supernet.export.folder import check_replaceable
from supernet.export.latency import artefact_latencies
from supernet.files import is_temporary, replacing, write_json
from supernet.paths import inside
from supernet.progress import progress
from supernet.scoring.metrics import check_finite
from supernet.space import Arch
from supernet_tools.pipeline.export import export_stage
from supernet_tools.pipeline.retrain import trained_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.search import searched
from supernet_tools.pipeline.units import cost_in_units, parse_amount, parse_milliseconds

FORMAT = 1


@dataclass
class Point:
    """A network to export.

    Attributes:
        trial: its trial in the search.
        arch: in normal form.
        limits: the limits that it is the best network within, as they were given; empty for a front.
    """

    trial: Trial
    arch: Arch
    limits: list[str] = field(default_factory=list)


def parse_limit(text: str, cost: str) -> float:
    """Returns the number of a limit such as "5M", or "5ms" on a latency. Raises `InputError` for another text."""
    try:
        value = parse_milliseconds(text) if cost == "latency_ms" else parse_amount(text)
    except ValueError as error:
        raise InputError(f"the limit {error}") from error
    if not 0 < value < math.inf:
        raise InputError(f"the limit {text!r} should be positive and finite")
    return value


def chosen_points(run: Run, search: str, limits: Sequence[str] = (), cost: str = "macs") -> list[Point]:
    """Returns the networks of a search to export, cheapest first.

    Args:
        run: that was searched.
        search: name of the search.
        limits: upper limits on a cost, such as "5M"; the best scored network within each is chosen. Without limits
            those on the Pareto front of the search's metric and the cost are.
        cost: the name of a cost.

    Raises:
        InputError: no such search or cost, or a limit that no scored network meets; the range of the costs is named.
    """
    numbers = [parse_limit(text, cost) for text in limits]
    if again := next((text for at, text in enumerate(limits) if numbers[at] in numbers[:at]), None):
        raise InputError(f"the limit {again!r} is given twice; give each once")
    trials, _, metric = searched(run, search)
    if not trials:
        raise InputError(f"the search {search!r} of {run.folder} scored no network; search on")
    known = [name for name in trials[0].metrics if name in run.cost.costs or name == "latency_ms"]
    if cost not in known:
        raise InputError(f"the search {search!r} recorded no cost {cost!r}; it recorded {', '.join(known)}")
    costs = [trial.metrics[cost] for trial in trials]
    points: dict[str, Point] = {}
    for text, limit in zip(limits, numbers, strict=True):
        within = [trial for trial in trials if trial.metrics[cost] <= limit]  # the best comes first
        if not within:
            span = run.cost.extremes(cost) if cost in run.cost.costs else None
            space = (
                f", and the space has {cost_in_units(cost, span[0])} to {cost_in_units(cost, span[1])}" if span else ""
            )
            reached = f"{cost_in_units(cost, min(costs))} to {cost_in_units(cost, max(costs))}"
            raise InputError(
                f"no network that the search {search!r} scored has {cost} <= {cost_in_units(cost, limit)}: they have "
                f"{reached}{space}; raise the limit {text}, or search within it"
            )
        best = within[0]
        points.setdefault(best.key, Point(best, run.space.normal_form(best.arch))).limits.append(text)
    if not limits:
        for trial in pareto_front(trials, (metric, f"-{cost}")):
            points[trial.key] = Point(trial, run.space.normal_form(trial.arch))
    return sorted(points.values(), key=lambda point: point.trial.metrics[cost])


def front_stage(
    run: Run,
    search: str,
    *,
    limits: Sequence[str] = (),
    cost: str = "macs",
    onnx: bool = False,
    nms: bool = False,
    out: Path | None = None,
    seconds: float = 0.5,
    verbose: bool = True,
) -> tuple[Path, list[dict[str, Any]]]:
    """Exports networks of a search with the shared weights under the run's batch-norm policy, and measures them.

    Nothing is trained. Every network gets a folder of its own, named by its key, beside `front.json` and `front.csv`,
    which are written last.

    Args:
        run: with weights to share.
        search: name of the search.
        limits, cost: see `chosen_points`.
        onnx: also write a model.onnx each, and time it in ONNX Runtime.
        nms: for detectors, also write the graph of each whole detector, and time that one in ONNX Runtime.
        out: the folder; `export/front-SEARCH` of the run by default.
        seconds: how long each artefact is timed.
        verbose: show progress.

    Returns:
        the folder, and the rows of `front.json`.

    Raises:
        InputError: see `chosen_points`; or a folder that holds something else.
    """
    points = chosen_points(run, search, limits, cost)
    folder = (out or inside(run.folder, "export", f"front-{search}")).absolute()
    _check_free(folder)
    for point in points:
        check_replaceable(folder / point.arch.key)
    rows: list[dict[str, Any]] = []
    _, _, metric = searched(run, search)
    with progress("exports", len(points), enabled=verbose) as update:
        for point in points:
            network = trained_network(run, point.arch, 0, inherit=True)
            figures = run.kind.figures(network, run.data, run.config.train.device)
            check_finite(figures, f"the network {point.arch.key}")
            place, parity = export_stage(run, point.arch, network, onnx=onnx, nms=nms, out=folder / point.arch.key)
            rows.append(
                {
                    "key": point.arch.key,
                    "limits": point.limits,
                    **run.cost(point.arch),
                    **{name: value for name, value in point.trial.metrics.items() if name == "latency_ms"},
                    f"search_{metric.removeprefix('-')}": point.trial.metrics[metric.removeprefix("-")],
                    **figures,
                    "parity": parity["differences"],
                    "folder": place.name,
                    "arch": dict(point.arch),
                }
            )
            update(len(rows), "")
    latencies = artefact_latencies([folder / row["key"] for row in rows], seconds=seconds)
    for row in rows:
        row["artefact_ms"] = latencies[folder / row["key"]]
    document = {
        "format": FORMAT,
        "space": run.kind.space,
        "latency_order": latency_order(rows, cost),
        "search": search,
        "batch_norm": run.bn,
        "cost": cost,
        "artefact_ms": {"batch": 1, "threads": 1, "processor": platform.processor() or platform.machine()},
        "torch": str(torch.__version__),
        "points": rows,
    }
    write_json(folder / "front.json", document)
    _write_csv(folder / "front.csv", rows)
    return folder, rows


def latency_order(rows: Sequence[dict[str, Any]], cost: str) -> dict[str, dict[str, int]]:
    """Compares the order of the measured latencies with that of a cost, for each runtime.

    Args:
        rows: the rows of `front.json`.
        cost: the name of a cost.

    Returns:
        by runtime `pairs`, the number of pairs of networks with different costs, and `agree`, in how many of them the
        cheaper one is also the faster one.
    """
    order: dict[str, dict[str, int]] = {}
    for runtime in rows[0]["artefact_ms"]:
        pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a[cost] != b[cost]]
        agree = sum((a[cost] < b[cost]) == (a["artefact_ms"][runtime] < b["artefact_ms"][runtime]) for a, b in pairs)
        order[runtime] = {"pairs": len(pairs), "agree": agree}
    return order


def _check_free(folder: Path) -> None:
    """Raises `InputError` for a folder that holds anything but a front or what an interrupted export left."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        ours = entry.name in ("front.json", "front.csv") or re.match("[.]?[0-9a-f]{16}", entry.name)
        if not ours and not is_temporary(entry):
            raise InputError(f"{folder} holds {entry.name!r}, which is not part of a front; give another folder")


def _write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes one line per network, with a column per runtime and per artefact; the architecture is in its arch.json."""
    flat = []
    for row in rows:
        line = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
        line["limits"] = " ".join(row["limits"])
        line |= {f"artefact_ms_{name}": value for name, value in row["artefact_ms"].items()}
        line |= {f"parity_{name}": value for name, value in row["parity"].items()}
        flat.append(line)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
