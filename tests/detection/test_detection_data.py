"""Detection data: real COCO files, boxes that stay on their objects, exact resume, and errors that name file and id."""

import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies
from PIL import Image

from detection.config import DetectionAugment, DetectionData
from detection.data import digits
from detection.data.augment import Resize, vary
from detection.data.batches import training_batches
from detection.data.coco import Annotations, read_annotations
from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits, load
from helpers.coco import Document, annotation, change, make_coco, mixed_coco, settings, write
from supernet.config import from_dict
from supernet.data.batches import Batches
from supernet.errors import InputError
from supernet.seeding import generator


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    pairs = (
        zip(first.values(), second.values(), strict=True)
        if isinstance(first, dict)
        else zip(first, second, strict=True)
    )
    return all(same(a, b) for a, b in pairs)


# -- annotation files -------------------------------------------------------------------------------------------------


def test_labels_follow_category_ids_and_boxes_their_corners(tmp_path: Path) -> None:
    read = read_annotations(make_coco(tmp_path), tmp_path)
    assert (read.classes, read.categories) == (("cat", "dog", "tree"), (3, 7, 90))
    assert read.ids.tolist() == list(range(100, 112))
    assert read.sizes.unique(dim=0).tolist() == [[48, 64]]
    first, third = read.target(0), read.target(2)
    assert first["labels"].tolist() == [2, 1]  # the crowd is first in the file
    assert first["boxes"].tolist() == [[30, 30, 50, 40], [4, 6, 20, 16]]
    assert first["crowd"].tolist() == [True, False]
    assert first["areas"].tolist() == [90, 80]  # of the object, not of its box
    assert third["labels"].tolist() == [3]
    assert read.name(2) == "train/2.png"


def test_images_without_boxes_are_kept_and_boxes_follow_their_images(tmp_path: Path) -> None:
    path = change(make_coco(tmp_path), lambda d: d["annotations"].reverse() or d["annotations"].pop(3))
    read = read_annotations(path, tmp_path)
    assert len(read) == 12
    assert len(read.target(8)["boxes"]) == 0
    assert read.target(9)["boxes"].tolist() == [
        [22, 15, 38, 34]
    ]  # the box of its file, although it is third in the list
    assert read.target(0)["crowd"].tolist() == [False, True]
    index = torch.tensor([8, 0, 5])
    part = read.subset(index)
    assert part.ids.tolist() == [108, 100, 105]
    for place, i in enumerate(index.tolist()):
        assert same(part.target(place), read.target(i))
    assert part.name(2) == "train/5.png"


def test_boxes_at_the_border_are_clipped_or_skipped_with_one_warning_each(tmp_path: Path) -> None:
    def spoil(document: Document) -> None:
        document["annotations"] = [
            annotation(1, 100, 3, [-5, 40, 20, 20]),
            annotation(2, 101, 3, [64, 10, 5, 5]),  # begins where the image ends
            annotation(3, 101, 3, [10, 10, 0, 5]),
            annotation(4, 102, 3, [10, 10, 20, -5]),
            annotation(5, 102, 3, [0, 0, 64, 48]),
        ]

    path = change(make_coco(tmp_path), spoil)
    with pytest.warns(UserWarning, match="inside|beyond their image") as caught:
        read = read_annotations(path, tmp_path)
    clipped, skipped = (str(warning.message) for warning in caught)
    assert clipped == f"1 boxes of {path} extend beyond their image and are clipped: annotation 1 (train/0.png)"
    assert skipped.startswith(
        f"3 boxes of {path} have no area inside their image and are skipped: annotation 2 (train/1"
    )
    assert read.boxes.tolist() == [[0, 40, 15, 48], [0, 0, 64, 48]]
    assert read.starts.tolist() == [0, 1, 1, *([2] * 10)]


def drop(key: str, part: str, number: int) -> Callable[[Document], None]:
    return lambda document: document[part][number].pop(key)


def put(part: str, number: int, **values: Any) -> Callable[[Document], None]:
    return lambda document: document[part][number].update(values)


SPOILED: dict[str, tuple[Callable[[Document], Any], str]] = {
    "no categories": (lambda d: d.pop("categories"), r"train\.json .* has no list 'categories'"),
    "none listed": (lambda d: d["categories"].clear(), r"train\.json lists no categories"),
    "no images": (lambda d: d["images"].clear(), r"train\.json lists no images"),
    "a category": (put("annotations", 2, category_id=4), r"annotation 1001 of .*train\.json has the category 4"),
    "an image": (put("annotations", 2, image_id=99), r"annotation 1001 of .*train\.json belongs to image 99"),
    "a list for a number": (put("annotations", 2, image_id=[1]), r"annotation 1001 .* belongs to image \[1\]"),
    "no box": (drop("bbox", "annotations", 3), r"annotation 1002 of .* has no bbox of four finite numbers"),
    "three numbers": (put("annotations", 3, bbox=[1, 2, 3]), r"annotation 1002 .* four finite numbers: \[1, 2, 3\]"),
    "not a number": (put("annotations", 3, bbox=[1, 2, 3, float("nan")]), r"annotation 1002 .* NaN\]"),
    "an area": (put("annotations", 3, area=None), "annotation 1002 .* the area null"),
    "image twice": (put("images", 1, id=100), r"train\.json uses the image id 100 twice"),
    "category twice": (put("categories", 1, id=7), r"train\.json uses the category id 7 twice"),
    "text for an id": (put("images", 1, id="b"), r'image 1 \(counted from 0\) of .* has the id "b"; ids are integers'),
    "no width": (drop("width", "images", 4), r"image 104 of .*train\.json needs a file_name, and height and width"),
    "missing": (put("images", 4, file_name="train/x.png"), r"1 of 12 images .* the first is image 104, train/x\.png"),
    "small": (
        put("images", 4, height=20),
        r"image 104 of .*train\.json, train/4\.png, has 64×20 pixels, .*min_side=32",
    ),
    "crowd in quotes": (put("annotations", 2, iscrowd="0"), 'annotation 1001 of .*json has iscrowd "0"; it is 0 for'),
    "crowd 7": (put("annotations", 2, iscrowd=7), "annotation 1001 of .* has iscrowd 7;"),
    "crowd null": (put("annotations", 2, iscrowd=None), "annotation 1001 of .* has iscrowd null;"),
    "image in quotes": (put("annotations", 2, image_id="101"), 'annotation 1001 of .* belongs to image "101", which'),
    "image true": (put("annotations", 2, image_id=True), "annotation 1001 of .* belongs to image true"),
    "category in quotes": (put("annotations", 2, category_id="3"), 'annotation 1001 of .* has the category "3", which'),
    "category a float": (put("annotations", 2, category_id=3.0), "annotation 1001 of .* has the category 3.0"),
    "annotation ids": (put("annotations", 2, id=1000), r"train\.json uses the annotation id 1000 twice"),
    "annotation id": (put("annotations", 2, id="x"), r'annotation 2 \(counted from 0\) of .* has the id "x"; ids are'),
    "float id": (put("images", 3, id=1.5), r"image 3 \(counted from 0\) of .*json has the id 1.5"),
    "null id": (put("images", 3, id=None), r"image 3 \(counted from 0\) of .*json has the id null"),
    "no id": (drop("id", "images", 3), r"image 3 \(counted from 0\) of .*json has no id"),
    "true as id": (put("categories", 0, id=True), r"category 0 \(counted from 0\) of .* has the id true"),
    "65 bits": (
        put("images", 3, id=2**63),
        r"image 3 \(counted from 0\) .* id 9223372036854775808; .* 64 bits",
    ),
    "box in quotes": (put("annotations", 3, bbox=["1", 2, 3, 4]), r'annotation 1002 .* numbers: \["1", 2, 3, 4\]'),
    "box of text": (put("annotations", 3, bbox="1234"), 'annotation 1002 .* numbers: "1234"'),
    "box true": (put("annotations", 3, bbox=[1, 2, True, 4]), r"annotation 1002 .* numbers: \[1, 2, true, 4\]"),
    "huge box": (put("annotations", 3, bbox=[1, 2, 10**400, 4]), r"annotation 1002 .* numbers: \[1, 2, 10000"),
    "negative area": (put("annotations", 3, area=-1), "annotation 1002 .* has the area -1; give square pixels"),
    "area in quotes": (put("annotations", 3, area="5"), 'annotation 1002 .* has the area "5"'),
    "null name": (put("categories", 0, name=None), "category 90 of .* has the name null"),
    "empty name": (put("categories", 0, name=" "), 'category 90 of .* has the name " "'),
    "equal names": (put("categories", 0, name="cat"), 'categories 90 and 3 of .*json have one name, "cat"'),
    "unused": (
        lambda d: d["categories"].extend({"id": i, "name": f"c{i}"} for i in range(1000, 6000)),
        r"train\.json lists 5,003 categories, and 5,000 of them have no annotation",
    ),
    "one file twice": (
        put("images", 3, file_name="train/./0.png"),
        r'images 100 and 103 of .*json have one file, "train/\./0\.png"',
    ),
    "no file name": (put("images", 3, file_name=""), r'image 103 of .* file_name "", which no file can have'),
    "outside": (put("images", 3, file_name="../x.png"), r'image 103 of .* file_name "\.\./x\.png"; .* inside it'),
    "outside in Windows": (put("images", 3, file_name="a\\..\\..\\x.png"), r"image 103 of .* stay inside it"),
    "absolute": (
        put("images", 3, file_name="/etc/secret.png"),
        r'103 of .* file_name "/etc/secret\.png"; .* relative',
    ),
    "a drive": (put("images", 3, file_name="C:\\x.png"), r"image 103 of .* are relative to the folder"),
    "long": (put("images", 3, file_name="n" * 300), 'image 103 of .* has the file_name "nnn.*too long'),
    "a zero byte": (put("images", 3, file_name="a\0.png"), "image 103 of .* which no file can have"),
    "half a character": (put("images", 3, file_name="\ud800.png"), "image 103 of .* which no file can have"),
    "line break": (put("images", 3, file_name="a\nb.png"), r'the first is image 103, "a\\nb\.png": name the folder'),
    "huge side": (put("images", 3, height=10**30), "image 103 of .* needs a file_name, and height and width"),
    "side true": (put("images", 3, height=True), "image 103 of .* needs a file_name, and height and width"),
    "null for an object": (lambda d: d["annotations"].append(None), r"entry 13 \(counted from 0\) .* is null, not an"),
    "shares": (
        lambda d: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in d["annotations"]],
        r"13 of 13 boxes of .*json lie between 0 and 1, .* \[0\.1, 0\.2, 0\.3, 0\.4\] of annotation 500 \(train/0",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_errors_in_annotations_are_named_before_any_work(tmp_path: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    with pytest.raises(InputError, match=message) as caught:
        load(settings(change(make_coco(tmp_path), spoil)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


EDGES = [2**63, 10**400, -1, 0, 100, 1000, "0", "", "3", "../x.png", "train/0.png", "n" * 300, "a\0b", "\ud800", "\x85"]
JSON = strategies.recursive(
    strategies.sampled_from([None, True, False, *EDGES])
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=9),
    lambda inner: strategies.lists(inner, max_size=5) | strategies.dictionaries(strategies.text(max_size=3), inner),
    max_leaves=5,
)
KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}


def read_spoiled(path: Path, data: strategies.DataObject) -> None:
    """Reads an annotation file with up to two values replaced by any others, which it may refuse in one line."""
    document = json.loads((path.parent / "train.json").read_text(encoding="utf-8"))
    for _ in range(data.draw(strategies.integers(1, 2))):
        part = data.draw(strategies.sampled_from(sorted(KEYS)))
        place = data.draw(strategies.integers(-1, len(document[part]) - 1))
        key, value = data.draw(strategies.sampled_from(KEYS[part])), data.draw(JSON)
        if place >= 0 and isinstance(document[part][place], dict):
            document[part][place][key] = value
        elif isinstance(document[part], list) and document[part]:
            document[part][place] = value
    message, read = "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = read_annotations(write(path, document), path.parent)
    except InputError as error:
        message = str(error)
    if read is None:
        assert len(message.splitlines()) == 1
        assert path.name in message
    else:
        assert read.boxes.isfinite().all()
        assert (read.areas.isfinite() & (read.areas >= 0)).all()
        assert len(set(read.names.tolist())) == len(set(read.ids.tolist())) == len(read)
        assert len(set(read.classes)) == len(read.classes) >= int(read.labels.max())


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    make_coco(folder, images=4)
    return folder / "spoiled.json"


@hypothesis.settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(strategies.data())
def test_any_value_is_read_or_refused_in_one_line(spoiled: Path, data: strategies.DataObject) -> None:
    read_spoiled(spoiled, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000, deadline=None, database=None)
@hypothesis.given(strategies.data())
def test_any_of_many_values_is_read_or_refused_in_one_line(spoiled: Path, data: strategies.DataObject) -> None:
    read_spoiled(spoiled, data)


def test_annotations_that_are_probably_mistakes_are_named_and_kept(tmp_path: Path) -> None:
    def spoil(document: Document) -> None:
        document["annotations"][3].update(bbox=[0.1, 0.2, 0.3, 0.4])
        document["annotations"].append({**document["annotations"][5], "id": 77})

    path = change(make_coco(tmp_path), spoil)
    with pytest.warns(UserWarning, match="within one pixel|equal an earlier") as caught:
        read = read_annotations(path, tmp_path)
    within, again = (str(warning.message) for warning in caught)
    assert within.endswith("shares of the image would: annotation 1002 (train/2.png)")
    assert again.startswith(f"1 annotations of {path} equal an earlier one")
    assert again.endswith(": annotation 77 (train/4.png)")
    assert len(read.boxes) == 14


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_other_programs_read_as_the_plain_one(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark, Windows' separators, true and false for numbers, and annotations without ids."""
    path = make_coco(tmp_path)
    plain = read_annotations(path, tmp_path).identity()

    def change_program(document: Document) -> None:
        for image in document["images"]:
            image["file_name"] = image["file_name"].replace("/", "\\")
        for item in document["annotations"]:
            item["iscrowd"] = bool(item["iscrowd"])
            del item["id"]

    change(path, change_program)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert read_annotations(path, tmp_path).identity() == plain


def test_files_without_annotations_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{'images': []}", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json cannot be read as annotations in COCO's layout: it is not JSON"):
        load(settings(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"images": [], "images": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r'a\.json cannot .*an object has the key "images" twice'):
        load(settings(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json cannot .* nested too deeply"):
        load(settings(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"images": ' + "1" * 5000 + "}", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json cannot .* it is not JSON"):
        load(settings(tmp_path / "a.json"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json is not a regular file"):
        load(settings(tmp_path / "pipe.json"))
    with pytest.raises(InputError, match=r"cannot be read \(File name too long"):
        load(settings(tmp_path / ("n" * 300)))
    with pytest.raises(InputError, match=r"b\.json cannot be read as annotations .* no list 'images'"):
        load(settings(write(tmp_path / "b.json", [1])))
    with pytest.raises(InputError, match=r"c\.json cannot be read \(No such file"):
        load(settings(tmp_path / "c.json"))
    with pytest.raises(InputError, match=r"12 of 12 images .* 'elsewhere'.*name the folder"):
        load(dataclasses.replace(settings(make_coco(tmp_path)), images="elsewhere"))


@pytest.mark.parametrize("memory", [0, 2**30])
def test_unreadable_images_and_wrong_sizes_are_named(tmp_path: Path, memory: int) -> None:
    path = make_coco(tmp_path)
    config = settings(path, memory=memory, test_source=str(path), validation_source=str(path))
    change(path, put("images", 2, width=60))
    with pytest.raises(InputError, match=r"2\.png \(id 102\) has 64×48 pixels, but 60×48 in its annotation file"):
        load(config)
    change(path, put("images", 2, width=64))
    (tmp_path / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png \(id 101\) cannot be read"):
        load(config)


def test_a_damaged_image_is_named_even_by_a_worker(tmp_path: Path) -> None:
    train = load(settings(make_coco(tmp_path), memory=0, validation=0.1, test=0.1)).train
    for i in range(12):
        (tmp_path / "train" / f"{i}.png").write_bytes(b"damaged later")
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^the image .*\.png \(id 1\d\d\) cannot be read"):
            next(training_batches(train, DetectionAugment(), batch=2, seed=0, workers=workers))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 16}, "size=16 should be at least min_side=32"),
        ({"longest": 20}, "longest=20 should be 0 or at least size=96"),
        ({"calibration": 0}, "calibration=0 should be greater than or equal to 1"),
        ({"validation": 1.0}, "validation=1.0 should be less than 1"),
        ({"mean": (0.5, 0.5, 0.5)}, "three values each"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, "should be greater than 0"),
        ({"augment": {"scale": (2.0, 1.0)}}, "the smaller factor first"),
        ({"augment": {"scale": (0.0, 1.0)}}, "should be greater than 0"),
        ({"compose": (5, 0, 5)}, "should be greater than or equal to 1"),
        ({"size": 24, "min_side": 8}, "a size of at least 32"),
        ({"compose": (5000, 1, 1)}, "too few to give each"),
    ],
)
def test_settings_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(from_dict(DetectionData, values))


# -- splits -----------------------------------------------------------------------------------------------------------


def ids(splits: DetectionSplits) -> dict[str, list[int]]:
    return {
        name: getattr(splits, name).annotations.ids.tolist() for name in ("train", "calibration", "validation", "test")
    }


def test_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    config = settings(make_coco(tmp_path, images=30), calibration=4)
    first, again, other = (ids(load(dataclasses.replace(config, seed=seed))) for seed in (0, 0, 1))
    assert first == again != other
    assert [len(part) for part in first.values()] == [19, 4, 5, 6]
    assert first["calibration"] == first["train"][:4]
    assert sorted(first["train"] + first["validation"] + first["test"]) == list(range(100, 130))


def test_a_summary_agrees_with_the_splits(tmp_path: Path) -> None:
    splits = load(settings(make_coco(tmp_path, images=30), calibration=4, size=40))
    summary = splits.summary()
    assert (summary.classes, summary.in_channels, summary.size) == (("cat", "dog", "tree"), 3, 40)
    assert (summary.n_train, summary.n_calibration, summary.n_validation, summary.n_test) == (19, 4, 5, 6)
    assert summary.digest == splits.digest
    assert torch.equal(torch.tensor(summary.std), splits.test.std.flatten())


def test_separate_splits_keep_the_training_labels(tmp_path: Path) -> None:
    train, held_out = make_coco(tmp_path), make_coco(tmp_path / "other", images=4, name="val")
    # The held-out images have no cats.
    change(
        held_out, lambda d: d["categories"].pop(1) and d["annotations"].pop(1) and d["annotations"].pop(3)
    )  # no cats
    config = settings(train, test_source=str(held_out), test_images=str(tmp_path / "other"))
    splits = load(config)
    assert [len(part) for part in ids(splits).values()] == [10, 10, 2, 4]
    assert splits.test.annotations.labels.tolist() == [2, 2, 3]
    with pytest.raises(InputError, match=r"4 of 4 images of .*val\.json are not in the folder"):
        load(dataclasses.replace(config, test_images=""))
    change(held_out, put("categories", 1, name="cow"))
    with pytest.raises(InputError, match=r"val\.json calls the category 7 'cow', but in the training .* 'dog'"):
        load(config)


def test_splits_without_boxes_and_unseen_classes_give_a_warning(tmp_path: Path) -> None:
    train, held_out = make_coco(tmp_path), make_coco(tmp_path, images=3, name="val")
    config = settings(train, validation_source=str(held_out))
    change(
        train,
        lambda d: d["annotations"].__setitem__(slice(None), [a for a in d["annotations"] if a["category_id"] != 3]),
    )
    with pytest.warns(UserWarning, match="no training image shows 1 classes of the held-out images: 'cat'"):
        load(config)
    change(held_out, lambda d: d["annotations"].__setitem__(slice(1, None), []))  # the crowd stays
    with pytest.warns(UserWarning, match=r"none of the 3 images of the validation split .* has a box .*: mAP is -1"):
        load(config)
    for file in (train, held_out):
        change(file, lambda d: d["annotations"].clear())
    with pytest.warns(UserWarning, match=r"none of the 10 images of the train split .* has a box to find") as warned:
        splits = load(config)
    assert sum("has a box to find" in str(warning.message) for warning in warned) == 3
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [10, 3, 2]
    assert len(splits.train.annotations.boxes) == 0


def test_the_digest_covers_contents(tmp_path: Path) -> None:
    path, picture = make_coco(tmp_path), tmp_path / "train" / "3.png"
    pixels = Image.open(picture).convert("RGB")
    pixels.save(picture, compress_level=0)
    size, digest = picture.stat().st_size, load(settings(path)).digest
    assert load(settings(path, memory=0)).digest == digest
    pixels.putpixel((60, 40), (1, 0, 0))
    pixels.save(picture, compress_level=0)
    assert picture.stat().st_size == size
    other = load(settings(path, memory=0)).digest
    change(path, lambda d: d["annotations"][3]["bbox"].__setitem__(0, 1))
    assert len({digest, other, load(settings(path)).digest}) == 3


def test_images_are_decoded_up_to_the_limit_and_read_later_beyond_it(tmp_path: Path) -> None:
    config = settings(make_coco(tmp_path), validation=0.2, test=0.2)
    limit = 12 * 3 * 64 * 48
    decoded, read = (load(dataclasses.replace(config, memory=memory)).train for memory in (limit, limit - 1))
    assert decoded.pixels is not None
    assert read.pixels is None
    for (a, i), (b, j) in zip(decoded.batches(5), read.batches(5), strict=True):
        assert same(a, b)
        assert same(i, j)
    corner = decoded.annotations.target(0)["boxes"][-1].long().tolist()
    assert decoded.image(0)[:, corner[1], corner[0]].sum() == 255  # the rectangle of its box
    assert decoded.image(0)[:, corner[1] - 1, corner[0]].sum() == 0


def test_normalisation_comes_from_the_calibration_images_or_the_settings(tmp_path: Path) -> None:
    config = settings(make_coco(tmp_path))
    splits = load(config)
    pixels = torch.stack([splits.calibration.seen(i) for i in range(len(splits.calibration))]).double() / 255
    assert torch.allclose(splits.train.mean.flatten().double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(splits.test.std.flatten().double(), pixels.std((0, 2, 3), correction=0), atol=1e-6)
    validation = load(dataclasses.replace(config, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))).validation
    images, _ = next(validation.batches(1))
    assert torch.allclose(images[0, 2] * 0.3 + 0.3, validation.seen(0)[2] / 255, atol=1e-6)


# -- sizes and variation ----------------------------------------------------------------------------------------------


def test_sizes_keep_the_aspect_ratio_or_become_square() -> None:
    assert Resize(320).of(480, 640) == (320, 320)
    assert Resize(800, 1333).of(480, 640) == (800, 1067)
    assert Resize(800, 1333).of(640, 480) == (1067, 800)
    assert Resize(800, 1333).of(300, 900) == (444, 1333)


def test_images_of_several_sizes_are_a_list_and_scored_in_groups_of_one_shape(tmp_path: Path) -> None:
    path = mixed_coco(tmp_path)
    part = load(settings(path, longest=64, validation_source=str(path), test_source=str(path))).test
    images, _ = next(part.batches(6))
    assert isinstance(images, list)
    assert {image.shape for image in images} == {(3, 32, 43), (3, 43, 32)}
    assert [group.tolist() for group in part.groups(2)] == [[0, 1], [2], [3, 4], [5]]
    kept, again = part.images(), part.subset(torch.tensor([4, 1])).images()
    assert all(map(torch.equal, next(kept.batches(6))[0], images))
    assert all(map(torch.equal, next(again.batches(2))[0], (images[4], images[1])))
    alike = Batches(part, 2, alike=True)
    assert [x.shape for x in alike] == [(2, 3, 32, 43), (1, 3, 32, 43), (2, 3, 43, 32), (1, 3, 43, 32)]
    assert torch.cat([alike.labels(number) for number in range(4)]).tolist() == [*range(6)]
    for i in range(6):
        height, width = images[i].shape[1:]
        seen = torch.tensor([width, height]) * part.scales[i]
        assert torch.allclose(seen.flip(0), part.annotations.sizes[i].double())


def bright(image: torch.Tensor) -> list[int]:
    """Returns the bounding box of the pixels whose red is at least 128."""
    mask = image[0] >= 128
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("resize", [Resize(80), Resize(60, 90)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 1.0), (1.0, 2.5), (0.5, 2.0)])
def test_boxes_stay_on_their_objects(resize: Resize, scale: tuple[float, float]) -> None:
    image = torch.zeros(3, 96, 128, dtype=torch.uint8)
    image[0, 20:60, 30:90] = 255
    target = {
        "boxes": torch.tensor([[30.0, 20, 90, 60], [0, 0, 9, 9]], dtype=torch.float64),
        "labels": torch.tensor([5, 9]),
        "crowd": torch.tensor([False, True]),
    }
    augment = DetectionAugment(flip=True, scale=scale)
    flipped = left_out = 0
    for trial in range(60):
        draws = torch.rand(4, generator=torch.Generator().manual_seed(trial))
        out, varied = vary(image, target, augment, resize, draws)
        assert out.shape[1:] == resize.of(96, 128)
        assert varied["boxes"].dtype == torch.float32
        if not len(varied["boxes"]):
            left_out += 1
            continue
        assert varied["labels"].tolist() == [5]
        assert torch.allclose(varied["boxes"][0], torch.tensor(bright(out)).float(), atol=1.01), (trial, draws)
        flipped += bool(draws[0] < 0.5)
    assert 10 < flipped < 50
    assert (left_out > 0) == (scale[1] >= 2)


def test_a_box_is_kept_if_its_centre_is() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 40, 40], [50, 50, 100, 100], [10, 10, 10.01, 20]]).double()
    target = {"boxes": boxes, "labels": torch.arange(1, 5), "crowd": torch.zeros(4, dtype=torch.bool)}
    _, varied = vary(image, target, DetectionAugment(scale=(2.0, 2.0)), Resize(100), torch.tensor([0.9, 0, 0, 0]))
    assert varied["labels"].tolist() == [2]  # the first box is centred on the border, the last is too thin
    assert varied["boxes"].tolist() == [[0, 0, 80, 80]]


# -- training batches -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed() -> DetectionSplits:
    return load(DetectionData(size=64, compose=(24, 8, 8), augment=DetectionAugment(flip=True, scale=(0.5, 1.5))))


def batches(train: DetectionSet, count: int, **more: Any) -> list[Any]:
    augment = DetectionAugment(flip=True, scale=(0.5, 1.5))
    return list(itertools.islice(training_batches(train, augment, **{"batch": 4, "seed": 0, **more}), count))


def test_batches_are_a_function_of_seed_and_step(composed: DetectionSplits) -> None:
    state = torch.get_rng_state()
    whole = batches(composed.train, 9)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(batches(composed.train, 4, start=5), whole[5:])
    assert same(batches(composed.train, 3, workers=2), whole[:3])
    assert not same(batches(composed.train, 1, seed=1), whole[:1])
    parts = zip(*(batches(composed.train, 3, rank=rank, world=2) for rank in (0, 1)), strict=True)
    for (first, second), (images, targets) in zip(parts, whole[:3], strict=True):
        assert torch.equal(torch.stack([first[0], second[0]], 1).flatten(0, 1), images)
        assert same([t for pair in zip(first[1], second[1], strict=True) for t in pair], targets)


def test_an_epoch_shows_every_image_once_and_varies_it_again(composed: DetectionSplits) -> None:
    plain = list(itertools.islice(training_batches(composed.train, DetectionAugment(), batch=4, seed=0), 12))
    seen = torch.cat([images for images, _ in plain])
    unvaried = torch.cat([images for images, _ in composed.train.batches(24)])
    for epoch in (seen[:24], seen[24:]):
        assert sorted(image.numpy().tobytes() for image in epoch) == sorted(
            image.numpy().tobytes() for image in unvaried
        )
    assert not torch.equal(seen[:24], seen[24:])
    single = composed.train.subset(torch.tensor([0]))
    assert len({images.numpy().tobytes() for images, _ in batches(single, 6, batch=1)}) == 6
    for image, target in zip(plain[0][0], plain[0][1], strict=True):
        place = int((unvaried == image).flatten(1).all(1).nonzero())
        assert torch.equal(target["boxes"], composed.train.annotations.target(place)["boxes"].float())
        assert torch.equal(target["labels"], composed.train.annotations.target(place)["labels"])


def test_crowds_are_not_training_boxes(tmp_path: Path) -> None:
    train = load(settings(make_coco(tmp_path), validation=0.1, test=0.1)).train
    place = train.annotations.ids.tolist().index(100)
    assert train.annotations.target(place)["crowd"].tolist() == [True, False]
    _, targets = next(training_batches(train, DetectionAugment(), batch=len(train), seed=0))
    assert [len(target["labels"]) for target in targets] == [1] * len(train)


# -- composed digits --------------------------------------------------------------------------------------------------


def test_composed_digits_fill_their_boxes() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    part = digits.compose(64, (20, 4, 4), seed=3)[0]
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i, (pixels, boxes) in enumerate(zip(part.pixels, part.boxes, strict=True)):
        rng = generator(3, "digits", 0, i)
        ground = torch.from_numpy(digits._background(rng.choice(photographs), 64, rng)).permute(2, 0, 1)
        changed = (pixels != ground).any(0)
        for x1, y1, x2, y2 in boxes.long().tolist():
            inside = changed[y1:y2, x1:x2].clone()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            changed[y1:y2, x1:x2] = False
        assert not changed.any()
    labels = torch.cat(part.labels) - 1
    assert torch.equal(labels, torch.from_numpy(load_digits().target)[torch.cat(part.scans)])


def test_no_scan_is_in_two_splits_and_the_digest_depends_on_the_seed() -> None:
    parts = digits.compose(64, (40, 20, 20), seed=0)
    used = [set(torch.cat(part.scans).tolist()) for part in parts]
    assert not used[0] & used[1] | used[0] & used[2] | used[1] & used[2]
    assert [len(part.pixels) for part in parts] == [40, 20, 20]
    assert 2 <= sum(map(len, parts[0].boxes)) / 40 <= 6
    config = DetectionData(size=48, compose=(24, 4, 4))
    first, again, other = (load(dataclasses.replace(config, seed=seed)) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.classes == tuple("0123456789")
    assert set(first.train.annotations.labels.tolist()) <= set(range(1, 11))


def test_annotations_from_arrays_equal_those_from_files(tmp_path: Path) -> None:
    read = read_annotations(make_coco(tmp_path), tmp_path).subset(torch.arange(1, 12))  # without the crowd
    targets = [read.target(i) for i in range(11)]
    built = Annotations.of(
        read.names,
        read.ids,
        read.sizes,
        [t["boxes"] for t in targets],
        [t["labels"] for t in targets],
        classes=read.classes,
    )
    assert all(same(built.target(i)[key], targets[i][key]) for i in range(11) for key in ("boxes", "labels", "crowd"))
    assert built.categories == (1, 2, 3)
