"""Streams: real files read by real worker processes, exact from any start; readers without random access."""

import multiprocessing
import os
import signal
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from helpers.images import make_folder
from supernet import memory as free
from supernet.config import Augment, Data
from supernet.data import steps
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.data.stream import Stream
from supernet.data.training import training_batches
from supernet.errors import InputError

EVERYTHING = Augment(shift=1, flip=True, scale=0.3, color_jitter=0.4)


def streamed(root: Path, **settings: Any) -> Splits:
    settings = {"size": 6, "workers": 0, "calibration": 8, **settings}
    return load(Data(str(root), stream=True, **settings))


def take(count: int, train: Any, augment: Augment = EVERYTHING, **options: Any) -> list[tuple[Tensor, Tensor]]:
    batches = training_batches(train, augment, batch=4, seed=3, **options)
    return [next(batches) for _ in range(count)]


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )


def test_a_stream_has_the_splits_of_the_same_folder_in_memory(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    memory, stream = load(Data(str(folder), size=6, calibration=8)), streamed(folder)
    assert isinstance(stream.train, Stream)
    assert len(stream.train) == len(memory.train) == 13
    assert stream.classes == memory.classes
    for part in ("calibration", "validation", "test"):
        assert torch.equal(getattr(stream, part).pixels, getattr(memory, part).pixels)
        assert torch.equal(getattr(stream, part).labels, getattr(memory, part).labels)
    assert (stream.size, stream.in_channels) == (6, 3)
    assert stream.preprocess().mean == pytest.approx((0.485, 0.456, 0.406))
    per_epoch = 13 // 4
    for (images, labels), (others, other_labels) in zip(
        take(2 * per_epoch, stream.train, Augment()), take(2 * per_epoch, memory.train, Augment()), strict=True
    ):
        assert torch.equal(labels, other_labels)  # the same images without augmentation
        back = (images * stream.train.std + stream.train.mean) * 255
        assert torch.equal(back.round(), ((others * memory.train.std + memory.train.mean) * 255).round())


def test_a_stream_is_exact_for_any_number_of_workers_and_any_start(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=12)
    alone, two = streamed(folder).train, streamed(folder, workers=2).train
    assert alone.exact
    whole = take(9, alone)
    assert same(take(9, two), whole)
    for start in (2, 5):
        assert same(take(9 - start, alone, start=start), whole[start:])
    assert same(take(4, two, start=5), whole[5:])
    assert not same(take(2, alone), [whole[3], whole[4]])  # another epoch varies its images differently


def test_ranks_add_up_to_the_joint_batch(tmp_path: Path) -> None:
    train = streamed(make_folder(tmp_path, images=12)).train
    joint = take(6, train)
    for rank in range(2):
        for (images, labels), (mine, my_labels) in zip(joint, take(6, train, rank=rank, world=2), strict=True):
            assert torch.equal(mine, images[rank::2])
            assert torch.equal(my_labels, labels[rank::2])


def test_streamed_images_are_varied_independently(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=12)
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(3, 24, 24)
    for file in folder.rglob("*.png"):
        Image.fromarray(ramp.permute(1, 2, 0).numpy()).save(file)  # all the same, so that only augmentation differs
    train = streamed(folder, size=24).train
    for config in (Augment(shift=3), Augment(flip=True), Augment(scale=0.2), Augment(color_jitter=0.5)):
        varied = {image.numpy().tobytes() for images, _ in take(6, train, config) for image in images}
        assert len(varied) == 2 if config.flip else len(varied) > 6
    unvaried = {image.numpy().tobytes() for images, _ in take(6, train, Augment()) for image in images}
    assert len(unvaried) == 1
    cropped = [image for images, _ in take(3, train, Augment(scale=0.2)) for image in images]
    assert all((image[0, :, -1] > image[0, :, 0]).all() for image in cropped)  # still a ramp, with other ends


def test_workers_leave_the_global_generator_alone(tmp_path: Path) -> None:
    train = streamed(make_folder(tmp_path), workers=2).train
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(1, train)
    assert torch.equal(torch.rand(1), expected)


def test_the_digest_covers_names_sizes_and_splits(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    first = streamed(folder).digest
    assert streamed(folder, workers=2).digest == first
    assert streamed(folder, seed=1).digest != first
    assert streamed(folder, size=7).digest != first
    with (folder / "cat" / "3.png").open("ab") as file:
        file.write(b"longer")
    longer = streamed(folder).digest
    (folder / "cat" / "3.png").rename(folder / "cat" / "3b.png")
    assert len({first, longer, streamed(folder).digest}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_of_a_stream_is_named(tmp_path: Path, workers: int) -> None:
    folder = make_folder(tmp_path, images=12)
    train = streamed(folder, workers=workers).train
    broken = Path(train.source.name(int(train.index[0])))  # type: ignore[index, union-attr]
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"the image {broken} cannot be read .* data\.skip_unreadable=True"):
        take(3, train)


def test_an_unreadable_file_of_a_stream_can_be_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=12)
    train = streamed(folder, workers=2, skip_unreadable=True).train
    for at in (0, 1):
        Path(train.source.name(int(train.index[at]))).write_bytes(b"")  # type: ignore[index, union-attr]
    with pytest.warns(UserWarning, match="cannot be read and are left out") as caught:
        readable = take(8, train)
    assert sum("left out" in str(warning.message) for warning in caught) <= 2  # each file once, in two epochs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(take(4, train, start=4), readable[4:])
    for i in range(len(train)):
        Path(train.source.name(int(train.index[i]))).write_bytes(b"")  # type: ignore[index, union-attr]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match=r"images cannot be read"):
        take(1, train)


def test_held_out_images_that_do_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    monkeypatch.setattr(free, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"15 images of 6×6 .* lower data\.validation"):
        streamed(folder)


# -- readers of timm --------------------------------------------------------------------------------------------------


def timm(source: str, root: Path, **settings: Any) -> Splits:
    settings = {"size": 6, "workers": 0, "calibration": 8, **settings}
    return load(Data(source, root=str(root), **settings))


def test_a_folder_through_timm(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", ("ant", "cat", "dog"))
    make_folder(tmp_path / "validation", ("cat", "dog"), images=4)  # timm would number them 0 and 1
    data = timm("timm:folder", tmp_path)
    assert data.classes == ("ant", "cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 8)
    assert data.test.labels.bincount().tolist() == [0, 4, 4]
    assert torch.equal(data.validation.pixels[:, 0, 0, 0].long(), data.validation.labels * 100)
    assert data.train.exact
    workers = timm("timm:folder", tmp_path, workers=2)
    assert same(take(4, workers.train, start=2), take(6, data.train)[2:])
    assert timm("timm:folder", tmp_path, validation_split="validation", test_split="").digest != data.digest


def test_a_tar_through_timm(tmp_path: Path) -> None:
    make_folder(tmp_path / "files")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "files", arcname="files")
    data = timm("timm:tar", tmp_path / "all.tar", test_split="", workers=2)
    assert (len(data.train), len(data.validation), len(data.test)) == (13, 3, 4)
    assert data.train.source.dataset.reader.tar_state.tf is None  # type: ignore[union-attr]  # no open file to share
    for images, labels in take(4, data.train, Augment()):
        pixels = (images * data.train.std + data.train.mean) * 255
        assert torch.equal(pixels[:, 0, 0, 0].round().long(), labels * 100)


def test_what_timm_cannot_open_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'timm:folder' reads files below data\.root, and there is no '/nowhere'"):
        timm("timm:folder", Path("/nowhere"))
    with pytest.raises(InputError, match=r"cannot open 'timm:torch/nothing'.*Unknown torchvision dataset nothing"):
        timm("timm:torch/nothing", tmp_path)
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", ("cat", "emu"))
    with pytest.raises(InputError, match=r"validation has the class 'emu', which .* train lacks"):
        timm("timm:folder", tmp_path)
    with pytest.raises(InputError, match=r"no split 'other' apart .* give data\.test_split another name, or ''"):
        timm("timm:folder", tmp_path / "train", test_split="other")
    make_folder(tmp_path / "both" / "train")
    make_folder(tmp_path / "both" / "val")
    with pytest.warns(UserWarning, match="both 'val': the final report will be on the images that chose"):
        timm("timm:folder", tmp_path / "both", validation_split="val", test_split="val")


# -- readers without random access ------------------------------------------------------------------------------------


class Reader:
    """Divides images among workers and knows its length and names, like timm's readers of web data sets."""

    def __init__(self, length: int, *, replicas: int | None = None) -> None:
        self.num_samples, self.class_to_idx, self.epoch = length, {"cat": 0, "dog": 1}, 0
        self.split_info = SimpleNamespace(filenames=["pictures-0.tar"])
        if replicas is not None:
            self.dist_num_replicas = replicas


class Numbers(IterableDataset[Any]):
    """Images whose red is their number; if the reader divides them, each worker of n gets every n-th."""

    def __init__(self, length: int, *, replicas: int | None = None) -> None:
        self.reader = Reader(length, replicas=replicas)

    def __len__(self) -> int:
        return self.reader.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.reader.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        worker = get_worker_info()
        shares = hasattr(self.reader, "dist_num_replicas") and worker is not None
        first, stride = (worker.id, worker.num_workers) if shares and worker else (0, 1)
        for i in range(first, len(self), stride):
            yield Image.new("RGB", (8, 8), (i, self.reader.epoch, 0)), i % 2


def iterated(length: int = 22, *, replicas: int | None = None, workers: int = 0) -> Stream:
    mean, std = torch.zeros(3, 1, 1), torch.full((3, 1, 1), 1 / 255)
    return Stream(lambda batch: Numbers(length, replicas=replicas), length, 6, 2, mean, std, workers=workers)


def reds(batches: list[tuple[Tensor, Tensor]], channel: int = 0) -> list[int]:
    return [int(value) for images, _ in batches for value in images[:, channel, 0, 0].round()]


@pytest.mark.parametrize("replicas", [None, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_of_a_reader_is_seen_once(replicas: int | None, workers: int) -> None:
    train = iterated(24, replicas=replicas, workers=workers)
    assert not train.exact
    batches = take(12, train, Augment())
    assert sorted(reds(batches[:6])) == list(range(24))
    assert reds(batches, 1) == [0] * 24 + [1] * 24  # the reader knows the epoch
    assert all(torch.equal(labels, images[:, 0, 0, 0].round().long() % 2) for images, labels in batches)


def test_a_reader_is_varied_by_seed_and_epoch() -> None:
    whole = take(15, iterated(workers=2))
    assert same(take(10, iterated(workers=2), start=5), whole[5:])
    first, second = ([(images[:, :1], labels) for images, labels in part] for part in (whole[:5], whole[5:10]))
    assert not same(first, second)  # without the channel that shows the epoch


def test_a_reader_resumes_only_at_the_start_of_an_epoch() -> None:
    with pytest.raises(InputError, match=r"a multiple of 5 steps, .* stopped at step 7"):
        training_batches(iterated(), Augment(), batch=4, seed=3, start=7)


def test_ranks_divide_a_reader_that_does_not_divide_itself() -> None:
    for replicas in (None, 1):
        seen = [reds(take(5, iterated(20, replicas=replicas), Augment(), rank=rank, world=2)) for rank in range(2)]
        assert [len(numbers) for numbers in seen] == [10, 10]
        assert sorted(seen[0] + seen[1]) == list(range(20))
    shared = reds(take(5, iterated(20, replicas=2), Augment(), rank=1, world=2))
    assert shared == list(range(10))  # this reader declares that it divides images among ranks itself


def test_readers_with_fewer_images_or_more_classes_than_declared_are_refused() -> None:
    mean = torch.zeros(3, 1, 1)
    empty = Stream(lambda batch: Numbers(0), 8, 6, 2, mean, mean + 1, workers=0)
    with pytest.raises(InputError, match="ended after 0 of the 2 steps"):
        take(1, empty)
    narrow = Stream(lambda batch: Numbers(8), 8, 6, 1, mean, mean + 1, workers=0)
    with pytest.raises(InputError, match="labels from 0 to 1 were read, and there are 1 classes"):
        take(1, narrow)


def test_an_iterable_reader_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.data

    calls: list[dict[str, Any]] = []

    def create(name: str, split: str, **options: Any) -> Numbers:
        calls.append({"name": name, "split": split, **options})
        return Numbers({"train": 22, "validation": 6, "test": 5}[split], replicas=1)

    monkeypatch.setattr(timm.data, "create_dataset", create)
    config = Data("timm:wds/pictures", size=6, workers=0, calibration=8, validation_split="test")
    data = load(config)
    assert (len(data.train), len(data.calibration), len(data.validation), len(data.test)) == (22, 8, 5, 6)
    assert data.classes == ("cat", "dog")
    assert data.calibration.pixels[:, 0, 0, 0].tolist() == list(range(8))
    assert not any(call.get("is_training") for call in calls)
    take(6, data.train)
    assert calls[-1] == calls[-2]  # opened again for each epoch
    assert calls[-1]["is_training"]
    assert (calls[-1]["batch_size"], calls[-1]["name"], calls[-1]["split"]) == (4, "wds/pictures", "train")
    with pytest.raises(InputError, match=r"name a split in data\.validation_split"):
        load(Data("timm:wds/pictures", size=6))


@pytest.mark.skipif(sys.platform == "win32", reason="signals processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_still_start_survive_a_signal(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal to the process group reaches them before they can ignore it, for instance on a busy machine."""
    ignore = steps._ignore_interrupts

    def slowly(worker: int) -> None:
        time.sleep(0.3)
        ignore(worker)

    monkeypatch.setattr(steps, "_ignore_interrupts", slowly)
    batches = iter(steps.worker_loader(Squares(), seed=0, workers=2, pin_memory=False, sampler=range(4)))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for _ in range(10):
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
        time.sleep(0.01)
    assert list(batches) == [0, 1, 4, 9]
    assert "Traceback" not in capfd.readouterr().err


class Squares(Dataset[int]):
    """Square numbers."""

    def __getitem__(self, number: int) -> int:
        return number**2
