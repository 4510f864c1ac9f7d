"""Augmentation compared with torchvision, mixing compared with its formula, and draws that depend on seeds alone."""

import itertools
import random

import numpy
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from supernet.config import Augment
from supernet.data import augment as augment_module
from supernet.data.augment import adjust_colors, augment, crop_boxes, mix, resized_crop, seeded
from supernet.errors import InputError

KINDS = ("brightness", "contrast", "saturation")


def pictures(n: int, size: int = 24, channels: int = 3) -> Tensor:
    """Returns smooth random images like photographs; at sharp edges, interpolation differs more between libraries."""
    coarse = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_shift_and_flip_move_each_image_independently() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 255
    pixels = image.expand(500, 1, 9, 9)
    moved = augment(pixels, Augment(shift=2), generator=seed())
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1).sum(1) == 255).all()  # nothing is lost within the margin
    spots = moved.flatten(1).argmax(1)
    rows, columns = spots // 9, spots % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 25
    assert torch.equal(moved, augment(pixels, Augment(shift=2), generator=seed()))
    ramp = torch.arange(9, dtype=torch.uint8).expand(400, 1, 9, 9)
    flipped = augment(ramp, Augment(flip=True), generator=seed())
    mirrored = (flipped[:, 0, 0, 0] == 8).sum().item()
    assert 150 < mirrored < 250
    assert all(torch.equal(image, ramp[0]) or torch.equal(image, ramp[0].flip(-1)) for image in flipped)


def test_no_augmentation_changes_nothing() -> None:
    pixels = pictures(5)
    assert torch.equal(augment(pixels, Augment(), generator=seed()), pixels)


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_crop_boxes_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    n = 3000
    boxes = crop_boxes(n, size, scale=0.08, generator=seed()).double()
    theirs = v2.RandomResizedCrop(8, scale=(0.08, 1.0))
    with seeded(0):
        drawn = [theirs.make_params([torch.empty(3, *size)]) for _ in range(n)]
    expected = torch.tensor([[p[key] for key in ("top", "left", "height", "width")] for p in drawn]).double()
    for statistic in (torch.mean, torch.std):
        ours, reference = statistic(boxes, 0), statistic(expected, 0)
        assert torch.allclose(ours, reference, rtol=0.06), (ours, reference)
    area = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1])
    assert area.min() > 0.06
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()


def test_a_box_that_never_fits_is_the_largest_at_the_centre() -> None:
    boxes = crop_boxes(50, (10, 100), scale=0.9, generator=seed())  # 90 % of the area has at least a ratio of 9
    assert (boxes == torch.tensor([0, 43, 10, 13])).all()


def test_crops_equal_those_of_torchvision() -> None:
    pixels = pictures(40)
    boxes = crop_boxes(40, (24, 24), scale=0.08, generator=seed())
    ours = resized_crop(pixels, boxes)
    for image, box, mine in zip(pixels, boxes.tolist(), ours, strict=True):
        theirs = v2.functional.resized_crop(image, *box, [24, 24], InterpolationMode.BILINEAR, antialias=True)
        assert (theirs.int() - mine.int()).abs().max() <= 1
    assert torch.equal(resized_crop(pixels, torch.tensor([[0, 0, 24, 24]]).expand(40, 4)), pixels)


def test_a_scale_crops_every_image_differently() -> None:
    same = pictures(1).expand(30, 3, 24, 24)
    cropped = augment(same, Augment(scale=0.2), generator=seed())
    assert cropped.shape == same.shape
    assert len({image.numpy().tobytes() for image in cropped}) == 30


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", range(3), ids=KINDS)
def test_colors_equal_those_of_torchvision(kind: int, channels: int) -> None:
    pixels = pictures(8, channels=channels)
    factors = torch.ones(8, 3)
    factors[:, kind] = torch.linspace(0.5, 1.6, 8)
    ours = adjust_colors(pixels, factors, order=torch.tensor([0, 1, 2]).expand(8, 3))
    adjust = getattr(v2.functional, f"adjust_{KINDS[kind]}")
    for image, factor, mine in zip(pixels, factors[:, kind].tolist(), ours, strict=True):
        assert (adjust(image, factor).int() - mine.int()).abs().max() <= 1
    changed = not torch.equal(ours, pixels)
    assert changed == (kind != 2 or channels == 3)  # gray images have no saturation


def test_the_order_of_colors_matters_and_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, ...]] = []

    def watch(pixels: Tensor, factors: Tensor, *, order: Tensor) -> Tensor:
        orders.extend(map(tuple, order.tolist()))
        return pixels

    monkeypatch.setattr(augment_module, "adjust_colors", watch)
    augment(pictures(200), Augment(color_jitter=0.4), generator=seed())
    assert set(orders) == set(itertools.permutations(range(3)))
    pixels = pictures(1)
    factors = torch.tensor([[1.6, 0.5, 1.0]])
    first = adjust_colors(pixels, factors, order=torch.tensor([[0, 1, 2]]))
    second = adjust_colors(pixels, factors, order=torch.tensor([[1, 0, 2]]))
    assert not torch.equal(first, second)
    theirs = v2.functional.adjust_contrast(v2.functional.adjust_brightness(pixels[0], 1.6), 0.5)
    assert (theirs.int() - first[0].int()).abs().max() <= 2


def test_jitter_stays_within_its_range() -> None:
    flat = torch.full((400, 1, 4, 4), 100, dtype=torch.uint8)  # contrast and saturation leave a flat gray image alone
    levels = augment(flat, Augment(color_jitter=0.4), generator=seed())[:, 0, 0, 0].int()
    assert 58 <= levels.min() < 65
    assert 135 < levels.max() <= 140


def test_cutout_blackens_a_square_around_any_pixel() -> None:
    """As in the released code of DeVries & Taylor: a centre may be any pixel, and what lies outside is left out."""
    pixels = torch.full((2000, 3, 12, 12), 200, dtype=torch.uint8)
    black = augment(pixels, Augment(cutout=4), generator=seed()) == 0
    assert (black == black[:, :1]).all()  # in all channels
    rows, columns = black[:, 0].any(2), black[:, 0].any(1)
    assert (black[:, 0] == (rows[:, :, None] & columns[:, None, :])).all()  # a rectangle
    for side in (rows, columns):
        first, length = side.int().argmax(1), side.sum(1)
        assert set(length.tolist()) == {2, 3, 4}
        whole = first[length == 4]
        assert set(whole.tolist()) == set(range(9))
        assert (length == 4).float().mean().item() == pytest.approx(9 / 12, abs=0.04)
    assert torch.equal(augment(pixels, Augment(), generator=seed()), pixels)


def test_ranks_vary_their_images_as_a_single_process_does() -> None:
    everything = Augment(shift=3, flip=True, scale=0.3, color_jitter=0.4, cutout=6)
    pixels = pictures(24)
    joint = augment(pixels, everything, generator=seed(3))
    for rank in range(3):
        share = augment(pixels[rank::3], everything, generator=seed(3), rank=rank, world=3)
        assert torch.equal(share, joint[rank::3])


def test_mixup_is_a_convex_combination() -> None:
    images = torch.randn(8, 3, 5, 5, generator=seed())
    labels = torch.arange(8)
    before = images.clone()
    mixed, targets = mix(images, labels, Augment(mixup=1.0), classes=10, smoothing=0.0, seed=3)
    assert torch.equal(images, before)
    share = targets[0, 0]
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.flip(0), atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(8))
    assert torch.allclose(targets[0, 7], 1 - share)
    again = mix(images, labels, Augment(mixup=1.0), classes=10, smoothing=0.0, seed=3)
    other = mix(images, labels, Augment(mixup=1.0), classes=10, smoothing=0.0, seed=2)
    assert torch.equal(again[0], mixed)
    assert not torch.equal(other[0], mixed)


def test_cutmix_pastes_a_box_and_counts_it() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    for number in range(5):
        mixed, targets = mix(images, torch.arange(6), Augment(cutmix=1.0), classes=6, smoothing=0.0, seed=number)
        kept = (mixed == images).float().mean((1, 2, 3))
        assert ((mixed == images) | (mixed == images.flip(0))).all()
        assert torch.allclose(kept, targets.diagonal())


def test_with_both_each_batch_uses_one_of_them() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    both = Augment(mixup=1.0, cutmix=1.0)
    pasted = 0
    for number in range(40):
        mixed, _ = mix(images, torch.arange(4), both, classes=4, smoothing=0.0, seed=number)
        pasted += bool(((mixed == images) | (mixed == images.flip(0))).all())
    assert 10 < pasted < 30


def test_without_mixing_targets_are_smoothed_labels() -> None:
    images = torch.randn(3, 1, 2, 2)
    same, targets = mix(images, torch.tensor([0, 1, 1]), Augment(), classes=4, smoothing=0.2, seed=0)
    assert torch.equal(same, images)
    assert torch.allclose(targets[1], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_mixing_leaves_the_global_generators_alone() -> None:
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    mix(
        torch.randn(4, 1, 4, 4, generator=seed()), torch.arange(4), Augment(mixup=1.0), classes=4, smoothing=0.0, seed=5
    )
    after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    draws = []

    def fails() -> None:
        with seeded(2**60 + 7):
            draws.append((random.random(), numpy.random.rand(), torch.rand(1).item()))  # noqa: NPY002
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):  # the states are restored after an error too
            fails()
    assert draws[0] == draws[1]
    assert torch.equal(before[2], torch.get_rng_state())


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match=r"batch of 5 is odd; make train\.batch even"):
        mix(torch.zeros(5, 1, 2, 2), torch.arange(5), Augment(cutmix=1.0), classes=5, smoothing=0.0, seed=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"shift": -1}, r"shift=-1"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"scale": 1.5}, r"scale=1\.5"),
        ({"color_jitter": 2.0}, r"color_jitter=2\.0"),
        ({"mixup": -1.0}, r"mixup=-1\.0"),
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, float], message: str) -> None:
    Augment(shift=7, scale=0.08, color_jitter=0.4, mixup=0.2, cutmix=1.0)
    with pytest.raises(InputError, match=message):
        Augment(**bad)  # type: ignore[arg-type]
