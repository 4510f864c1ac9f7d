"""Detections in image files, drawn on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from detection.config import DetectorPreprocess
from detection.data.augment import Resize
from detection.inputs import Target
from supernet.data.decode import UNREADABLE
from supernet.errors import InputError

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")
SHOWN = 480
"""Pixels of the longer side below which a picture is enlarged, so that labels can be read."""


def read_image(path: Path) -> Tensor:
    """An image file as uint8, (3, H, W). Raises `InputError` if it cannot be read."""
    try:
        with Image.open(path) as file:
            pixels: Tensor = pil_to_tensor(file.convert("RGB"))
    except UNREADABLE as error:
        raise InputError(f"the image {path} cannot be read ({error}); repair it or leave it out") from error
    return pixels


@torch.no_grad()
def detect(network: nn.Module, pixels: Tensor, preprocess: DetectorPreprocess) -> Target:
    """The detections in one image, boxes in its own pixels.

    Args:
        network: a detector in eval mode.
        pixels: uint8, (3, H, W), of any size.
        preprocess: what the network expects.
    """
    seen = Resize(preprocess.input_size, preprocess.longest)(pixels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    device = next(network.parameters()).device
    (found,) = network(((seen.float() / 255 - mean) / std)[None].to(device))
    height, width = (own / shown for own, shown in zip(pixels.shape[-2:], seen.shape[-2:], strict=True))
    boxes = found["boxes"].cpu() * torch.tensor((width, height, width, height))
    return {"boxes": boxes, "scores": found["scores"].cpu(), "labels": found["labels"].cpu()}


def drawn(
    pixels: Tensor,
    found: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    truth: Mapping[str, Tensor] | None = None,
) -> tuple[Image.Image, int]:
    """A picture of an image with its detections, enlarged if it is small, and how many of them are drawn.

    Args:
        pixels: uint8, (3, H, W).
        found: `boxes` in pixels of the image, `scores`, `labels` from 1.
        classes: names of the labels.
        threshold: least score of what is drawn.
        truth: true `boxes`, outlined in white below the others.
    """
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, SHOWN // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for x1, y1, x2, y2 in [] if truth is None else (truth["boxes"] * factor).tolist():
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline="white")
    kept = (found["scores"] >= threshold).nonzero().flatten().tolist()
    for i in reversed(kept):  # the best on top
        x1, y1, x2, y2 = (found["boxes"][i] * factor).tolist()
        label = int(found["labels"][i])
        color = COLORS[(label - 1) % len(COLORS)]
        draw.rectangle((x1, y1, x2, y2), outline=color, width=2)
        text, at = f"{classes[label - 1]} {found['scores'][i]:.2f}", (x1 + 2, max(0.0, y1 - 17))
        draw.rectangle(draw.textbbox(at, text, font=font), fill=color)
        draw.text(at, text, fill="white", font=font)
    return picture, len(kept)
