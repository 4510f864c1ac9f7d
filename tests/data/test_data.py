"""Data sets: real files in folders, seeded disjoint splits, training batches, and errors that name the file."""

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torchvision import datasets

from helpers.images import make_folder
from supernet import memory
from supernet.config import Augment, Data, DataSummary, from_dict
from supernet.data.augment import augment
from supernet.data.decode import decode
from supernet.data.folder import folder as list_folder
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.data.split import _statistics, split
from supernet.data.stream import Stream
from supernet.data.timm import _labels
from supernet.data.training import training_batches
from supernet.errors import InputError
from supernet.seeding import derive_seed


def test_digits_are_scikit_learns_scans() -> None:
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


@pytest.mark.parametrize("seed", range(5))
def test_few_held_out_images_have_the_shares_of_the_classes(seed: int) -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 25)
    pixels = torch.randint(0, 256, (125, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = split(Data("mine", seed=seed), pixels, labels, ("a", "b", "c"))
    assert splits.test.labels.bincount().tolist() == [10, 10, 5]
    assert splits.validation.labels.bincount().tolist() == [8, 8, 4]
    assert splits.train.labels.bincount().tolist() == [32, 32, 16]


def test_many_held_out_images_are_drawn_without_regard_to_their_class() -> None:
    labels = torch.arange(1000) % 3
    pixels = torch.zeros(1000, 3, 2, 2, dtype=torch.uint8)
    pixels[0] = 1
    counts = {
        tuple(split(Data("mine", seed=seed), pixels, labels, ("a", "b", "c")).test.labels.bincount().tolist())
        for seed in range(5)
    }
    assert len(counts) > 1


def test_a_summary_agrees_with_the_splits_and_survives_json() -> None:
    data = load(Data(size=8, calibration=100))
    summary = data.summary()
    assert from_dict(DataSummary, json.loads(json.dumps(dataclasses.asdict(summary)))) == summary
    assert (summary.classes, summary.in_channels, summary.size) == (data.classes, 1, 8)
    assert (summary.n_train, summary.n_calibration, summary.n_validation, summary.n_test) == (1150, 100, 288, 359)
    assert summary.digest == data.digest
    assert torch.equal(torch.tensor(summary.mean), data.train.mean.flatten())
    assert summary.preprocess() == data.preprocess()


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
    (make_folder(tmp_path / "hole") / "eel").mkdir()
    with pytest.raises(InputError, match=r"hole/eel holds no images; fill or remove it"):
        load(Data(str(tmp_path / "hole")))


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"what a file manager leaves")
    assert load(Data(str(tmp_path), size=6)).classes == ("cat", "dog")


def test_images_of_other_shapes_are_resized_then_cropped_at_the_centre(tmp_path: Path) -> None:
    make_folder(tmp_path)
    wide = Image.new("RGB", (40, 10), (255, 0, 0))
    wide.paste((0, 0, 255), (15, 0, 25, 10))  # the middle square
    wide.convert("P").save(tmp_path / "cat" / "wide.png")
    files = list_folder(tmp_path)
    row = [files.name(i).endswith("wide.png") for i in range(len(files))].index(True)
    pixels, _ = decode(files, torch.tensor([row]), Data(size=5))
    assert pixels.shape == (1, 3, 5, 5)
    assert pixels[0, :, 2, 2].tolist() == [0, 0, 255]


def test_every_unreadable_image_is_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=20)
    Image.new("RGB", (50, 50)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for i in range(7):
        (folder / "cat" / f"{i}.png").write_bytes([b"", b"no image", whole[: len(whole) // 2]][i % 3])
    with pytest.raises(
        InputError,
        match=r"7 images cannot be read: .*cat/0\.png .* and 2 more; repair .* data\.skip_unreadable=True",
    ):
        load(Data(str(folder), size=6))
    with pytest.warns(UserWarning, match=r"7 images cannot be read and are left out: .*cat/0\.png"):
        data = load(Data(str(folder), size=6, skip_unreadable=True))
    kept = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert kept.bincount().tolist() == [13, 20]
    for image in (folder / "cat").iterdir():
        image.write_bytes(b"no image")
    with (
        pytest.warns(UserWarning, match="20 images"),
        pytest.raises(InputError, match=r"no image in .*cat can be read"),
    ):
        load(Data(str(folder), size=6, skip_unreadable=True))


def test_an_error_about_too_many_images_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda: 20 * 3 * 6 * 6 * 6)  # to the byte
    load(Data(str(folder), size=6))
    with pytest.raises(InputError, match=r"20 images of 7×7 need .* lower data\.size, or set data\.stream=True"):
        load(Data(str(folder), size=7))


def test_a_size_that_memory_cannot_hold_is_refused_before_work() -> None:
    with pytest.raises(InputError, match=r"1797 images of 16384×16384 need .* lower data\.size"):
        load(Data("digits", size=16384))


def test_a_class_missing_from_training_is_named() -> None:
    pixels = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    labels = torch.zeros(40, dtype=torch.int64)
    labels[7] = 1  # a single image, either in training or held out
    for seed in range(12):  # a single image is trained on, wherever the draw puts it
        assert 1 in split(Data(seed=seed), pixels, labels, ("many", "one")).train.labels.tolist()
    alone = (pixels[:2], torch.tensor([0, 1]))
    with pytest.raises(InputError, match="test split has images of the class 'one'"):
        split(Data(), pixels, torch.zeros(40, dtype=torch.int64), ("many", "one"), alone)


def test_the_images_of_a_user_function_are_checked() -> None:
    pixels, labels, names = torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b")
    with pytest.raises(InputError, match="images are uint8"):
        split(Data(), pixels.float(), labels, names)
    with pytest.raises(InputError, match="images are uint8"):
        split(Data(), pixels[..., :1], labels, names)
    with pytest.raises(InputError, match="40 images need as many int64 labels"):
        split(Data(), pixels, labels[:39], names)
    with pytest.raises(InputError, match="from 0 to 1, and there are 1 classes"):
        split(Data(), pixels, labels, ("a",))
    with pytest.raises(InputError, match=r"validation=1\.5 should be less than 1"):
        Data(validation=1.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"size=0 should be greater than or equal to 1"),
        ({"workers": -1}, r"workers=-1 should be greater than or equal to 0"),
        ({"augment": Augment(shift=40)}, r"augment\.shift=40 should be less than size=32"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(**settings)


# -- sources ----------------------------------------------------------------------------------------------------------


def from_outside(config: Data) -> Splits:
    """The source "test_data:from_outside"."""
    labels = torch.arange(30) % 3
    return split(config, (labels * 80).to(torch.uint8).view(30, 1, 1, 1).expand(30, 1, 4, 4), labels, ("a", "b", "c"))


def no_splits(config: Data) -> str:
    return config.source


def test_a_user_function_is_a_source() -> None:
    data = load(Data("test_data:from_outside", validation=0.1, test=0.1))
    assert data.classes == ("a", "b", "c")
    assert torch.equal(data.train.pixels[:, 0, 0, 0].long(), data.train.labels * 80)
    with pytest.raises(InputError, match=r"'test_data:nothing' cannot be imported: .*PYTHONPATH"):
        load(Data("test_data:nothing"))
    with pytest.raises(InputError, match=r"'no_such_module:f' cannot be imported"):
        load(Data("no_such_module:f"))
    with pytest.raises(InputError, match="returned str; it should return the Splits"):
        load(Data("test_data:no_splits"))


def make_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes files in CIFAR-10's format, 5 × 10 training and 10 test images, and their checksums into torchvision."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        pixels = numpy.full((10, 3072), number * 20, dtype=numpy.uint8)
        pixels[:, :1024] = numpy.arange(10)[:, None] * 25  # red tells the class
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind{i}" for i in range(10)]}))
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )


@pytest.mark.parametrize("size", [32, 8])
def test_cifar_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    make_cifar(tmp_path, monkeypatch)
    data = load(Data("cifar10", root=str(tmp_path), size=size))
    assert data.classes[3] == "kind3"
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 10)
    assert data.train.pixels.shape == (40, 3, size, size)
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.labels * 25)
    assert (data.test.pixels[:, 2] == 100).all()  # the sixth file, which is the test split


def test_cifar_through_timm_is_read_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar(tmp_path, monkeypatch)
    data = load(Data("timm:torch/cifar10", root=str(tmp_path), calibration=8, workers=0))
    assert isinstance(data.train, Stream)
    assert data.classes[3] == "kind3"
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 10)
    images, labels = next(training_batches(data.train, Augment(), batch=20, seed=0))
    red = (images * data.train.std + data.train.mean)[:, 0, 0, 0] * 255
    assert torch.equal(red.round().long(), labels * 25)
    data.train.source.dataset.targets = torch.arange(10).repeat(5)  # type: ignore[union-attr]  # as in MNIST
    assert _labels(data.train.source.dataset).bincount().tolist() == [5] * 10  # type: ignore[union-attr]


def test_an_error_about_missing_cifar_names_root_and_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"cifar100 is not in the folder '{tmp_path}' .*data\.download=True"):
        load(Data("cifar100", root=str(tmp_path)))


# -- training batches -------------------------------------------------------------------------------------------------


def test_batches_are_consecutive_pieces_of_the_epochs_order() -> None:
    train = load(Data(size=8)).train
    steps = len(train) // 100
    batches = training_batches(train, Augment(), batch=100, seed=7)
    for epoch in range(2):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(derive_seed(7, "epoch", epoch)))
        for step in range(steps):
            images, labels = next(batches)
            index = order[step * 100 : (step + 1) * 100]
            assert torch.equal(labels, train.labels[index])
            assert torch.equal(images, train.normalize(train.pixels[index]))


def test_augmented_batches_are_a_function_of_seed_and_step() -> None:
    config, train = Augment(shift=2, flip=True), load(Data(size=8)).train
    plain = training_batches(train, Augment(), batch=50, seed=7, start=30)
    images, _ = next(training_batches(train, config, batch=50, seed=7, start=30))
    pixels = train.pixels[
        [(train.normalize(train.pixels) == image).all((1, 2, 3)).int().argmax() for image in next(plain)[0]]
    ]
    draws = torch.Generator().manual_seed(derive_seed(7, "augment", 30))
    assert torch.equal(images, train.normalize(augment(pixels, config, generator=draws)))
    other, _ = next(training_batches(train, config, batch=50, seed=8, start=30))
    assert not torch.equal(images, other)


def test_batches_resume_where_they_stopped_and_ranks_add_up() -> None:
    config, train = Augment(shift=2, flip=True, scale=0.3, color_jitter=0.4), load(Data(size=8)).train
    assert train.exact
    steps = len(train) // 128
    whole = training_batches(train, config, batch=128, seed=7)
    joint = [next(whole) for _ in range(2 * steps)]
    for rank in range(2):
        share = training_batches(train, config, batch=128, seed=7, start=steps - 2, rank=rank, world=2)
        for images, labels in joint[steps - 2 :]:
            mine, my_labels = next(share)
            assert torch.equal(mine, images[rank::2])
            assert torch.equal(my_labels, labels[rank::2])


def test_statistics_by_histogram_equal_those_in_float32() -> None:
    pixels = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.randperm(5000)[:4500]
    small = _statistics(pixels, index)
    large = _statistics(pixels, index, histogram_from=0)
    for direct, counted in zip(small, large, strict=True):
        assert torch.allclose(direct, counted, atol=1e-6)
        assert direct.shape == counted.shape == (3, 1, 1)


def test_all_splits_move_together() -> None:
    data = load(Data(size=8))
    moved = data.to("meta")
    for part in ("train", "calibration", "validation", "test"):
        assert getattr(moved, part).labels.device.type == "meta"
    assert (moved.digest, moved.classes, moved.size, moved.in_channels) == (data.digest, data.classes, 8, 1)
