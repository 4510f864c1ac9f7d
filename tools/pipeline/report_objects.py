"""The parts of a report that show images with boxes: what a data set holds, and what a detector finds in it."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor, nn

from detection.data import DetectionSet
from detection.metric import RECALLS, DetectionMetric
from supernet_tools.pipeline.page import COLOURS, Section, category_axis, curve, plain
from supernet_tools.pipeline.run import Run

SHEET, EXAMPLES = 12, 12
"""Images of the contact sheet, and test images with detections."""
WIDTH = 220
"""Pixels of an embedded image, whose height follows."""
SHOWN_CLASSES = 60
CURVES = 12
"""Classes with a precision-recall curve, those with most objects."""
THRESHOLD = 0.5
"""Lowest score of a detection that is drawn."""


def objects(run: Run, section: Section) -> None:
    """Adds the objects of every class, and images with their boxes."""
    data: DetectionSet = run.data.train
    annotations, classes = data.annotations, run.summary.classes
    counts = (annotations.labels[~annotations.crowd] - 1).bincount(minlength=len(classes)).tolist()
    bar = {"type": "bar", "x": [plain(name) for name in classes], "y": counts, "marker": {"color": COLOURS[0]}}
    section.plot("classes", [bar], x="class", y="objects in training images", xaxis=category_axis("class"))
    for index in range(min(SHEET, len(data))):
        target = annotations.target(index)
        section.images.append(
            {
                "source": boxed(data.image(index), target["boxes"], target["labels"]),
                "caption": _counted(target["labels"], classes) or "no objects",
                "kind": "wide",
            }
        )
    if len(classes) > 1:
        section.lines.append("Colours of the boxes: " + ", ".join(_coloured(classes)) + ".")


def _coloured(classes: Sequence[str]) -> list[str]:
    """The names of the first classes with the names of their colours."""
    names = ("blue", "orange", "green", "pink", "light blue", "red", "grey")
    return [f"{name} {colour}" for name, colour in zip(classes, names, strict=False)]


def _counted(labels: Tensor, classes: Sequence[str]) -> str:
    """How many objects of which class, as in "12 RBC, 1 WBC"."""
    counts = (labels - 1).bincount(minlength=len(classes)).tolist()
    return ", ".join(f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count)


def boxed(pixels: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor | None = None) -> str:
    """An image with coloured boxes as a data URI.

    Args:
        pixels: uint8, (3, H, W).
        boxes: (n, 4), x1, y1, x2, y2 in pixels of the image.
        labels: (n,), from 1, which choose the colour.
        truth: true boxes, (m, 4), which are drawn below in white.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    factor = WIDTH / image.width
    image = image.resize((WIDTH, max(1, round(image.height * factor))), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for corners in [] if truth is None else (truth * factor).tolist():
        draw.rectangle(corners, outline="white", width=2)
    for corners, label in zip((boxes * factor).tolist(), labels.tolist(), strict=True):
        draw.rectangle(corners, outline=COLOURS[(label - 1) % len(COLOURS)], width=2)
    content = io.BytesIO()
    image.save(content, format="jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def detector_figures(run: Run, network: nn.Module, name: str, section: Section) -> None:
    """Adds average precision and curves per class on the test images, and test images with what is found in them."""
    test: DetectionSet = run.data.test
    metric, classes = DetectionMetric(test), run.summary.classes
    rows = metric.detections(network, test, run.config.scoring_batch)
    figures = metric.truth.figures(rows)
    section.lines.append(
        f"{name} on {len(test):,} test images: mAP {figures['map']:.4f}, at an IoU of 0.5 {figures['map50']:.4f}, of "
        f"0.75 {figures['map75']:.4f}."
    )
    labels = test.annotations.labels[~test.annotations.crowd]
    objects = (labels - 1).bincount(minlength=len(classes)).tolist()
    by_class = metric.truth.by_class(rows)
    section.table(
        "test images by class",
        ("class", "objects", "AP", "AP50"),
        [(classes[row.label - 1], objects[row.label - 1], row.ap, row.ap50) for row in by_class[:SHOWN_CLASSES]],
        bars={"AP": lambda value: f"{value:.4f}", "AP50": lambda value: f"{value:.4f}"},
    )
    most = sorted(by_class, key=lambda row: -objects[row.label - 1])[:CURVES]
    traces = []
    for row in sorted(most, key=lambda row: row.label):
        title = f"{classes[row.label - 1]} {row.ap50:.2f}"
        traces.append({**curve(RECALLS, row.curve.tolist(), title, row.label - 1), "mode": "lines"})
    if traces:
        section.plot("precision-recall", traces, x="recall, IoU of 0.5", y="precision", yaxis=_unit("precision"))
    section.lines.append(
        f"Below are test images with detections of a score of {THRESHOLD} or more; white boxes are the true ones."
    )
    step = max(1, len(test) // EXAMPLES)
    for index in list(range(0, len(test), step))[:EXAMPLES]:
        own = rows[(rows[:, 0] == index) & (rows[:, 2] >= THRESHOLD)]
        target = test.annotations.target(index)
        found = _counted(own[:, 1].long(), classes) or "nothing"
        truth = _counted(target["labels"][~target["crowd"]], classes) or "nothing"
        section.images.append(
            {
                "source": boxed(test.image(index), own[:, 3:], own[:, 1].long(), target["boxes"]),
                "caption": f"found {found}; in truth {truth}",
                "kind": "wide",
            }
        )


def _unit(title: str) -> dict[str, object]:
    """An axis from 0 to 1."""
    return {"title": {"text": plain(title)}, "range": [0, 1.02], "automargin": True}
