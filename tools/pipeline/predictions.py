"""Predictions of a classifier on image files: a table, and a page with the images."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.config import Preprocess
from supernet.data.images import Images
from supernet.data.opening import open_image
from supernet.export.runtime.classify import _from_image, _prepared
from supernet_tools.pipeline.page import TILE, jpeg

BATCH = 64
SHEET = 400
"""Images of the page; a table holds all."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a file.

    Attributes:
        file: the image file.
        probabilities: the probability of each class, (classes,).
        tile: the image as a data URI.
    """

    file: Path
    probabilities: Tensor
    tile: str


def classified(network: nn.Module, preprocess: Preprocess, files: Iterable[Path]) -> Iterator[Prediction | str]:
    """Yields a prediction per file, or for one that cannot be read the reason as one line.

    Args:
        network: in eval mode, on the CPU.
        preprocess: what it expects of its input.
        files: the image files.
    """
    from PIL import ImageOps

    settings = {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "input_size": preprocess.input_size,
        "interpolation": preprocess.interpolation,
    }
    for group in _batched(files, BATCH):
        inputs: list[tuple[Path, Tensor, str]] = []
        for file in group:
            try:
                image = open_image(file)
            except (OSError, SyntaxError, ValueError) as error:
                yield f"{file} cannot be read as an image ({' '.join(str(error).split())})"
                continue
            x = _prepared(_from_image(image, len(preprocess.mean)), settings)
            inputs.append((file, x, jpeg(_from_image(ImageOps.fit(image, (TILE, TILE)), 3)[0])))
        if inputs:
            with torch.no_grad():
                outputs = network(torch.cat([x for _, x, _ in inputs])).float().softmax(dim=1)
            yield from (Prediction(file, row, tile) for (file, _, tile), row in zip(inputs, outputs, strict=True))


def of_pixels(network: nn.Module, images: Images, count: int) -> Iterator[Prediction]:
    """Yields predictions of the first images of a split; they are named by their number."""
    chosen = images.subset(torch.arange(min(count, len(images))))
    with torch.no_grad():
        outputs = network(chosen.normalize(chosen.pixels)).float().softmax(dim=1)
    for number, (row, pixels) in enumerate(zip(outputs, chosen.pixels, strict=True)):
        yield Prediction(Path(f"test{number}"), row, jpeg(pixels))


def _batched(items: Iterable[Path], size: int) -> Iterator[tuple[Path, ...]]:
    iterator = iter(items)
    while group := tuple(itertools.islice(iterator, size)):
        yield group


def table_of(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """The predictions as CSV: file, label, its probability, and the probability of every class."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "label", "probability", *(f"p({name})" for name in classes)])
    for prediction in predictions:
        best = int(prediction.probabilities.argmax())
        values = [f"{value:.6f}" for value in prediction.probabilities.tolist()]
        writer.writerow([str(prediction.file), classes[best], values[best], *values])
    return text.getvalue()


def page_of(predictions: Sequence[Prediction], classes: Sequence[str], title: str) -> str:
    """The images with their labels as one page, the first `SHEET` of them."""
    import jinja2

    rows = []
    for prediction in predictions[:SHEET]:
        top = prediction.probabilities.topk(min(3, len(classes)))
        labels = [f"{classes[i]} {p:.0%}" for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        rows.append({"tile": prediction.tile, "file": str(prediction.file), "labels": labels})
    text = resources.files("supernet_tools.pipeline").joinpath("templates/predictions.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text).render(title=title, rows=rows, left=max(len(predictions) - SHEET, 0))
