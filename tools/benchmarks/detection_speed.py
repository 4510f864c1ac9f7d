"""Detection figures of BENCHMARKS.md: python tools/benchmarks/detection_speed.py map, pyramids, or generation"""

import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from detection.config import DetectionAugment, DetectionData
from supernet_tools.pipeline.command_line import main, print_table

PARTS = ("building", "images and fixed steps", "recalibration", "inference", "metric")


def mean_average_precision(
    annotations: Path | None = None,
    folder: Path = Path(),
    images: int = 72,
    detections: tuple[int, ...] = (50, 100),
    runs: int = 7,
    threads: int = 1,
) -> None:
    """Processor time of COCO's twelve figures here and by pycocotools, of boxes scattered around the true ones.

    Args:
        annotations: COCO file; composed digits by default.
        folder: Where its images are.
        images: Of the composed digits.
        detections: Per image.
        runs: The median counts.
        threads: Of torch.
    """
    import torch

    from detection.data import digits
    from detection.data.coco import read_annotations
    from detection.metric import FIGURES, GroundTruth, coco_figures

    torch.set_num_threads(threads)
    if annotations is None:
        (composed,) = digits.compose(96, (images,), seed=0)
        pairs = zip(composed.boxes, composed.labels, strict=True)
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
    else:
        read = read_annotations(annotations, folder)
        targets = [target for i in range(len(read)) if len((target := read.target(i))["boxes"])]
    generator, rows = torch.Generator().manual_seed(0), []
    for per in detections:
        found = []
        for target in targets:
            near = torch.randint(len(target["boxes"]), (per,), generator=generator)
            boxes = target["boxes"][near].float() + 8 * torch.randn(per, 4, generator=generator)
            boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
            scores = torch.rand(per, generator=generator)
            found.append({"boxes": boxes, "scores": scores, "labels": target["labels"][near]})
        truth = GroundTruth(targets)
        listed = torch.cat(
            [
                torch.cat([torch.full((per, 1), i), one["labels"][:, None], one["scores"][:, None], one["boxes"]], 1)
                for i, one in enumerate(found)
            ]
        )
        theirs, slow = median(lambda found=found: published(targets, found), runs)
        ours, fast = median(lambda found=found: coco_figures(targets, found), runs)
        _, prepared = median(lambda truth=truth, listed=listed: truth.figures(listed, every=True), runs)
        apart = max(abs(a - ours[name]) for a, name in zip(theirs, FIGURES, strict=True))
        rows.append((f"{per * len(targets):,}", *(f"{1e3 * s:.1f}" for s in (slow, fast, prepared)), f"{apart:.1e}"))
    columns = ("detections", "pycocotools, ms", "coco_figures, ms", "GroundTruth prepared, ms", "largest difference")
    print_table(f"mean average precision of {len(targets)} images, medians of {runs}", columns, rows)


def median(work: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """The result, and the median seconds of processor time."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        result = work()
        seconds.append(time.process_time() - began)
    return result, statistics.median(seconds)


def published(targets: list[Any], detections: list[Any]) -> list[float]:
    """The twelve figures by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def listed(parts: list[Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for image, part in enumerate(parts):
            for i, (x1, y1, x2, y2) in enumerate(part["boxes"].double().tolist()):
                row = {"id": len(rows) + 1, "image_id": image, "category_id": int(part["labels"][i]), "iscrowd": 0}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                rows.append(row | ({"score": float(part["scores"][i])} if "scores" in part else {}))
        return rows

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        labels = sorted({int(label) for target in targets for label in target["labels"]})
        truth.dataset = {
            "images": [{"id": i} for i in range(len(targets))],
            "annotations": listed(targets),
            "categories": [{"id": label} for label in labels],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(listed(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


# -- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """What candidates are scored with."""

    data: DetectionData = field(default_factory=functools.partial(DetectionData, size=128))
    """Composed digits, or a set in COCO's layout; its validation images score."""
    batches: int = 25
    """For batch norm."""
    images: int = 8
    """In each of them."""
    batch: int = 16
    """Validation images per forward pass."""
    width: int = 64
    """Channels of pyramid and head."""
    convs: int = 2
    """Of each tower of the head."""
    steps: int = 300
    """Of training on uniform paths, so that scores differ."""
    seed: int = 0
    """Of weights, paths, candidates."""
    threads: int = 1
    """Of torch."""


def pyramids(
    scoring: Scoring = Scoring(),
    backbone: str = "detnas-coco-retinanet-300m",
    repeats: int = 1,
    networks: int = 50,
    call: int = 10,
) -> None:
    """Random pyramids on a fixed backbone: features of the backbone held, against one detector at a time.

    Args:
        scoring: Data and settings.
        backbone: Published network, or "package.module:builder" of one.
        repeats: Pyramids in a stack.
        networks: Pyramids scored.
        call: Of them per call of the evaluator.
    """
    splits, detector = prepared(scoring, backbone=backbone, neck="nasfpn", repeats=repeats)
    rng = random.Random(scoring.seed)
    archs = [detector.space.normal_form(detector.space.sample(rng)) for _ in range(networks)]
    calls = [archs[start : start + call] for start in range(0, networks, call)]
    compared(f"{networks} pyramids on {backbone}", detector, splits, scoring, calls)


def generation(scoring: Scoring = Scoring(), backbone: str = "detnas-300m", networks: int = 20, after: int = 5) -> None:
    """Generations of an evolution of backbones under RetinaNet, with shared prefixes, against one detector at a time.

    Args:
        scoring: Data and settings.
        backbone: Name of a space.
        networks: Candidates of a generation.
        after: Generations before the second one that is timed; the first is random.
    """
    from searchers import Study, TopKEvolution, search

    splits, detector = prepared(scoring, backbone=backbone)
    share = 2 * networks // 5
    evolution = TopKEvolution(
        detector.space,
        seed=scoring.seed,
        metric="map",
        population_size=networks,
        parents=max(1, networks // 5),
        mutants=share,
        crossovers=share,
    )
    study = Study(None, detector.space)
    search(evolution, evaluator(detector, splits, scoring), study, trials=networks * (after + 1), batch=networks)
    trials = [detector.space.normal_form(trial.arch) for trial in study.trials()]
    for number in (0, after):
        archs = list(dict.fromkeys(trials[number * networks : (number + 1) * networks]))
        compared(f"generation {number}, {len(archs)} candidates of {backbone}", detector, splits, scoring, [archs])


def prepared(scoring: Scoring, *, backbone: str, **settings: Any) -> Any:
    """Splits, and a supernet that has learnt from them a little."""
    import torch

    from detection import create_detector
    from detection.data.batches import training_batches
    from detection.data.load import load

    torch.set_num_threads(scoring.threads)
    splits = load(dataclasses.replace(scoring.data, calibration=scoring.batches * scoring.images))
    detector = create_detector(
        "retinanet",
        backbone=backbone,
        num_classes=len(splits.classes),
        image_size=scoring.data.size,
        phase="supernet",
        head_width=scoring.width,
        head_convs=scoring.convs,
        norm="batch",
        **settings,
        generator=torch.Generator().manual_seed(scoring.seed),
    )
    detector.to(memory_format=torch.channels_last).train()
    rng, optimizer = random.Random(scoring.seed), torch.optim.AdamW(detector.parameters(), lr=1e-3)
    batches = training_batches(splits.train, DetectionAugment(flip=True), batch=8, seed=scoring.seed)
    for images, targets in itertools.islice(batches, scoring.steps):
        optimizer.zero_grad()
        loss = sum(detector(images, detector.space.sample(rng), targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
    return splits, detector.eval()


def evaluator(detector: Any, splits: Any, scoring: Scoring) -> Any:
    """The detector's candidates as this project scores them."""
    from detection.metric import DetectionMetric
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    return SharedWeights(
        detector,
        splits.calibration.images(),
        splits.validation.images(),
        batch=scoring.batch,
        bn=Recalibrate(scoring.batches, scoring.images),
        metric=DetectionMetric(splits.validation),
    )


def compared(title: str, detector: Any, splits: Any, scoring: Scoring, calls: Sequence[Sequence[Any]]) -> None:
    """Scores architectures both ways, in alternation, and prints processor time by part and the largest difference.

    Loading counts for both: files are decoded once for the shared way, and for every candidate in the other.
    """
    ours, theirs = Parts(), Parts()
    with ours.part(PARTS[1]):
        evaluate = evaluator(detector, splits, scoring)
    sharing, metric = evaluate._prefixes, evaluate.metric
    for owner, method, part in (
        (sharing._copies, "_make", 0),
        (sharing, "_entered", 1),
        (sharing, "calibrate", 2),
        (sharing, "outputs", 3),
        (metric, "of_batch", 4),
        (metric, "combine", 4),
    ):
        setattr(owner, method, ours.around(getattr(owner, method), PARTS[part]))
    scores: list[tuple[dict[str, float], dict[str, float]]] = []
    for archs in calls:
        with ours.part("the rest"):
            found = evaluate(archs)
        with theirs.part("the rest"):
            scores += zip(found, [alone(detector, arch, splits, scoring, theirs) for arch in archs], strict=True)
        print(f"{title}: {len(scores)} scored", file=sys.stderr)
    apart = max(abs(one[name] - other[name]) for one, other in scores for name in one)
    maps = [one["map"] for one, _ in scores]
    shown = [*PARTS, "the rest"]
    rows = [(part, f"{theirs.seconds[part]:.1f}", f"{ours.seconds[part]:.1f}") for part in shown]
    totals = [sum(side.seconds.values()) for side in (theirs, ours)]
    rows.append(("in all", *(f"{total:.1f}" for total in totals)))
    print_table(f"{title}, seconds of processor time", ("part", "one at a time", "shared and held"), rows)
    print(
        f"time ratio {totals[0] / totals[1]:.2f}; without loading images "
        f"{(totals[0] - theirs.seconds[PARTS[1]]) / totals[1]:.2f}; largest difference of a score {apart:.1e}; mAP "
        f"{min(maps):.4f} to {max(maps):.4f}, {len(set(maps))} values of {len(maps)}; "
        f"{evaluate.held_bytes / 2**20:.0f} MiB held at most"
    )


def alone(detector: Any, arch: Any, splits: Any, scoring: Scoring, parts: "Parts") -> dict[str, float]:
    """A candidate as it is scored elsewhere: a copy of all weights, batch norm through a loader, mAP through another.

    Files are decoded by the loaders, as they are there; composed images are in memory. Everything else is as in the
    shared way: batches, memory format, and the library that computes the metric.
    """
    import torch
    from torch.utils.data import DataLoader

    from detection.metric import DetectionMetric
    from supernet.scoring.batch_norm import recalibrate_bn

    with parts.part(PARTS[0]):
        network = copy.deepcopy(detector).subnet(arch).eval().to(memory_format=torch.channels_last)
    used = torch.arange(scoring.batches * scoring.images)
    calibration, validation = (
        dataclasses.replace(part, pixels=None) if part.root is not None else part
        for part in (splits.calibration.subset(used), splits.validation)
    )
    with parts.part(PARTS[2]):
        loader = DataLoader(Loaded(calibration), scoring.images)
        recalibrate_bn(network, (x for x, _ in parts.each(loader, PARTS[1])))
    with parts.part(PARTS[4]):
        metric, found = DetectionMetric(validation), []
    with parts.part(PARTS[3]), torch.no_grad():
        for x, positions in parts.each(DataLoader(Loaded(validation), scoring.batch), PARTS[1]):
            detections = network(x)
            with parts.part(PARTS[4]):
                found.append(metric.of_batch(detections, positions))
    with parts.part(PARTS[4]):
        return dict(metric.combine(found))


@dataclass
class Loaded:
    """Images one at a time, for a loader: normalised, with their positions."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data.normalize([self.data.seen(index)])[0], index


class Parts:
    """Seconds of processor time by part; time in a part within another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._within: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        self._count()
        self._within.append(name)
        try:
            yield
        finally:
            self._count()
            self._within.pop()

    def _count(self) -> None:
        now = time.process_time()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def around(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return work(*args, **kwargs)

        return counted

    def each(self, items: Any, name: str) -> Iterator[Any]:
        """The same items, the waiting for each counted."""
        waiting = iter(items)
        while True:
            with self.part(name):
                item = next(waiting, None)
            if item is None:
                return
            yield item


def run() -> None:
    commands = {"map": mean_average_precision, "pyramids": pyramids, "generation": generation}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    main(run)
