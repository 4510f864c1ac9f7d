"""Detection figures of BENCHMARKS.md: python tools/benchmark_detection.py map"""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from common import main, print_table


def mean_average_precision(
    annotations: Path | None = None, folder: Path = Path(), images: int = 72,
    detections: tuple[int, ...] = (50, 100), runs: int = 7, threads: int = 1,
) -> None:  # fmt: skip
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

    from detection import digits
    from detection.coco import read_annotations
    from detection.evaluate import FIGURES, GroundTruth, coco_figures

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
        listed = torch.cat([
            torch.cat([torch.full((per, 1), i), one["labels"][:, None], one["scores"][:, None], one["boxes"]], 1)
            for i, one in enumerate(found)
        ])  # fmt: skip
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
        truth.dataset = {"images": [{"id": i} for i in range(len(targets))], "annotations": listed(targets),
                         "categories": [{"id": label} for label in labels]}  # fmt: skip
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(listed(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def run() -> None:
    tyro.extras.subcommand_cli_from_dict({"map": mean_average_precision}, description=__doc__)


if __name__ == "__main__":
    main(run)
