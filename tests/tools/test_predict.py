"""Pictures of predictions never replace a file, and one unreadable image does not keep the others from being drawn."""

import csv
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detection.config import DetectorPreprocess
from helpers.scripts import Call, one_line
from supernet_tools import predict

TABLES = ("detections.csv", "detections.json")


class OneBox(nn.Module):
    """Detects the same box in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nn.Parameter(torch.tensor([[2.0, 2.0, 9.0, 9.0]]))

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        row = {"boxes": self.box, "scores": torch.ones(1), "labels": torch.ones(1, dtype=torch.int64)}
        return [row for _ in images]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a.png, a.jpg and the torn b.png, and a run whose network detects one box."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32), "gray").save(folder / name)
    (folder / "b.png").write_bytes(b"torn")
    settings = DetectorPreprocess(32, (0.5,) * 3, (0.5,) * 3, ("dog",), "bilinear", 64, (17,))
    monkeypatch.setattr(predict, "from_run", lambda _: (OneBox(), settings, None))
    return folder


def test_originals_and_earlier_pictures_are_never_overwritten(photographs: Path, call: Call, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in photographs.iterdir()}
    os.symlink(tmp_path / "planted", photographs / "a-2.png")
    names = [photographs / "a.png", photographs / "a.jpg"]
    for _ in range(2):
        code, out, err = call("predict", tmp_path, "--images", *names, "--out", photographs)
        assert code == 0, err
        assert out.count("wrote ") == 2
    assert {name: (photographs / name).read_bytes() for name in before} == before
    tables = {f"detections{place}.{ending}" for place in ("", "-2") for ending in ("json", "csv")}
    new = {path.name for path in photographs.iterdir()} - before.keys()
    assert new == {f"a-{i}.png" for i in range(2, 7)} | tables
    assert not (tmp_path / "planted").exists()


def test_an_unreadable_image_is_named_and_the_others_are_drawn(photographs: Path, call: Call, tmp_path: Path) -> None:
    names = [photographs / "b.png", photographs / "a.png"]
    code, out, err = call("predict", tmp_path, "--images", *names, "--out", tmp_path / "new")
    assert code == 2
    assert err.startswith("error: the image")
    assert err.count("error: ") == 1
    assert err.count("\n") == 3  # and the two tables
    assert "b.png" in err
    assert out.count("wrote ") == 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", *TABLES]
    one_line(call("predict", tmp_path, "--images", names[0], "--out", tmp_path / "none"), "b.png")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_work(photographs: Path, call: Call) -> None:
    picture = photographs / "a.png"
    for out in (picture, picture / "below"):
        one_line(call("predict", photographs, "--images", picture, "--out", out), "a.png", "--out")


def test_pictures_are_never_written_through_a_link_that_nobody_named(
    photographs: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A received folder may hold a link of the default name; one that is typed is meant."""
    victims = tmp_path / "victims"
    victims.mkdir()
    monkeypatch.chdir(photographs)
    os.symlink(victims, "predictions")
    one_line(call("predict", tmp_path, "--images", "a.png"), "'predictions' is a link", "--out")
    assert not list(victims.iterdir())
    assert call("predict", tmp_path, "--images", "a.png", "--out", photographs / "predictions")[0] == 0
    assert sorted(path.name for path in victims.iterdir()) == ["a.png", *TABLES]


def test_detections_of_a_folder_are_tables_in_pixels_of_the_image_as_shown(
    photographs: Path, call: Call, tmp_path: Path
) -> None:
    """The shorter side is seen at 32 pixels; a turned photograph has the sides that a viewer shows."""
    (photographs / "b.png").unlink()
    below = photographs / "below"
    below.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (64, 128), "gray").save(below / "turned.jpg", exif=exif)
    code, _, err = call("predict", tmp_path, "--images", photographs, "--out", tmp_path / "new")
    assert code == 0, err
    results = json.loads((tmp_path / "new" / "detections.json").read_text(encoding="utf-8"))
    assert [(Path(row["file_name"]).name, row["image_id"]) for row in results] == [
        ("a.jpg", 1),
        ("a.png", 2),
        ("turned.jpg", 3),
    ]
    assert all((row["category_id"], row["category"], row["score"]) == (17, "dog", 1.0) for row in results)
    assert [row["bbox"] for row in results] == [[2, 2, 7, 7], [2, 2, 7, 7], [4, 4, 14, 14]]
    assert Image.open(tmp_path / "new" / "turned.png").size == (384, 192)
    with (tmp_path / "new" / "detections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[float(row[corner]) for corner in ("x1", "y1", "x2", "y2")] for row in rows] == [
        [2, 2, 9, 9],
        [2, 2, 9, 9],
        [4, 4, 18, 18],
    ]
    assert rows[2]["file"] == str(below / "turned.jpg")


@pytest.mark.slow  # needs the extra "video"
def test_a_video_of_thirty_frames_is_detected_in_and_drawn(photographs: Path, call: Call, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from detection.video import encoded, frame_rate, frames

    clip = photographs / "clip.mp4"
    shades = [Image.new("RGB", (64, 48), (8 * number, 0, 255 - 8 * number)) for number in range(30)]
    clip.write_bytes(encoded(iter(shades), Fraction(15)))
    assert frame_rate(clip) == 15
    for read, shade in zip(frames(clip), shades, strict=True):
        assert read.shape == (3, 48, 64)
        assert (read.float().mean((1, 2)) - torch.tensor(shade.getpixel((0, 0))).float()).abs().max() < 8
    out = tmp_path / "out"
    code, said, err = call("predict", tmp_path, clip, photographs / "a.png", "--out", out)
    assert code == 0, err
    assert "clip.mp4: 30 frames, 30 boxes with a score from 0.5" in said
    rows = json.loads((out / "detections.json").read_text())
    assert [row["image_id"] for row in rows] == list(range(1, 32))
    assert [row["file_name"] for row in rows[:2]] == [f"{clip}#0", f"{clip}#1"]
    drawn = list(frames(out / "clip.mp4"))
    assert len(drawn) == 30
    assert drawn[0].shape == (3, 336, 448)
    code, said, err = call("predict", tmp_path, clip, "--every", 10, "--out", out)
    assert "clip-2.mp4: 3 frames" in said
    assert frame_rate(out / "clip-2.mp4") == Fraction(3, 2)
    (photographs / "torn.mp4").write_bytes(clip.read_bytes()[:200])
    code, said, err = call("predict", tmp_path, photographs / "torn.mp4", photographs / "a.png", "--out", out)
    assert code == 2
    assert "torn.mp4 cannot be read" in err
    assert "a-2.png: 1 of 1" in said
    (out / "none").mkdir()
    one_line(call("predict", tmp_path, clip, "--overlap", 0.3, "--out", out / "none"), "OneBox", "overlap")
