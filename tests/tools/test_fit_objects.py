"""What `fit` makes of images with boxes, and of archives: parts, derived settings, safe unpacking."""

import io
import json
import tarfile
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from helpers.coco import make_coco
from helpers.scripts import Call, one_line
from supernet.errors import InputError
from supernet.files import read_json
from supernet_tools.fit import Fit
from supernet_tools.pipeline.choices import Budget, Settings, SourceFacts, Timing
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.derive import derive
from supernet_tools.pipeline.derive_objects import ANCHORS, object_recipe
from supernet_tools.pipeline.inspect_data import inspect_source
from supernet_tools.pipeline.objects import object_parts
from supernet_tools.pipeline.report import report_stage
from supernet_tools.pipeline.unpack import unpacked

CELLS = SourceFacts(
    "COCO",
    ("RBC", "WBC", "Platelets"),
    (2381, 214, 209),
    87,
    72,
    (480, 480, 480),
    3,
    n_boxed=205,
    places=("source=cells/train.json", "images=cells"),
    ratio=4 / 3,
    object_side=0.21,
)
TIMING = Timing(step=0.2, network_step=0.2, score=1.0, steps=51, spent=20, anchors=(0.7, 0.96, 0.965, 0.9, 0.6))


# -- parts ------------------------------------------------------------------------------------------------------------


def renamed(file: Path, to: Path) -> Path:
    """A file under another path."""
    to.parent.mkdir(parents=True, exist_ok=True)
    return file.rename(to)


def test_a_coco_set_is_found_by_its_names(tmp_path: Path) -> None:
    root = tmp_path / "cells"
    for name in ("train", "val"):
        renamed(make_coco(root, name=name), root / "annotations" / f"instances_{name}2017.json")
    (root / "annotations" / "captions_train2017.json").write_text('{"annotations": []}')
    parts = object_parts(root)
    assert parts is not None
    assert parts.layout == "COCO"
    assert parts.places == {
        "source": str(root / "annotations" / "instances_train2017.json"),
        "images": str(root),
        "validation_source": str(root / "annotations" / "instances_val2017.json"),
        "validation_images": str(root),
    }
    facts = inspect_source(str(root))
    assert (facts.classes, facts.counts) == (("cat", "dog", "tree"), (4, 4, 4))  # the crowd is no object
    assert (facts.images, facts.n_validation, facts.n_test) == (12, 12, 0)
    assert facts.ratio == pytest.approx(64 / 48, abs=1e-3)


def test_one_file_of_annotations_is_a_source_too(tmp_path: Path) -> None:
    file = make_coco(tmp_path)
    facts = inspect_source(str(file))
    assert facts.boxed
    assert facts.images == 12


def test_a_roboflow_export_has_annotations_beside_its_images(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        annotations = make_coco(tmp_path / "made", name=name)
        document = json.loads(annotations.read_text())
        for image in document["images"]:
            image["file_name"] = Path(image["file_name"]).name
        (tmp_path / "made" / name).rename(tmp_path / name)
        (tmp_path / name / "_annotations.coco.json").write_text(json.dumps(document))
    parts = object_parts(tmp_path)
    assert parts is not None
    assert parts.places["images"] == str(tmp_path / "train")
    assert parts.places["validation_source"] == str(tmp_path / "valid" / "_annotations.coco.json")


def test_tables_of_objects_are_found_by_their_columns_and_parts(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (64, 48)).save(tmp_path / name / f"{i}.jpg")
        rows = [f"{i}.jpg,64,48,{('cell', 'dust')[i % 2]},3,4,20,30" for i in range(3)]
        header = "filename,width,height,class,xmin,ymin,xmax,ymax"
        (tmp_path / name / "_annotations.csv").write_text("\n".join([header, *rows]))
    (tmp_path / "prices.csv").write_text("item,price\ncell,3\n")
    parts = object_parts(tmp_path)
    assert parts is not None
    assert parts.layout == "CSV"
    assert parts.places == {
        "source": str(tmp_path / "train" / "_annotations.csv"),
        "images": str(tmp_path / "train"),
        "validation_source": str(tmp_path / "valid" / "_annotations.csv"),
        "validation_images": str(tmp_path / "valid"),
    }
    facts = inspect_source(str(tmp_path))
    assert (facts.classes, facts.counts, facts.images, facts.n_validation) == (("cell", "dust"), (2, 1), 3, 3)
    assert inspect_source(str(tmp_path / "train" / "_annotations.csv")).boxed


def test_yolo_and_voc_are_found_and_folders_of_classes_are_not(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "my.yaml").write_text("names: [a]\ntrain: images/train\n")
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "voc" / "Annotations").mkdir()
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text("<annotation/>")
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("a\n")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "notes.json").write_text('{"images": 3}')
    yolo, voc = object_parts(tmp_path / "yolo"), object_parts(tmp_path / "voc")
    assert yolo is not None
    assert yolo.places == {"source": str(tmp_path / "yolo" / "my.yaml")}
    assert voc is not None
    assert voc.places == {"source": str(lists / "train.txt"), "validation_source": str(lists / "val.txt")}
    assert object_parts(tmp_path / "photos") is None


def test_what_is_ambiguous_or_missing_is_one_line(call: Call, tmp_path: Path) -> None:
    root = tmp_path / "two"
    for name in ("a", "b"):
        renamed(make_coco(root, name=name), root / f"instances_{name}.json")
    one_line(
        call("fit", root, "--out", tmp_path / "run"), "2 files of annotations for train images", "give one of them"
    )
    (tmp_path / "labels_only" / "labels").mkdir(parents=True)
    (tmp_path / "labels_only" / "images").mkdir()
    one_line(call("fit", tmp_path / "labels_only", "--out", tmp_path / "run"), "no data.yaml", "names, train and val")
    file = make_coco(tmp_path / "gone")
    for image in (tmp_path / "gone" / "train").iterdir():
        image.unlink()
    one_line(call("fit", file, "--out", tmp_path / "run"), "the image 'train/0.png'", "put the images into")
    (tmp_path / "prices.csv").write_text("item,price\ncell,3\n")
    one_line(
        call("fit", tmp_path / "prices.csv", "--out", tmp_path / "run"), "prices.csv", "for the box (xmin, ymin, xmax"
    )
    (tmp_path / "a.txt").write_text("x")
    one_line(call("fit", tmp_path / "a.txt", "--out", tmp_path / "run"), "a file that fit cannot read", "an archive")
    assert not (tmp_path / "run").exists()


# -- what is derived --------------------------------------------------------------------------------------------------


def test_another_space_of_backbones_keeps_its_own_settings() -> None:
    rows = {row.name: row for row in derive(CELLS, Budget(), {"space": "autoformer-tiny"}).rows}
    assert rows["space_settings"].value == ()
    rows = {row.name: row for row in derive(CELLS, Budget(), {}).rows}
    assert rows["space_settings"].value[0].startswith("widths=")


def test_every_choice_for_a_detector_has_a_reason_and_a_flag() -> None:
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(Fit)}
    for budget in (Budget(), Budget(timing=TIMING), Budget(pretrained="w.pth", model="resnet18", timing=TIMING)):
        for row in derive(CELLS, budget).rows:
            assert row.reason
            assert row.flag in flags


def test_a_detector_follows_from_objects_minutes_and_anchors() -> None:
    settings = derive(CELLS, Budget(timing=TIMING))
    assert settings["size"] == 120
    assert settings["anchor_scale"] == ANCHORS[1]  # smaller anchors that match as many objects
    left = 600 - 20 - 90 - settings["trials"] * 1.0  # after the timing, for export and report, and for the search
    assert settings["epochs"] == int(0.45 / 0.78 * left / (0.2 * 51))
    assert settings["trainings"] * settings["retrain_epochs"] * 0.2 * 51 <= 0.33 / 0.78 * left
    slow = derive(CELLS, Budget(timing=replace(TIMING, score=6.5)))  # 20 candidates take longer than their share
    assert slow["trials"] == 20
    assert slow["epochs"] == int(0.45 / 0.78 * (490 - 130) / (0.2 * 51))
    assert derive(CELLS, Budget(minutes=60))["size"] > 120
    small = derive(replace(CELLS, object_side=0.05), Budget(minutes=1))
    assert small["size"] * 0.05 >= 12
    config = object_recipe(CELLS, settings, pretrained="", factor=1.0, seed=3, device="cpu")
    assert (config.data.source, config.data.size, config.data.longest) == ("cells/train.json", 120, 160)
    assert config.lead == "auto"  # the plain units of the backbone (tests/training/test_lead.py)
    assert config.train.seed == 3
    overridden = derive(CELLS, Budget(timing=TIMING), {"size": 96, "anchor_scale": 5.0})
    assert isinstance(overridden, Settings)
    assert (overridden["size"], overridden["anchor_scale"]) == (96, 5.0)


def test_weights_of_a_network_become_an_elastic_backbone_under_an_ordinary_pyramid() -> None:
    settings = derive(CELLS, Budget(pretrained="lite0.pth", model="tf_efficientnet_lite0", timing=TIMING))
    config = object_recipe(CELLS, settings, pretrained="lite0.pth", factor=1.0, seed=0, device="cpu")
    assert (config.backbone, config.neck, config.start) == ("elastic", "fpn", "classification")
    assert (config.backbone_settings, config.sampler) == (("model=tf_efficientnet_lite0",), "sandwich")
    assert config.train.lr < DetectorRun().train.lr  # trained weights
    assert not list(config.conflicts())


# -- archives ---------------------------------------------------------------------------------------------------------


def tar_of(file: Path, *members: tuple[str, bytes, bytes], mode: str = "w") -> Path:
    """An archive of members: name, type and content, or the target of a link."""
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            archive.addfile(info, io.BytesIO(content))
    return file


FILES = (("photos/a/1.png", tarfile.REGTYPE, b"one"), ("photos/b/2.png", tarfile.REGTYPE, b"two"))


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz"), (".zip", "")])
def test_an_archive_is_unpacked_once(suffix: str, mode: str, tmp_path: Path) -> None:
    file = tmp_path / f"photos{suffix}"
    if mode:
        tar_of(file, *FILES, ("__MACOSX/photos/._1.png", tarfile.REGTYPE, b""), mode=mode)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name, _, content in FILES:
                archive.writestr(name, content)
    root = unpacked(file, tmp_path / "run")
    assert root == tmp_path / "run" / "unpacked" / "photos"
    assert {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")} == {
        "a/1.png": b"one",
        "b/2.png": b"two",
    }
    file.unlink()
    assert unpacked(file, tmp_path / "run") == root


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../x", tarfile.REGTYPE, b"1"), "leads out of its folder"),
        (("/tmp/x", tarfile.REGTYPE, b"1"), "leads out of its folder"),
        (("a/l", tarfile.SYMTYPE, b"/etc"), "a link or a device"),
        (("a/l", tarfile.LNKTYPE, b"photos/a/1.png"), "a link or a device"),
        (("a/l", tarfile.FIFOTYPE, b""), "a link or a device"),
        (("photos/a/1.png", tarfile.REGTYPE, b"again"), "cannot be unpacked"),
    ],
)
def test_nothing_of_an_archive_leaves_its_folder(
    member: tuple[str, bytes, bytes], words: str, call: Call, tmp_path: Path
) -> None:
    file = tar_of(tmp_path / "photos.tar", *FILES, member)
    one_line(call("fit", file, "--out", tmp_path / "run"), words)
    assert {entry.name for entry in tmp_path.iterdir()} == {"photos.tar"}


def test_a_refused_archive_leaves_no_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("out.zip", "w") as archive:
        archive.writestr("../x.png", b"x")
    one_line(call("fit", "out.zip"), "leads out of its folder")
    one_line(call("fit", "out.zip", "--out", "o/p"), "leads out of its folder")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "out.zip").read_bytes()[:40])
    one_line(call("fit", "cut.zip"), "cannot be unpacked")
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.zip", "cut.zip"}


def test_links_and_damage_in_other_archives_are_refused(tmp_path: Path) -> None:
    linked = zipfile.ZipInfo("a/l")
    linked.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as archive:
        archive.writestr(linked, "/etc")
    whole = tar_of(tmp_path / "w.tar.xz", *FILES, mode="w:xz").read_bytes()
    (tmp_path / "torn.tar.xz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.zip").write_bytes(b"no archive")
    for name, words in (
        ("l.zip", "a link"),
        ("torn.tar.xz", "unpacked"),
        ("no.zip", "unpacked"),
        ("x.zip", "no archive"),
    ):
        with pytest.raises(InputError, match=words):
            unpacked(tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- from images to an export -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_detector_is_trained_searched_raced_and_exported(call: Call, tmp_path: Path) -> None:
    import re

    file = make_coco(tmp_path / "shapes", images=24)
    few = ("--size", 48, "--epochs", 2, "--trials", 10, "--trainings", 2, "--retrain-epochs", 1)
    tiny = ("--space-settings", "widths=[16, 24, 32]", "stem=8", "depths=[1, 1, 1]")
    command = ("fit", file, "--out", tmp_path / "run", *few, *tiny)
    code, out, err = call(*command)
    assert code == 0, err
    assert "objects of each" in out
    result = read_json(tmp_path / "run" / "fit-result.json")
    assert (tmp_path / "run" / result["export"] / "model.py").is_file()
    page = report_stage(tmp_path / "run").read_text()
    assert "Not shown" not in page
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert {"classes", "held-out", "precision-recall", "race-0"} <= {plot["id"] for plot in plots}
    before = (tmp_path / "run" / "fit-result.json").read_bytes()
    assert call(*command)[0] == 0
    assert (tmp_path / "run" / "fit-result.json").read_bytes() == before
