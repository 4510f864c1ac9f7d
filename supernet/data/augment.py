"""Random augmentation of training images, one batch at a time on its device, and mixing of pairs through timm."""

import contextlib
import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from supernet.config import Augment
from supernet.errors import InputError

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of random resized crops, as in torchvision."""


def augment(pixels: Tensor, config: Augment, *, generator: torch.Generator, rank: int = 0, world: int = 1) -> Tensor:
    """Flips, translates, crops, recolours and covers each image independently; pairs are mixed by `mix`.

    Args:
        pixels: uint8, (N, C, H, W); with several processes, the images `rank`, `rank + world`, … of a joint batch.
        config: the augmentations and their strength.
        generator: source of all draws, on the CPU. They are made for the joint batch of `N * world` images, so that an
            image is varied the same way whatever the number of processes.

    Returns:
        uint8, (N, C, H, W), on the device of `pixels`.
    """
    n, c, h, w = pixels.shape
    joint, share, device = n * world, slice(rank, None, world), pixels.device
    if config.flip:
        mirrored = (torch.rand(joint, generator=generator) < 0.5)[share]
        pixels = torch.where(mirrored.to(device).view(n, 1, 1, 1), pixels.flip(-1), pixels)
    if config.shift:
        reach = 2 * config.shift + 1
        top, left = torch.randint(0, reach, (2, joint, 1), generator=generator)[:, share].to(device)
        rows = (top + torch.arange(h, device=device)).view(n, 1, h, 1)
        columns = (left + torch.arange(w, device=device)).view(n, 1, 1, w)
        image = torch.arange(n, device=device).view(n, 1, 1, 1)
        channel = torch.arange(c, device=device).view(1, c, 1, 1)
        pixels = functional.pad(pixels, (config.shift,) * 4)[image, channel, rows, columns]
    if config.scale < 1:
        boxes = crop_boxes(joint, (h, w), scale=config.scale, generator=generator)[share]
        pixels = resized_crop(pixels, boxes.to(device))
    if config.color_jitter:
        factors = 1 + config.color_jitter * (2 * torch.rand(joint, 3, generator=generator) - 1)
        order = torch.rand(joint, 3, generator=generator).argsort(1)
        pixels = adjust_colors(pixels, factors[share].to(device), order=order[share].to(device))
    if config.cutout:
        places = torch.rand(joint, 2, generator=generator)[share]
        centres = (places * torch.tensor([h, w])).long().to(device)  # any pixel, so that squares may leave the image
        pixels = covered(pixels, centres, side=config.cutout)
    return pixels


def covered(pixels: Tensor, centres: Tensor, *, side: int) -> Tensor:
    """Returns images with a black square each (cutout: DeVries & Taylor, 2017, § 3.2).

    Args:
        pixels: uint8, (N, C, H, W).
        centres: int64, (N, 2): row and column of the pixel at half of the square's side.
        side: the side of the squares, in pixels; what lies outside an image is left out.

    Returns:
        uint8, (N, C, H, W).
    """
    n, _, h, w = pixels.shape
    first = centres - side // 2
    rows, columns = (
        (at >= start[:, None]) & (at < start[:, None] + side)
        for at, start in zip(
            (torch.arange(h, device=pixels.device), torch.arange(w, device=pixels.device)), first.unbind(1), strict=True
        )
    )
    inside = rows.view(n, 1, h, 1) & columns.view(n, 1, 1, w)
    return pixels.masked_fill(inside, 0)


def crop_boxes(n: int, size: tuple[int, int], *, scale: float, generator: torch.Generator) -> Tensor:
    """Draws the boxes of random resized crops, distributed as in torchvision's RandomResizedCrop.

    Args:
        n: number of boxes.
        size: height and width of the images in pixels.
        scale: smallest share of the area; the largest is 1. Aspect ratios are from 3/4 to 4/3.
        generator: source of the draws, on the CPU.

    Returns:
        int64, (n, 4): top, left, height, width.
    """
    height, width = size
    area = height * width * (scale + (1 - scale) * torch.rand(n, 10, generator=generator))
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * torch.rand(n, 10, generator=generator))
    tries = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1).round().long()  # (n, 10, 2)
    fits = ((tries > 0) & (tries <= torch.tensor(size))).all(-1)
    box = tries[torch.arange(n), fits.int().argmax(1)]  # the first that fits
    whole = torch.tensor([min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))])
    none = ~fits.any(1)
    box[none] = whole  # none of ten tries fits: the largest box of an allowed ratio, at the centre
    room = torch.tensor(size) - box
    corner = (torch.rand(n, 2, generator=generator) * (room + 1)).long().minimum(room)
    corner[none] = room[none] // 2
    return torch.cat([corner, box], 1)


def resized_crop(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Crops a box from each image and resizes it bilinearly to the image's size.

    Args:
        pixels: uint8, (N, C, H, W).
        boxes: int64, (N, 4): top, left, height, width.

    Returns:
        uint8, (N, C, H, W).
    """
    n, _, h, w = pixels.shape
    rows, columns = _samples(boxes[:, 0], boxes[:, 2], size=h), _samples(boxes[:, 1], boxes[:, 3], size=w)
    grid = torch.stack([columns.view(n, 1, w).expand(n, h, w), rows.view(n, h, 1).expand(n, h, w)], -1)
    stretched = functional.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return stretched.round().clamp(0, 255).to(pixels.dtype)


def _samples(start: Tensor, length: Tensor, *, size: int) -> Tensor:
    """Returns grid_sample's positions along one side, (N, size): -1 and 1 are the centres of the outer pixels."""
    at = (torch.arange(size, device=start.device) + 0.5) * (length / size).view(-1, 1) - 0.5
    # No pixels outside the box are read, since torchvision crops before it resizes.
    at = at.clamp_min(0).minimum((length - 1).view(-1, 1)) + start.view(-1, 1)
    return 2 * at / max(size - 1, 1) - 1


def adjust_colors(pixels: Tensor, factors: Tensor, *, order: Tensor) -> Tensor:
    """Changes brightness, contrast and saturation of each image with torchvision's definitions and rounding.

    Each blends an image with a reference: with black, with its mean gray, with its gray version.

    Args:
        pixels: uint8, (N, C, H, W); unless C is 3, images count as gray and saturation does nothing.
        factors: float, (N, 3): brightness, contrast and saturation; 1 changes nothing.
        order: int64, (N, 3): which of the three (0, 1, 2) comes first, second and third.
    """
    n, c, _, _ = pixels.shape
    image = pixels.float()
    for step in order.unbind(1):
        kind = step.view(n, 1, 1, 1)
        gray = _gray(image)  # (N, 1, H, W), or all channels of a gray image
        # Summed as integers, since the mean must not depend on how many images share the batch.
        mean = (gray.long().sum((1, 2, 3), keepdim=True) / gray[0].numel()).float()
        reference = torch.where(kind == 0, 0.0, torch.where(kind == 1, mean, gray))
        factor = factors.gather(1, step.view(n, 1)).view(n, 1, 1, 1)
        changed = (image * factor + reference * (1 - factor)).clamp(0, 255).floor()
        image = torch.where(kind == 2, image, changed) if c != 3 else changed
    return image.to(pixels.dtype)


def _gray(image: Tensor) -> Tensor:
    if image.shape[1] != 3:
        return image
    red, green, blue = image.split(1, dim=1)
    gray: Tensor = (0.2989 * red + 0.587 * green + 0.114 * blue).floor()
    return gray


def mix(
    images: Tensor, labels: Tensor, config: Augment, *, classes: int, smoothing: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixes a batch with its own reverse by mixup or cutmix, through timm; without both, only smooths the targets.

    Args:
        images: float, (N, C, H, W), normalised; not modified.
        labels: int64, (N,).
        config: the alphas; if both are above zero, the seed chooses one of the two.
        classes: number of classes.
        smoothing: label smoothing, 0 to 1.
        seed: the seed of the draws. The global generators are restored afterwards.

    Returns:
        images of the same shape, and float targets, (N, classes), whose rows sum to 1.

    Raises:
        InputError: the number of images is odd, and timm cannot pair them.
    """
    from timm.data import mixup

    if not (config.mixup or config.cutmix):
        return images, mixup.mixup_target(labels, classes, smoothing=smoothing)
    if len(images) % 2:
        raise InputError(f"mixup and cutmix pair images, and a batch of {len(images)} is odd; make train.batch even")
    mixer = mixup.Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=classes)
    with seeded(seed):
        mixed: tuple[Tensor, Tensor] = mixer(images.clone(), labels)
    return mixed


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global CPU generators of Python, numpy and torch, and restores their states afterwards."""
    import numpy

    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
