"""How fast is scoring candidate detectors with shared weights, and how fast is the metric?

    python tools/benchmarks/detection_speed.py map           COCO's metrics here and by pycocotools
    python tools/benchmarks/detection_speed.py pyramids      random pyramids on one fixed backbone
    python tools/benchmarks/detection_speed.py generation    generations of an evolution of backbones

The first ends with a table of processor time; the others with one by part, and a line with the time ratio and that of
the steps, which is what shared prefixes alone can give. All print the largest difference between the results of the two
sides.
"""

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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detection.config import DetectionAugment, DetectionData
from supernet.checked import Count, FilePath, Seed, Threads
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from detection.data.images import DetectionSet
    from detection.data.load import DetectionSplits
    from detection.detector import Detector
    from supernet.scoring.metrics import Metrics
    from supernet.scoring.shared_weights import SharedWeights
    from supernet.scoring.steps import Phase
    from supernet.space import Arch

T = TypeVar("T")

BUILDING, IMAGES, RECALIBRATION, INFERENCE, METRIC = PARTS = (
    "building",
    "images and fixed steps",
    "recalibration",
    "inference",
    "metric",
)
PART_OF: "dict[Phase, str]" = {
    "materialize": BUILDING,
    "trunk": IMAGES,
    "calibrate": RECALIBRATION,
    "evaluate": INFERENCE,
    "metric": METRIC,
}
"""Phase of scoring with shared weights to the part of the table that it counts for."""
REST = "the rest"


def mean_average_precision(
    annotations: FilePath | None = None,
    folder: FilePath = Path(),
    images: Count = 72,
    detections: tuple[Count, ...] = (50, 100),
    runs: Count = 7,
    threads: Threads = 1,
) -> None:
    """Processor time of COCO's twelve metrics here and by pycocotools, for boxes scattered around the true ones.

    Args:
        annotations: Annotation file in COCO's layout; composed digits by default.
        folder: Folder of its images.
        images: Number of composed digit images.
        detections: Detections per image.
        runs: Runs per side, of which the median counts.
        threads: Threads of torch.
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
    for per_image in detections:
        predictions = []
        for target in targets:
            near = torch.randint(len(target["boxes"]), (per_image,), generator=generator)
            boxes = target["boxes"][near].float() + 8 * torch.randn(per_image, 4, generator=generator)
            boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
            scores = torch.rand(per_image, generator=generator)
            predictions.append({"boxes": boxes, "scores": scores, "labels": target["labels"][near]})
        truth = GroundTruth(targets)
        flat = torch.cat(
            [
                torch.cat([torch.full((per_image, 1), i), p["labels"][:, None], p["scores"][:, None], p["boxes"]], 1)
                for i, p in enumerate(predictions)
            ]
        )
        theirs, their_seconds = median(functools.partial(by_pycocotools, targets, predictions), runs)
        ours, our_seconds = median(functools.partial(coco_figures, targets, predictions), runs)
        _, prepared_seconds = median(functools.partial(truth.figures, flat, every=True), runs)
        difference = max(abs(a - ours[name]) for a, name in zip(theirs, FIGURES, strict=True))
        milliseconds = (f"{1e3 * seconds:.1f}" for seconds in (their_seconds, our_seconds, prepared_seconds))
        rows.append((f"{per_image * len(targets):,}", *milliseconds, f"{difference:.1e}"))
    columns = ("detections", "pycocotools, ms", "coco_figures, ms", "GroundTruth prepared, ms", "largest difference")
    print_table(f"mean average precision of {len(targets)} images, medians of {runs}", columns, rows)


def median(work: Callable[[], T], runs: int) -> tuple[T, float]:
    """Returns the result of a function, and the median processor time of its runs in seconds."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        result = work()
        seconds.append(time.process_time() - began)
    return result, statistics.median(seconds)


def by_pycocotools(targets: "list[dict[str, Tensor]]", detections: "list[dict[str, Tensor]]") -> list[float]:
    """Returns COCO's twelve metrics as pycocotools computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(parts: "list[dict[str, Tensor]]") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for image, part in enumerate(parts):
            for i, (x1, y1, x2, y2) in enumerate(part["boxes"].double().tolist()):
                row: dict[str, Any] = {
                    "id": len(rows) + 1,
                    "image_id": image,
                    "category_id": int(part["labels"][i]),
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
                if "scores" in part:
                    row["score"] = float(part["scores"][i])
                rows.append(row)
        return rows

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        labels = sorted({int(label) for target in targets for label in target["labels"]})
        truth.dataset = {
            "images": [{"id": i} for i in range(len(targets))],
            "annotations": annotations(targets),
            "categories": [{"id": label} for label in labels],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(annotations(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


# -- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """Data and settings with which candidates are scored."""

    data: DetectionData = field(default_factory=functools.partial(DetectionData, size=128))
    """Composed digits, or a set in COCO's layout, whose validation images score the candidates."""
    batches: Count = 25
    """Calibration batches."""
    images: Count = 8
    """Images per calibration batch."""
    batch: Count = 16
    """Validation images per forward pass."""
    width: Count = 64
    """Channels of the pyramid and the head."""
    convs: Count = 2
    """Convolutions per tower of the head."""
    steps: Count = 300
    """Training steps on uniform paths, so that scores differ."""
    seed: Seed = 0
    """Seed of weights, paths and candidates."""
    threads: Threads = 1
    """Threads of torch."""


def pyramids(
    scoring: Scoring = Scoring(),
    backbone: str = "detnas-coco-retinanet-300m",
    repeats: Count = 1,
    networks: Count = 50,
    call: Count = 10,
) -> None:
    """Random pyramids on a fixed backbone, whose features are cached, against scoring one detector at a time.

    Args:
        scoring: Data and settings.
        backbone: Published network, or "package.module:builder" of one.
        repeats: Pyramids in a stack.
        networks: Pyramids scored.
        call: Pyramids per call of the evaluator.
    """
    splits, detector = prepare(scoring, backbone=backbone, neck="nasfpn", repeats=repeats)
    rng = random.Random(scoring.seed)
    archs = [detector.space.normal_form(detector.space.sample(rng)) for _ in range(networks)]
    calls = [archs[start : start + call] for start in range(0, networks, call)]
    compare(f"{networks} pyramids on {backbone}", detector, splits, scoring, calls)


def generation(
    scoring: Scoring = Scoring(), backbone: str = "detnas-300m", networks: Count = 20, after: Count = 5
) -> None:
    """Generations of an evolution of RetinaNet's backbone, with shared prefixes, against scoring one at a time.

    Args:
        scoring: Data and settings.
        backbone: Name of a space.
        networks: Candidates per generation.
        after: Number of the second generation that is timed. The first is number 0, which is random.
    """
    from searchers import Study, TopKEvolution, search

    splits, detector = prepare(scoring, backbone=backbone)
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
        compare(f"generation {number}, {len(archs)} candidates of {backbone}", detector, splits, scoring, [archs])


def prepare(scoring: Scoring, *, backbone: str, **settings: Any) -> "tuple[DetectionSplits, Detector]":
    """Returns the data, and a supernet in eval mode that was briefly trained on it."""
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
        loss = torch.stack(list(detector(images, detector.space.sample(rng), targets).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
    return splits, detector.eval()


def evaluator(
    detector: "Detector",
    splits: "DetectionSplits",
    scoring: Scoring,
    watch: "Callable[[Phase], contextlib.AbstractContextManager[object]]" = contextlib.nullcontext,
) -> "SharedWeights":
    """Returns the evaluator that scores candidates as this project does."""
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
        watch=watch,
    )


def compare(
    title: str,
    detector: "Detector",
    splits: "DetectionSplits",
    scoring: Scoring,
    calls: "Sequence[Sequence[Arch]]",
) -> None:
    """Scores architectures both ways, alternating, and prints processor time by part and the largest difference.

    Loading counts on both sides: files are decoded once for the shared way, and for every candidate in the other.

    Args:
        title: the title of the table.
        detector: supernet with the weights.
        splits: calibration and validation images.
        scoring: settings.
        calls: architectures by call of the evaluator.
    """
    ours, theirs = Stopwatch(), Stopwatch()
    with ours.part(IMAGES):
        evaluate = evaluator(detector, splits, scoring, watch=lambda phase: ours.part(PART_OF[phase]))
    scores: list[tuple[Metrics, Metrics]] = []
    for archs in calls:
        with ours.part(REST):
            metrics = evaluate(archs)
        with theirs.part(REST):
            scores += zip(metrics, [alone(detector, arch, splits, scoring, theirs) for arch in archs], strict=True)
        print(f"{title}: {len(scores)} scored", file=sys.stderr)
    difference = max(abs(our[name] - their[name]) for our, their in scores for name in our)
    maps = [our["map"] for our, _ in scores]
    rows = [(part, f"{theirs.seconds[part]:.1f}", f"{ours.seconds[part]:.1f}") for part in (*PARTS, REST)]
    their_total, our_total = sum(theirs.seconds.values()), sum(ours.seconds.values())
    rows.append(("in all", f"{their_total:.1f}", f"{our_total:.1f}"))
    print_table(f"{title}, seconds of processor time", ("part", "one at a time", "shared and cached"), rows)
    print(
        f"time ratio {their_total / our_total:.2f}; without loading images "
        f"{(their_total - theirs.seconds[IMAGES]) / our_total:.2f}; largest difference of a score {difference:.1e}; "
        f"steps of the detectors {evaluate.steps_asked / evaluate.steps_run:.2f}; "
        f"mAP {min(maps):.4f} to {max(maps):.4f}, {len(set(maps))} values of {len(maps)}; "
        f"at most {evaluate.held_bytes / 2**20:.0f} MiB of activations"
    )


def alone(
    detector: "Detector", arch: "Arch", splits: "DetectionSplits", scoring: Scoring, stopwatch: "Stopwatch"
) -> "Metrics":
    """Returns the metrics of a candidate as other libraries compute them.

    All weights are copied; one DataLoader recalibrates batch norm, another one gives the mAP. The loaders decode files
    again for every candidate; composed images are in memory. Everything else is as in the shared way: batches, memory
    format, 1×1 convolutions of few pixels as products of matrices, and the library that computes the metric.
    """
    import torch
    from torch.utils.data import DataLoader

    from detection.metric import DetectionMetric
    from supernet.convolutions import use_matrix_products
    from supernet.scoring.batch_norm import recalibrate_bn

    with stopwatch.part(BUILDING):
        network = copy.deepcopy(detector).subnet(arch).eval().to(memory_format=torch.channels_last)
        use_matrix_products(network)
    used = torch.arange(scoring.batches * scoring.images)
    calibration, validation = (
        dataclasses.replace(part, pixels=None) if part.root is not None else part
        for part in (splits.calibration.subset(used), splits.validation)
    )
    with stopwatch.part(RECALIBRATION):
        loader = DataLoader(numbered_images(calibration), scoring.images)
        recalibrate_bn(network, (x for x, _ in stopwatch.each(loader, IMAGES)))
    with stopwatch.part(METRIC):
        metric, parts = DetectionMetric(validation), []
    with stopwatch.part(INFERENCE), torch.no_grad():
        for x, positions in stopwatch.each(DataLoader(numbered_images(validation), scoring.batch), IMAGES):
            detections = network(x)
            with stopwatch.part(METRIC):
                parts.append(metric.of_batch(detections, positions))
    with stopwatch.part(METRIC):
        return dict(metric.combine(parts))


def numbered_images(data: "DetectionSet") -> "torch.utils.data.Dataset[tuple[Tensor, int]]":
    """Returns a data set of single normalised images with their positions, for a DataLoader."""
    from torch.utils.data import Dataset

    class NumberedImages(Dataset["tuple[Tensor, int]"]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> "tuple[Tensor, int]":
            return data.normalize([data.seen(index)])[0], index

    return NumberedImages()


class Stopwatch:
    """Counts processor time by part. Parts nest; time in an inner part does not count for the outer one.

    Attributes:
        seconds: processor time per part.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time of the block for a part."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def each(self, items: Iterable[T], name: str) -> Iterator[T]:
        """Yields the items and counts the time to produce them for a part."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {
        "map": mean_average_precision,
        "pyramids": pyramids,
        "generation": generation,
    }
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
