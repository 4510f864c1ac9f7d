"""The benchmark of cuts of a trained network, from files to its table."""

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
