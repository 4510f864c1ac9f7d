"""The parts of a report about images with boxes: the objects of a data set, and what a detector finds in it."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor, nn

from detection.data import DetectionSet
from detection.figures import RECALLS, figures_of
from detection.metric import DetectionMetric
from supernet_tools.pipeline.page import COLOURS, Section, category_axis, curve, plain
from supernet_tools.pipeline.run import Run

SHEET, EXAMPLES = 12, 12
"""The number of training images and of test images that are shown."""
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
    """Returns the first classes with the names of their colours."""
    names = ("blue", "orange", "green", "pink", "light blue", "red", "grey")
    return [f"{name} {colour}" for name, colour in zip(classes, names, strict=False)]


def _counted(labels: Tensor, classes: Sequence[str]) -> str:
    """Returns the number of objects of each class, as in "12 RBC, 1 WBC"."""
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


def detection_results(run: Run, network: nn.Module, name: str, section: Section) -> None:
    """Adds average precision and curves per class on the test images, and test images with their detections."""
    test: DetectionSet = run.data.test
    metric, classes = DetectionMetric(test, every=True), run.summary.classes
    rows = metric.detections(network, test, run.config.scoring_batch)
    figures = figures_of(metric, rows, test, threshold=THRESHOLD)
    section.lines.append(
        f"{name} on {len(test):,} test images: mAP {figures.metrics['map']:.4f}, at an IoU of 0.5 "
        f"{figures.metrics['map50']:.4f}, of 0.75 {figures.metrics['map75']:.4f}."
    )
    objects = figures.objects.tolist()
    present = [label for label, count in enumerate(objects) if count]
    section.table(
        "test images by class",
        ("class", "objects", "AP", "AP50"),
        [(classes[i], objects[i], *figures.precision[i, :2].tolist()) for i in present[:SHOWN_CLASSES]],
        bars={"AP": "{:.4f}".format, "AP50": "{:.4f}".format},
    )
    traces = []
    for i in sorted(sorted(present, key=lambda i: -objects[i])[:CURVES]):
        title = f"{classes[i]} {float(figures.precision[i, 1]):.2f}"
        traces.append({**curve(RECALLS.tolist(), figures.curves[i, 0].tolist(), title, i), "mode": "lines"})
    if traces:
        section.plot("precision-recall", traces, x="recall, IoU of 0.5", y="precision", yaxis=_unit("precision"))
    section.lines.append(
        f"Below are test images with detections of a score of {THRESHOLD} or more; white boxes are the true ones."
    )
    step = max(1, len(test) // EXAMPLES)
    for index in list(range(0, len(test), step))[:EXAMPLES]:
        own = rows[(rows[:, 0] == index) & (rows[:, 2] >= THRESHOLD)]
        target = test.annotations.target(index)
        detected = _counted(own[:, 1].long(), classes) or "nothing"
        truth = _counted(target["labels"][~target["crowd"]], classes) or "nothing"
        section.images.append(
            {
                "source": boxed(test.image(index), own[:, 3:], own[:, 1].long(), target["boxes"]),
                "caption": f"detected {detected}; in truth {truth}",
                "kind": "wide",
            }
        )


def _unit(title: str) -> dict[str, object]:
    """An axis from 0 to 1."""
    return {"title": {"text": plain(title)}, "range": [0, 1.02], "automargin": True}
