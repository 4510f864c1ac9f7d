"""Sizes, mosaics and balanced draws of training images are functions of seed and step alone, with their boxes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.config import DetectionAugment
from detection.data import DetectionSet, load
from detection.data.augment import FILL, joined
from detection.data.batches import grouped_by_format, image_weights, training_batches
from helpers.coco import change, make_coco, mixed_coco, settings
from supernet.errors import InputError


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> DetectionSet:
    """Twelve black images of 64×48 pixels with one red, green or blue rectangle each."""
    path = make_coco(tmp_path_factory.mktemp("coco"))
    whole = {"validation_source": str(path), "test_source": str(path), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return load(settings(path, size=48, longest=64, memory=2**20, **whole)).train


def _batches(data: DetectionSet, count: int, *, start: int = 0, **varied: Any) -> list[Any]:
    batches = training_batches(data, DetectionAugment(**varied), batch=4, seed=5, start=start)
    return [next(batches) for _ in range(count)]


def _same(first: Any, second: Any) -> bool:
    same_pixels = all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    return same_pixels and all(
        torch.equal(a[name], b[name]) for a, b in zip(first[1], second[1], strict=True) for name in a
    )


ALL = {"flip": True, "scale": (0.7, 1.3), "sizes": (32, 48, 64), "mosaic": 0.6, "balance": 0.5}


def test_a_batch_depends_on_its_step_alone(rectangles: DetectionSet) -> None:
    whole = _batches(rectangles, 8, **ALL)
    resumed = _batches(rectangles, 3, start=5, **ALL)
    assert all(_same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    sides = [{tuple(image.shape[1:]) for image in images} for images, _ in whole]
    assert all(len(step) == 1 for step in sides)
    assert set.union(*sides) == {(32, 43), (48, 64), (64, 85)}


def test_boxes_of_a_mosaic_lie_on_their_objects(rectangles: DetectionSet) -> None:
    colours = torch.eye(3)  # red is the label 1, green 2, blue 3
    seen = 0
    for images, targets in _batches(rectangles, 6, mosaic=1.0):
        for image, target in zip(images, targets, strict=True):
            assert image.shape == (3, 48, 64)
            visible = torch.zeros(48, 64, dtype=torch.bool)
            for box, label in zip(target["boxes"].round().long().tolist(), target["labels"].tolist(), strict=True):
                x1, y1, x2, y2 = box
                inside = image[:, y1:y2, x1:x2].flatten(1)
                assert torch.allclose(inside.mean(1), colours[label - 1], atol=0.05)
                visible[y1:y2, x1:x2] = True
                seen += 1
            assert len(target["labels"]) <= 4
            rest = image[:, ~visible].T
            black, fill = (rest - torch.zeros(3)).abs().amax(1), (rest - torch.tensor(FILL) / 255).abs().amax(1)
            unlabelled = (black.minimum(fill) > 0.02).double().mean()
            assert unlabelled < 0.16  # parts of objects whose centre is cut off
    assert seen > 8


def test_a_mosaic_clips_and_drops_boxes_by_their_centres() -> None:
    def part(value: int, *boxes: list[float]) -> tuple[Tensor, dict[str, Tensor]]:
        target = {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.full((len(boxes),), value)}
        return torch.full((3, 40, 40), value, dtype=torch.uint8), target

    parts = [part(1, [0.0, 0, 10, 10], [15, 15, 40, 40]), part(2, [0, 30, 12, 40]), part(3), part(4, [10, 10, 36, 14])]
    image, target = joined(parts, torch.tensor([0.5, 0.5]))  # the centre is at (20, 20)
    assert image[0, :20, :20].unique().tolist() == [1]
    assert image[0, 20:, 20:].unique().tolist() == [4]
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[0, 0, 20, 20], [20, 10, 32, 20]]


def test_images_with_rare_classes_are_drawn_more_often(tmp_path: Path) -> None:
    path = make_coco(tmp_path, images=20)

    def one_dog(document: dict[str, Any]) -> None:
        for entry in document["annotations"]:
            entry["category_id"] = 7 if entry["image_id"] == 119 else 3
            entry["iscrowd"] = 0

    change(path, one_dog)
    whole = {"validation_source": str(path), "test_source": str(path)}
    train = load(settings(path, **whole)).train
    weights = image_weights(train.annotations, 0.8)
    assert sorted(weights.tolist()) == [1.0] * 19 + [pytest.approx(4.0)]  # sqrt(0.8 / 0.05)
    dogs = sum(int((target["labels"] == 2).any()) for _, ts in _batches(train, 50, balance=0.8) for target in ts)
    assert 18 < dogs < 53  # 200 draws at 4 / 23; without weights there would be 10


def test_batches_are_in_one_format(tmp_path: Path) -> None:
    path = mixed_coco(tmp_path, images=10)
    whole = {"validation_source": str(path), "test_source": str(path)}
    data = load(settings(path, size=48, longest=64, memory=2**20, **whole)).train

    def formats(count: int, **varied: Any) -> list[set[tuple[int, int]]]:
        return [{tuple(image.shape[1:]) for image in images} for images, _ in _batches(data, count, **varied)]

    grouped = formats(15)  # three epochs: of 10 images each, two are left over and share a batch
    assert [sum(len(step) == 2 for step in grouped[epoch : epoch + 5]) for epoch in (0, 5, 10)] == [1, 1, 1]
    assert {frozenset(step) for step in grouped} >= {frozenset({(48, 64)}), frozenset({(64, 48)})}
    assert sum(len(step) == 2 for step in formats(15, aspect_groups=False)) > 6
    resumed = _batches(data, 2, balance=0.5)
    assert all(_same(a, b) for a, b in zip(_batches(data, 1, start=1, balance=0.5), resumed[1:], strict=True))


@pytest.mark.parametrize("batch", [3, 8])
def test_grouping_keeps_every_image_of_an_epoch(batch: int) -> None:
    images, landscape = torch.randperm(29, generator=torch.Generator().manual_seed(1)), torch.arange(29) % 4 != 0
    order = grouped_by_format(images, landscape, batch=batch, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order.sort().values, torch.arange(29))
    used = 29 // batch * batch
    assert torch.equal(order[used:], images[used:])
    mixed = [len(landscape[step].unique()) == 2 for step in order[:used].view(-1, batch)]
    assert sum(mixed) <= 1


def test_sizes_below_the_smallest_side_are_refused() -> None:
    with pytest.raises(InputError, match=r"augment\.sizes.* at least min_side=32"):
        settings(Path("a.json"), size=64, augment=DetectionAugment(sizes=(16, 64)))
