"""Data: real files in folders, seeded disjoint splits, augmentation, and errors that name the file."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from supernet.config import Data
from supernet.data import augment, load
from supernet.errors import InputError


def make_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 10) -> Path:
    """Solid-colour images, the colour telling class and number."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (20, 12), (label * 100, i, 50)).save(root / name / f"{i}.png")
    return root


def test_digits_are_the_real_scans() -> None:
    from sklearn.datasets import load_digits

    data = load(Data(size=8))
    everything = torch.cat([data.train.pixels, data.validation.pixels, data.test.pixels])
    assert len(everything) == 1797
    source = (torch.from_numpy(load_digits().images) / 16 * 255).round().to(torch.uint8)
    assert sorted(image.numpy().tobytes() for image in everything) == sorted(i.numpy().tobytes() for i in source)
    assert load(Data(size=16)).size == 16
    normal = data.train.normalize(data.train.pixels)
    assert abs(normal.mean()) < 1e-4
    assert abs(normal.std() - 1) < 1e-3


def test_splits_depend_on_the_seed_alone() -> None:
    first, same, other = load(Data(size=8)), load(Data(size=8)), load(Data(size=8, seed=1))
    assert first.digest == same.digest != other.digest
    assert torch.equal(first.validation.pixels, same.validation.pixels)
    sizes = [len(part) for part in (first.train, first.validation, first.test)]
    assert sizes == [1150, 288, 359]
    assert torch.equal(first.calibration.pixels, first.train.pixels[:640])


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = load(Data(str(make_folder(tmp_path)), size=6))
    assert data.classes == ("cat", "dog")
    assert data.train.pixels.shape[1:] == (3, 6, 6)
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.labels * 100)  # every image kept its own label
    seen = torch.cat(
        [part.pixels[:, 1, 0, 0].long() + part.labels * 100 for part in (data.train, data.validation, data.test)]
    )
    assert seen.unique().numel() == 20


def test_a_folder_with_its_own_test_split(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", ("dog",), images=3)  # its only class has number 1 in train
    data = load(Data(str(tmp_path), size=6))
    assert len(data.test) == 3
    assert data.test.labels.tolist() == [1, 1, 1]
    assert len(data.train) + len(data.validation) == 20


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data set '/nowhere'"):
        load(Data("/nowhere"))
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        load(Data(str(tmp_path / "empty")))
    with pytest.raises(InputError, match="one class only, 'cat'"):
        load(Data(str(make_folder(tmp_path / "single", ("cat",)))))
    few = make_folder(tmp_path / "few", images=1)
    with pytest.raises(InputError, match="too few"):
        load(Data(str(few)))
    broken = make_folder(tmp_path / "broken")
    (broken / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cat/3\.png cannot be read"):
        load(Data(str(broken)))
    make_folder(tmp_path / "more" / "train")
    make_folder(tmp_path / "more" / "test", ("cat", "emu"))
    with pytest.raises(InputError, match="'emu'"):
        load(Data(str(tmp_path / "more")))


def test_augmentation_moves_each_image_on_its_own() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 255
    pixels = image.expand(500, 1, 9, 9)
    moved = augment(pixels, shift=2, flip=False, generator=torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1).sum(1) == 255).all()  # nothing is lost within the margin
    spots = moved.flatten(1).argmax(1)
    rows, columns = spots // 9, spots % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 25
    again = augment(pixels, shift=2, flip=False, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    ramp = torch.arange(9, dtype=torch.uint8).expand(400, 1, 9, 9)
    flipped = augment(ramp, shift=0, flip=True, generator=torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0, 0] == 8).sum().item()
    assert 150 < mirrored < 250
    assert all(torch.equal(one, ramp[0]) or torch.equal(one, ramp[0].flip(-1)) for one in flipped)
