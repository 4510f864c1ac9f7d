"""Images from Python: arrays of numpy and torch, and data sets of torch, become the same splits as files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from supernet.config import Data
from supernet.data import load
from supernet.errors import InputError

N = 40
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (N, 3, 12, 12), dtype=np.uint8)
LABELS = np.arange(N) % 4
SMALL = Data(size=12, calibration=8)


def test_arrays_of_every_form_give_the_same_splits() -> None:
    expected = load((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)))
    assert (expected.size, expected.in_channels, expected.classes) == (12, 3, ("0", "1", "2", "3"))
    for images, labels in (
        (PIXELS, LABELS),
        (PIXELS.transpose(0, 2, 3, 1), LABELS.tolist()),
        (PIXELS.astype(np.int64), LABELS.astype(np.int32)),
        (PIXELS.astype(np.float32) / 255, torch.from_numpy(LABELS)),
    ):
        assert load((images, labels)).digest == expected.digest
    names = np.array(["daisy", "rose", "tulip", "aster"])[LABELS]
    assert load((PIXELS, names)).classes == ("aster", "daisy", "rose", "tulip")
    assert load((PIXELS, LABELS), classes=("a", "b", "c", "d")).classes == ("a", "b", "c", "d")


def test_gray_and_other_sizes_are_resized() -> None:
    gray = load((PIXELS[:, 0], LABELS), Data(size=8))
    assert (gray.in_channels, gray.size) == (1, 8)
    wide = load((PIXELS[:, :, :8], LABELS), SMALL)
    assert wide.size == 12
    assert len(wide.calibration) == 8


class Photographs(Dataset[tuple[Any, int]]):
    """A data set with names of its own."""

    classes = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(PIXELS[index].transpose(1, 2, 0)), int(LABELS[index])


def test_a_data_set_of_torch_and_a_folder_are_sources_too(tmp_path: Path) -> None:
    splits = load(Photographs())
    assert splits.classes == ("a", "b", "c", "d")
    assert splits.digest == load((PIXELS, LABELS)).digest
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS))
    assert load(tensors, Data(size=12)).digest == splits.digest
    for index in range(N):
        file = tmp_path / Photographs.classes[LABELS[index]] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[index].transpose(1, 2, 0)).save(file)
    assert load(tmp_path, SMALL).classes == splits.classes
    assert load(str(tmp_path), SMALL).digest == load(Data(str(tmp_path), size=12, calibration=8)).digest


@pytest.mark.parametrize("expression", ["(PIXELS, LABELS)", "Photographs()"])
def test_a_function_may_return_arrays_or_a_data_set(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_arrays_{abs(hash(expression))}"
    (tmp_path / f"{name}.py").write_text(f"from test_arrays import *\n\ndef images(config):\n    return {expression}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert load(Data(f"{name}:images", size=12)).digest == load((PIXELS, LABELS)).digest


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((PIXELS, LABELS[:-1]), "40 images and 39 labels"),
        ((PIXELS.astype(float), LABELS), r"numpy float64, \(40, 3, 12, 12\) from 0 to 255; floating-point images"),
        ((PIXELS.astype(np.int64) - 1, LABELS), "from -1 to 254; whole numbers are from 0 to 255"),
        ((PIXELS[:, :2], LABELS), r"should be \(N, H, W\), .* not numpy uint8, \(40, 2, 12, 12\)"),
        ((PIXELS[0, 0], LABELS), "should be"),
        ((PIXELS, LABELS - 1), "the label -1 is neither a whole number from 0 nor a text"),
        ((PIXELS, LABELS + 0.5), "the label 0.5"),
        (PIXELS, "a pair of images and labels"),
        ([PIXELS, LABELS], "a pair of images and labels"),
        (3, "a pair of images and labels"),
        ("nowhere", "there is no data set 'nowhere'"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_named(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(source)


def test_data_sets_that_fail_are_named() -> None:
    class Failing(Photographs):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 3:
                raise KeyError("torn")
            return super().__getitem__(index)

    class Single(Photographs):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    for dataset, words in ((Failing(), "the data set Failing failed"), (Single(), "item 0 of the data set Single is")):
        with pytest.raises(InputError, match=words):
            load(dataset)
    with pytest.raises(InputError, match="label 3 has no name"):
        load((PIXELS, LABELS), classes=("a", "b"))
    with pytest.raises(InputError, match="a config already"):
        load(Data(), Data())
