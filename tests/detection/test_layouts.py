"""One set of images in every layout of annotations gives the same training batches and figures."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detection.config import DetectionAugment, DetectionData
from detection.data.batches import training_batches
from detection.data.coco import read_annotations
from detection.data.layouts import layout_of, voc_document, yolo_document
from detection.data.load import DetectionSplits, load
from detection.data.table import is_table, table_document
from detection.metric import DetectionMetric
from helpers.coco import write
from supernet.errors import InputError

NAMES = ("cat", "dog", "tree")
Object = tuple[int, int, int, int, int]  # class from 0, x, y, width, height
XML = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
    "<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
)


def _objects(i: int) -> list[Object]:
    """Image i: none in every fifth, else one or two objects."""
    return [(i % 3, 2 + i, 3, 8 + i, 12), ((i + 1) % 3, 30, 10 + i % 7, 16, 9)][: 0 if i % 5 == 4 else 1 + i % 2]


def _voc(folder: Path, name: str, size: tuple[int, int], objects: list[Object], *, difficult: int = 0) -> None:
    items = [
        XML.format(name=NAMES[kind], difficult=difficult, x1=x + 1, y1=y + 1, x2=x + w, y2=y + h)
        for kind, x, y, w, h in objects
    ]
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    text = f"<annotation><filename>{name}.png</filename>{sides}{''.join(items)}</annotation>"
    (folder / f"{name}.xml").write_text(text, encoding="utf-8")


def _write(root: Path, *, images: int = 15) -> dict[str, str]:
    """Writes the set once with the annotations of all layouts; returns the source of each."""
    for folder in ("images", "labels", "Annotations"):
        (root / folder).mkdir(parents=True)
    listed: list[Any] = []
    annotations: list[Any] = []
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]  # as TensorFlow's and Roboflow's tables
    for i in range(images):
        name, size = f"{i:02d}", ((64, 64), (64, 32))[i % 2]
        picture, lines = Image.new("RGB", size), []
        for kind, x, y, w, h in _objects(i):
            picture.paste(((255, 0, 0), (0, 255, 0), (0, 0, 255))[kind], (x, y, x + w, y + h))
            shares = ((x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1])
            lines.append(f"{kind} " + " ".join(map(repr, shares)))
            box = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": kind + 1, "bbox": [x, y, w, h]}
            annotations.append(box)
            rows.append(f"{name}.png,{size[0]},{size[1]},{NAMES[kind]},{x},{y},{x + w},{y + h}")
        rows += [] if lines else [f"{name}.png,{size[0]},{size[1]},,,,,"]
        picture.save(root / "images" / f"{name}.png")
        if lines:  # an image without objects needs no file of labels
            (root / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _voc(root / "Annotations", name, size, _objects(i))
        listed.append({"id": i + 1, "file_name": f"{name}.png", "width": size[0], "height": size[1]})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    write(root / "coco.json", {"images": listed, "annotations": annotations, "categories": categories})
    (root / "data.yaml").write_text(f"train: images\nnc: 3\nnames: {list(NAMES)}\n", encoding="utf-8")
    (root / "objects.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    names = {"coco": "coco.json", "yolo": "data.yaml", "voc": "", "csv": "objects.csv"}
    return {layout: str(root / name) for layout, name in names.items()}


def _load(root: Path, source: str) -> DetectionSplits:
    folder = str(root / "images") if source.endswith(".json") else ""
    return load(DetectionData(source, folder, size=48, longest=80, calibration=4, seed=3))


def test_all_layouts_give_the_same_batches_and_figures(tmp_path: Path) -> None:
    sources = _write(tmp_path)
    assert {name: layout_of(source) for name, source in sources.items()} == {name: name for name in sources}
    splits = {name: _load(tmp_path, source) for name, source in sources.items()}
    augment = DetectionAugment(flip=True, scale=(0.5, 1.5))
    batches = {
        name: list(itertools.islice(training_batches(part.train, augment, batch=3, seed=1), 6))
        for name, part in splits.items()
    }
    assert sum(len(target["boxes"]) for _, targets in batches["coco"] for target in targets) > 10
    figures = {}
    for name, part in splits.items():
        assert part.classes == NAMES
        for (images, targets), (expected, expected_targets) in zip(batches[name], batches["coco"], strict=True):
            assert all(map(torch.equal, images, expected))
            for target, expected_target in zip(targets, expected_targets, strict=True):
                assert torch.equal(target["labels"], expected_target["labels"])
                torch.testing.assert_close(target["boxes"], expected_target["boxes"], rtol=0, atol=1e-4)
        metric = DetectionMetric(part.validation, every=True)
        noise = torch.Generator().manual_seed(2)
        rows = []
        for i in range(len(part.validation)):
            target = part.validation.annotations.target(i)
            boxes = target["boxes"] + torch.rand(target["boxes"].shape, generator=noise) * 4
            scores = torch.rand(len(boxes), generator=noise)
            seen = boxes / part.validation.scales[i].repeat(2)
            rows.append(
                metric.of_batch([{"boxes": seen, "scores": scores, "labels": target["labels"]}], torch.tensor([i]))
            )
        figures[name] = metric.combine(rows)
    assert figures["yolo"] == pytest.approx(figures["coco"])
    assert figures["voc"] == pytest.approx(figures["coco"])
    assert figures["csv"] == pytest.approx(figures["coco"])
    assert 0 < figures["coco"]["map"] < 1
    ids = {name: part.summary().category_ids for name, part in splits.items()}
    assert ids == {"coco": (1, 2, 3), "voc": (1, 2, 3), "yolo": (0, 1, 2), "csv": (1, 2, 3)}


def test_a_data_yaml_names_the_held_out_images_too(tmp_path: Path) -> None:
    _write(tmp_path)
    for split, count in (("train", 9), ("val", 4), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text(
            "".join(f"./images/{i:02d}.png\n" for i in range(count)), encoding="utf-8"
        )
    text = "train: train.txt\nval: val.txt\ntest: test.txt\nnames: {0: cat, 1: dog, 2: tree}\n"
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    part = _load(tmp_path, str(tmp_path / "data.yaml"))
    assert (len(part.train), len(part.validation), len(part.test)) == (9, 4, 2)


def test_difficult_objects_are_ignored_and_names_of_the_training_hold(tmp_path: Path) -> None:
    _write(tmp_path)
    held_out = tmp_path / "held"
    held_out.mkdir()
    _voc(held_out, "00", (64, 64), [(2, 3, 4, 20, 20)], difficult=1)
    _voc(held_out, "02", (64, 64), [(1, 3, 4, 20, 20)])
    source = str(tmp_path)
    config = DetectionData(
        source, size=48, calibration=4, test_source=str(held_out), test_images=str(tmp_path / "images")
    )
    test = load(config).test.annotations
    assert test.crowd.tolist() == [True, False]
    assert [NAMES[label - 1] for label in test.labels.tolist()] == ["tree", "dog"]
    assert test.boxes[0].tolist() == [3, 4, 23, 24]
    listing = tmp_path / "ImageSets" / "Main"
    listing.mkdir(parents=True)
    (listing / "few.txt").write_text("07  1\n02 -1\n", encoding="utf-8")
    document, _ = voc_document(listing / "few.txt", "")
    assert [image["file_name"] for image in document["images"]] == ["07.png", "02.png"]


OTHER_TABLES = {
    "corner and sides": "image_path;x;y;w;h;label\nimages/00.png;2,0;3;8;12,0\n".replace("12,0\n", "12,0;cat\n"),
    "without a header": "images/00.png,2,3,10,15,cat\n",
    "without a suffix": "image_id\tclass\tX_min\tY_min\tX_max\tY_max\nimages/00\tcat\t2\t3\t10\t15\n",
    "a mark and Windows' folders": "\ufeffName,file,x1,y1,x2,y2\r\ncat,images\\00.png,2,3,10,15\r\n",
}


@pytest.mark.parametrize("case", OTHER_TABLES)
def test_tables_of_other_programs(case: str, tmp_path: Path) -> None:
    _write(tmp_path, images=1)
    table = tmp_path / "other.csv"
    table.write_text(OTHER_TABLES[case], encoding="utf-8", newline="")
    assert is_table(table)
    document, folder = table_document(table, "")
    assert folder == tmp_path
    assert document["images"] == [{"id": 1, "file_name": "images/00.png", "width": 64, "height": 64}]
    assert [(item["bbox"], item["category_id"]) for item in document["annotations"]] == [([2, 3, 8, 12], 1)]
    assert document["categories"] == [{"id": 1, "name": "cat"}]


def test_a_table_of_held_out_images_has_the_classes_of_the_training(tmp_path: Path) -> None:
    sources = _write(tmp_path)
    held_out = tmp_path / "held.csv"
    held_out.write_text("image,xmin,ymin,xmax,ymax,class\n00.png,1,2,9,9,tree\n04.png,,,,,\n", encoding="utf-8")
    config = DetectionData(sources["csv"], size=48, calibration=4, test_source=str(held_out))
    test = load(config).test.annotations
    assert [NAMES[label - 1] for label in test.labels.tolist()] == ["tree"]
    assert len(test) == 2
    held_out.write_text("image,xmin,ymin,xmax,ymax,class\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"held\.csv names no image below its header"):
        load(config)
    held_out.write_text("image,xmin,ymin,xmax,ymax,class\n00.png,1,2,9,9,bird\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"held\.csv, line 2: the training annotations have no class 'bird'"):
        load(config)


def test_sizes_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    """The shares of a turned photograph refer to what the annotator saw."""
    _write(tmp_path, images=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 64)).save(tmp_path / "images" / "turned.jpg", exif=exif)
    document, folder = yolo_document(tmp_path / "data.yaml", "train")
    assert [(image["width"], image["height"]) for image in document["images"]] == [(64, 64), (64, 40)]
    assert folder == tmp_path / "images"


def _table(root: Path, *rows: str) -> None:
    text = "\n".join(("filename,xmin,ymin,xmax,ymax,class", *rows)) + "\n"
    (root / "objects.csv").write_text(text, encoding="utf-8")


Damage = Callable[[Path], object]
DAMAGED: dict[str, tuple[str, Damage, str]] = {
    "class": ("yolo", lambda r: (r / "labels/00.txt").write_text("7 .5 .5 .1 .1"), r"00\.txt has the class 7"),
    "pixels": ("yolo", lambda r: (r / "labels/00.txt").write_text("1 20 30 4 5"), r"00\.txt.*shares of the width"),
    "words": ("yolo", lambda r: (r / "labels/00.txt").write_text("1 .5 .5 .1"), r"object 1 of .*00\.txt is '1 \.5"),
    "folder": ("yolo", lambda r: (r / "data.yaml").write_text("train: nowhere\nnames: [a]"), "names 'nowhere'"),
    "device": (
        "yolo",
        lambda r: (r / "data.yaml").write_text("train: /dev/null\nnames: [a]"),
        "data.yaml names '/dev/null', which is neither a folder of images nor a .txt list",
    ),
    "no-names": ("yolo", lambda r: (r / "data.yaml").write_text("train: images"), "no `names` of classes"),
    "tag": ("yolo", lambda r: (r / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []"), "is not YAML"),
    "empty": ("yolo", lambda r: (r / "data.yaml").write_text("train: images\nnames: []"), "`names` of .* is empty"),
    "count": ("yolo", lambda r: (r / "data.yaml").write_text("train: images\nnc: 2\nnames: [a]"), "nc=2 and 1 names"),
    "xml": ("voc", lambda r: (r / "Annotations/00.xml").write_text("<annotation>"), r"00\.xml is not XML"),
    "entity": ("voc", lambda r: (r / "Annotations/00.xml").write_text("<!DOCTYPE x><annotation/>"), "defines entities"),
    "image": ("voc", lambda r: (r / "images/00.png").unlink(), r"the image of .*00\.xml is not in the folder"),
    "box": (
        "voc",
        lambda r: (r / "Annotations/00.xml").write_text("<annotation><object><name>cat</name></object></annotation>"),
        r"object 1 of .*00\.xml has no <bndbox>",
    ),
    "columns": (
        "csv",
        lambda r: (r / "objects.csv").write_text("filename,class\n00.png,cat\n"),
        r"objects\.csv cannot be .*no columns for the box among 'filename, class'.*xmin, ymin, xmax, ymax, or",
    ),
    "number": ("csv", lambda r: _table(r, "00.png,3,x,9,9,cat"), r"line 2: the box '3, x, 9, 9' is not four numbers"),
    "nan": ("csv", lambda r: _table(r, "00.png,3,nan,9,9,cat"), r"line 2: the box '3, nan, 9, 9' is not four numbers"),
    "class-less": ("csv", lambda r: _table(r, "00.png,3,3,9,9,"), r"line 2: the object has no class"),
    "image-less": ("csv", lambda r: _table(r, ",3,3,9,9,cat"), r"line 2: it names no image"),
    "gone": (
        "csv",
        lambda r: _table(r, "7.png,3,3,9,9,cat"),
        r"image '7\.png' of .*objects\.csv is not in the folder",
    ),
    "outside": (
        "csv",
        lambda r: _table(r, "../images/00.png,3,3,9,9,cat"),
        r"'\.\./images/00\.png'; .* stay inside",
    ),
    "shares": ("csv", lambda r: _table(r, "00.png,.3,.3,.9,.9,cat"), "between 0 and 1, as shares"),
    "no-object": ("csv", lambda r: _table(r, "00.png,,,,,"), "has no object in 1 images"),
    "no-row": ("csv", lambda r: (r / "objects.csv").write_text(""), "it is empty; it needs columns"),
    "header": ("csv", lambda r: _table(r), "names no image below its header"),
    "corner": (
        "voc",
        lambda r: _voc(r / "Annotations", "00", (64, 64), [(0, float("nan"), 3, 8, 12)]),  # type: ignore[list-item]
        r"object 1 of .*00\.xml has no <bndbox> of four numbers",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    layout, damage, message = DAMAGED[case]
    source = _write(tmp_path, images=2)[layout]
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        _load(tmp_path, source)


def test_images_in_two_splits_are_counted(tmp_path: Path) -> None:
    source = _write(tmp_path)["coco"]
    config = DetectionData(source, str(tmp_path / "images"), size=48, calibration=4, validation_source=source)
    with pytest.warns(UserWarning, match="15 of the 15 validation images are training images too"):
        load(config)


def test_a_json_file_is_still_read_as_coco(tmp_path: Path) -> None:
    sources = _write(tmp_path, images=3)
    assert len(read_annotations(Path(sources["coco"]), tmp_path / "images")) == 3
