"""How do the times grow with choices, blocks, trials, images and candidates?

    python tools/benchmarks/growth.py                          all five, a minute each
    python tools/benchmarks/growth.py --axes trials --out g    trials only; g.svg is the plot

Processor time, the fastest of several rounds, of what a search or a training does again and again. An exponent is the
slope of a straight line through the logarithms: 0 does not grow, 1 grows as the number does. The table ends with the
exponents.
"""

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from supernet.checked import Count, FilePath, Threads
from supernet_tools.pipeline.command_line import Flags, main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet.chain import Chain
    from supernet.data.images import Images
    from supernet.space import SearchSpace

Axis = Literal["choices", "blocks", "trials", "images", "candidates"]

VALUES: dict[Axis, tuple[int, ...]] = {
    "choices": (2, 4, 8, 16),
    "blocks": (8, 20, 40, 80),
    "trials": (100, 1_000, 10_000, 100_000),
    "images": (1_000, 10_000, 100_000),
    "candidates": (10, 100, 1_000),
}
SLOW = 30.0
"""After a measurement of more seconds than this, larger numbers are left out; the table shows a dash."""


@dataclass(frozen=True)
class Measured:
    """One line of the plot: processor seconds of an operation by the number that grows; unmeasured ones are missing."""

    axis: Axis
    what: str
    seconds: dict[int, float]

    @property
    def exponent(self) -> float:
        """The slope in logarithms, by least squares over the upper half of the values (at least two)."""
        points = [(math.log(n), math.log(max(t, 1e-9))) for n, t in sorted(self.seconds.items())]
        points = points[-max(2, (len(points) + 1) // 2) :]
        if len(points) < 2:
            return math.nan
        return statistics.linear_regression(*zip(*points, strict=True)).slope


@dataclass(frozen=True)
class Growth(Flags):
    """Processor time of what a search or a training does again and again, while one number grows."""

    axes: tuple[Axis, ...] = ("choices", "blocks", "trials", "images", "candidates")
    """What grows; see the values in the table."""
    most: Count | None = None
    """Leave out larger values."""
    rounds: Count = 3
    """Rounds, of which the fastest counts."""
    out: FilePath | None = None
    """Write the plot to OUT.svg and the numbers to OUT.json."""
    threads: Threads = 1
    """Threads of torch."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A limit below every value of an axis."""
        for axis in self.axes:
            if self.most is not None and self.most < min(VALUES[axis]):
                yield "most", f"leaves nothing of the axis {axis}, which begins with {min(VALUES[axis]):,}"


def run() -> None:
    """Runs the measurements, prints a table for each axis and one of the exponents."""
    args = parse(Growth, __doc__)
    import torch

    torch.set_num_threads(args.threads)
    measured: list[Measured] = []
    for axis in args.axes:
        values = [value for value in VALUES[axis] if args.most is None or value <= args.most]
        lines: dict[str, dict[int, float]] = {}
        for value in values:
            for what, once in MAKERS[axis](value).items():
                known = lines.setdefault(what, {})
                if known and known[max(known)] * per_call(axis, what, max(known)) > SLOW:
                    continue
                known[value] = min(once() for _ in range(args.rounds))
        rows = [Measured(axis, what, seconds) for what, seconds in lines.items()]
        measured += rows
        columns = (axis, *(f"{value:,}" for value in values), "exponent")
        table = [
            (row.what, *(format_time(row.seconds.get(value)) for value in values), f"{row.exponent:.2f}")
            for row in rows
        ]
        print_table(f"processor time by {axis}, fastest of {args.rounds}", columns, table)
    if args.out is not None:
        from supernet.files import write_json

        args.out.with_suffix(".svg").write_text(plot(measured), encoding="utf-8")
        document = [{"axis": m.axis, "what": m.what, "seconds": m.seconds, "exponent": m.exponent} for m in measured]
        write_json(args.out.with_suffix(".json"), {"format": 1, "measured": document})
    print_table("exponents", ("by", "of", "exponent"), [(m.axis, m.what, f"{m.exponent:.2f}") for m in measured])


def per_call(axis: Axis, what: str, value: int) -> float:
    """Returns what a measurement is divided by: the trials of a study, or the candidates of a generation."""
    return float(value) if axis in ("trials", "candidates") and "per " in what else 1.0


def format_time(seconds: float | None) -> str:
    """Returns a time with its unit; a dash where nothing was measured."""
    if seconds is None:
        return "-"
    unit, factor = next((u, f) for u, f in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds * f >= 1 or u == "µs")
    return f"{seconds * factor:.3g} {unit}"


def cpu(run: Callable[[], Any], times: int = 1) -> Callable[[], float]:
    """Returns a function that runs `run` and returns its processor seconds, divided by `times`."""

    def once() -> float:
        began = time.process_time()
        run()
        return (time.process_time() - began) / times

    return once


# -- what is measured -------------------------------------------------------------------------------------------------


def toy_space(blocks: int, options: int) -> "SearchSpace":
    """Returns a space of `blocks` unordered decisions between `options` options, with a normal form that does nothing
    but is computed all the same."""
    from supernet.space import Choice, SearchSpace

    choices = [Choice(f"block{number}.op", tuple(f"op{k}" for k in range(options))) for number in range(blocks)]
    return SearchSpace("growth", choices, normal_form=unchanged)


def unchanged(arch: Any) -> Any:
    """Returns the architecture as it is: a normal form."""
    return dict(arch)


def toy_supernet(blocks: int, options: int, *, size: int = 8, width: int = 8) -> "Chain":
    """Returns a supernet of 3×3 convolutions, as many per block as there are options."""
    from supernet.blocks.choice import ChoiceBlock
    from supernet.blocks.plain import ClassifierHead, ConvBNAct
    from supernet.chain import Chain

    steps: list[Any] = [("stem", ConvBNAct(3, width, kernel=3))]
    for number in range(blocks):
        layers = {f"op{k}": ConvBNAct(width, width, kernel=3) for k in range(options)}
        steps.append((f"block{number}", ChoiceBlock(layers)))
    return Chain("growth", [*steps, ("head", ClassifierHead(width, 10, hidden=width))], input_shape=(3, size, size))


def toy_images(count: int, size: int = 8) -> "Images":
    """Returns random images of ten classes."""
    import torch

    from supernet.data.images import Images

    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 10, (count,), generator=draws)
    return Images(pixels, labels, torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1))


def of_spaces(blocks: int, options: int) -> dict[str, Callable[[], float]]:
    """Spaces, searchers, a training step and scoring, for a chain of `blocks` blocks."""
    import torch

    from searchers import AgingEvolution
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    space, rng = toy_space(blocks, options), random.Random(0)
    supernet, images = toy_supernet(blocks, options), toy_images(64)
    archs = [supernet.space.sample(rng) for _ in range(8)]

    def prepared() -> None:
        for _ in range(100):
            arch = space.sample(rng)
            space.normal_form(arch).key  # noqa: B018
            space.canonical(arch)

    def evolved() -> None:
        searcher = AgingEvolution(space, population_size=20, tournament_size=5)
        _searched(searcher, space, 100)

    def trained() -> None:
        logits = supernet(images.normalize(images.pixels), supernet.space.sample(rng))
        torch.nn.functional.cross_entropy(logits, images.labels).backward()
        for parameter in supernet.parameters():
            parameter.grad = None

    def scored() -> None:
        SharedWeights(supernet, images, images, bn=Recalibrate(1, 64), batch=64)(archs)

    return {
        "draw, normal form, check and key, per architecture": cpu(prepared, 100),
        "aging evolution, per trial": cpu(evolved, 100),
        "forward and backward of one path": cpu(trained),
        "scoring, per candidate": cpu(scored, len(archs)),
    }


def of_trials(count: int) -> dict[str, Callable[[], float]]:
    """Opening a study of `count` trials, and the time of searchers per trial over as many."""
    from searchers import (
        NSGA2,
        AgingEvolution,
        LocalSearch,
        PredictorSearch,
        Reinforce,
        Study,
        TopKEvolution,
        Trial,
    )

    space, rng = toy_space(20, 4), random.Random(0)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "study.db"
    with Study(path, space) as study:
        for start in range(0, count, 100):
            archs = [space.sample(rng) for _ in range(min(100, count - start))]
            metrics = [{"accuracy": rng.random(), "loss": rng.random(), "macs": 1e6, "params": 1e5} for _ in archs]
            study.append(
                [
                    Trial(number, arch, arch.key, row, False, 0.1, start // 100)
                    for number, (arch, row) in enumerate(zip(archs, metrics, strict=True), start=start)
                ]
            )

    def opened() -> None:
        assert folder.name  # keeps it
        Study(path, space, read=True).close()

    measured = {"opening a study": cpu(opened)}
    makers: dict[str, Callable[[], Any]] = {
        "aging evolution": lambda: AgingEvolution(space),
        "top-k evolution": lambda: TopKEvolution(space),
        "local search": lambda: LocalSearch(space),
        "NSGA-II": lambda: NSGA2(space, objectives=("accuracy", "-macs")),
        "predictor": lambda: PredictorSearch(space),
        "controller (REINFORCE)": lambda: Reinforce(space),
    }
    costly = {"predictor", "controller (REINFORCE)"}
    for name, make in makers.items():
        if count <= (10_000 if name in costly else 100_000):
            measured[f"{name}, per trial"] = cpu(lambda make=make: _searched(make(), space, count), count)  # type: ignore[misc]
    return measured


def _searched(searcher: Any, space: "SearchSpace", trials: int) -> None:
    """Lets a searcher propose and learn from trials, ten at a time, with a score that takes no time."""
    from searchers import Trial

    done = 0
    while done < trials:
        archs = searcher.ask(min(10, trials - done))
        if not archs:
            return
        scored = []
        for number, arch in enumerate(archs, start=done):
            value = int(space.normal_form(arch).key, 16) / 2**64
            scored.append(Trial.of(space, arch, {"accuracy": value, "macs": 1e6 * (1 + value)}, number=number))
        searcher.tell(scored)
        done += len(archs)


def of_images(count: int) -> dict[str, Callable[[], float]]:
    """A training batch, the digest of the images, and scoring on them."""
    from supernet.config import Augment
    from supernet.data.batches import identity
    from supernet.data.training import training_batches
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    images, supernet, rng = toy_images(count), toy_supernet(4, 2), random.Random(0)
    archs = [supernet.space.sample(rng) for _ in range(4)]
    batches = training_batches(images, Augment(shift=1, flip=True), batch=64, seed=0)
    evaluate = SharedWeights(supernet, images, images, bn=Recalibrate(2, 64), batch=256)

    def prepared() -> None:
        for _ in range(10):
            next(batches)

    return {
        "a training batch of 64": cpu(prepared, 10),
        "digest of the images": cpu(lambda: identity(images)),
        "scoring on all of them, per candidate": cpu(lambda: evaluate(archs), len(archs)),
    }


def of_candidates(count: int) -> dict[str, Callable[[], float]]:
    """Scoring a generation, and proposing one."""
    from searchers import TopKEvolution
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    supernet, images, rng = toy_supernet(8, 4), toy_images(64), random.Random(0)
    parents = [supernet.space.sample(rng) for _ in range(10)]
    children = list(dict.fromkeys(supernet.space.mutate(rng.choice(parents), rng, 0.2) for _ in range(2 * count)))
    children = children[:count]
    evaluate = SharedWeights(supernet, images, images, bn=Recalibrate(1, 64), batch=64)
    space = toy_space(20, 4)

    def proposed() -> None:
        half = count // 2
        TopKEvolution(space, population_size=count, mutants=half, crossovers=half).ask(count)

    return {
        "scoring a generation, per candidate": cpu(lambda: evaluate(children), len(children)),
        "proposing a generation, per candidate": cpu(proposed, count),
    }


MAKERS: dict[Axis, Callable[[int], dict[str, Callable[[], float]]]] = {
    "choices": lambda value: of_spaces(8, value),
    "blocks": lambda value: of_spaces(value, 4),
    "trials": of_trials,
    "images": of_images,
    "candidates": of_candidates,
}
"""What grows, to a function from its value to the measurements, each of which returns processor seconds."""


# -- the plot ---------------------------------------------------------------------------------------------------------

COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#7b5ea7", "#b8860b", "#3a7d7c", "#8c4a4a", "#555555")
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 420, 210, 64, 30, 18


def plot(measured: Sequence[Measured]) -> str:
    """Returns an SVG with one double-logarithmic panel per axis."""
    axes = list(dict.fromkeys(row.axis for row in measured))
    parts, y = [], 0
    for axis in axes:
        rows = [row for row in measured if row.axis == axis and row.seconds]
        parts.append(f'<g transform="translate(0,{y})">{_panel(axis, rows)}</g>')
        y += TOP + HEIGHT + 34 + LEGEND * len(rows)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{y}"'
    return f'{head} font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>' + (
        "".join(parts) + "</svg>\n"
    )


def _panel(axis: str, rows: Sequence[Measured]) -> str:
    points = [(n, max(t, 1e-9)) for row in rows for n, t in row.seconds.items()]
    xs, ys = ([math.log10(value) for value in column] for column in zip(*points, strict=True))
    low, high = math.floor(min(ys)), math.ceil(max(ys) + 1e-9)
    first, last = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def at(n: float, seconds: float) -> str:
        x = LEFT + WIDTH * (math.log10(n) - first) / (last - first)
        y = TOP + HEIGHT * (high - math.log10(max(seconds, 1e-9))) / max(high - low, 1)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<text x="{LEFT}" y="{TOP - 10}" font-weight="bold">processor time by {axis}</text>']
    for power in range(low, high + 1):
        y = TOP + HEIGHT * (high - power) / max(high - low, 1)
        parts.append(f'<path d="M{LEFT},{y:.1f}h{WIDTH}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{format_time(10.0**power)}</text>')
    for n in sorted({n for n, _ in points}):
        x = at(n, 1).split(",")[0]
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{n:,}</text>')
    for number, row in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(at(n, t) for n, t in sorted(row.seconds.items()))
        y = TOP + HEIGHT + 36 + LEGEND * number
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<path d="M{LEFT},{y - 4}h16" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{LEFT + 22}" y="{y}">{row.what} (exponent {row.exponent:.2f})</text>')
    return "".join(parts)


if __name__ == "__main__":
    main(run)
