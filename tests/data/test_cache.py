"""Decoded images kept on disk: nothing is decoded twice, changes of files are noticed, a full disk is survived."""

import multiprocessing
import os
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from detection.data.load import load as load_boxes
from helpers.coco import make_coco, settings
from helpers.images import make_folder
from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.errors import InputError


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that Pillow opens, by name."""
    names: list[str] = []
    open_image = Image.open

    def counting(file: str | Path, *args: object, **options: object) -> Image.Image:
        names.append(os.path.basename(file))
        return open_image(file, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting)
    return names


def equal(first: Splits, second: Splits) -> bool:
    parts = ("train", "calibration", "validation", "test")
    same = all(torch.equal(getattr(first, part).pixels, getattr(second, part).pixels) for part in parts)
    return same and first.summary() == second.summary()


def test_a_second_load_decodes_nothing_and_gives_the_same_splits(tmp_path: Path, decoded: list[str]) -> None:
    make_folder(tmp_path / "images" / "train")
    make_folder(tmp_path / "images" / "test", ("dog",), images=3)
    config, run = Data(str(tmp_path / "images"), size=6), tmp_path / "run"
    without = load(config)
    first = load(config, cache=run)
    assert len(decoded) == 2 * 23
    decoded.clear()
    second = load(config, cache=run)
    assert not decoded
    assert equal(without, first)
    assert equal(first, second)
    assert len(list(run.iterdir())) == 1
    other_seed = load(Data(str(tmp_path / "images"), size=6, seed=1, validation=0.4), cache=run)
    assert not decoded  # the splits have no influence on the pixels
    assert other_seed.digest != first.digest


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: Image.new("RGB", (20, 12)).save(root / "cat" / "new.png"),
    "removed": lambda root: (root / "dog" / "3.png").unlink(),
    "renamed": lambda root: (root / "dog" / "3.png").rename(root / "cat" / "13.png"),
    "other content": lambda root: Image.new("RGB", (20, 12), (0, 7, 50)).save(root / "cat" / "3.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_files_is_noticed(tmp_path: Path, decoded: list[str], change: str) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    before = load(Data(str(root), size=6), cache=run)
    CHANGES[change](root)
    decoded.clear()
    after = load(Data(str(root), size=6), cache=run)
    assert len(decoded) >= 19
    assert equal(after, load(Data(str(root), size=6)))
    assert after.digest != before.digest
    assert len(list(run.iterdir())) == 1  # the file is replaced


def test_content_of_the_same_length_is_told_by_its_time(tmp_path: Path) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    path = root / "cat" / "3.png"
    Image.new("RGB", (20, 12), (0, 3, 50)).save(path, compress_level=0)
    before, size = load(Data(str(root), size=6), cache=run), path.stat().st_size
    Image.new("RGB", (20, 12), (0, 4, 50)).save(path, compress_level=0)
    assert path.stat().st_size == size
    after = load(Data(str(root), size=6), cache=run)
    assert after.digest != before.digest
    assert equal(after, load(Data(str(root), size=6)))


def test_settings_that_decide_the_pixels_have_files_of_their_own(tmp_path: Path, decoded: list[str]) -> None:
    root, folder = make_folder(tmp_path / "images"), tmp_path / "decoded"
    copy = Path(shutil.copytree(root, tmp_path / "copy"))  # the same names, sizes and times
    Image.new("RGB", (20, 12), (0, 3, 51)).save(copy / "cat" / "3.png")
    times = (root / "cat" / "3.png").stat()
    os.utime(copy / "cat" / "3.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    configs = [Data(str(path), size=size, cache=str(folder)) for path in (root, copy) for size in (6, 7)]
    digests = [load(config).digest for config in configs]
    decoded.clear()
    assert [load(config).digest for config in configs] == digests
    assert not decoded
    assert len(set(digests)) == len(list(folder.iterdir())) == 4


def test_a_file_is_no_folder_for_decoded_images(tmp_path: Path, decoded: list[str]) -> None:
    root = make_folder(tmp_path / "photos")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache='.*file' is a file, not a folder; set it to 'auto', 'off' or"):
        load(Data(str(root), size=8, cache=str(tmp_path / "file")))
    assert not decoded


def test_the_cache_can_be_off(tmp_path: Path, decoded: list[str]) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    for _ in range(2):
        load(Data(str(root), size=6, cache="off"), cache=run)
    load(Data(str(root), size=6))
    assert len(decoded) == 60
    assert not run.exists()
    with pytest.raises(InputError, match=r"cache='' should be some text"):
        Data(str(root), size=6, cache="")


def test_images_left_out_are_reported_each_time(tmp_path: Path, decoded: list[str]) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    (root / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png cannot be read"):
        load(Data(str(root), size=6), cache=run)
    assert not run.exists()
    splits = []
    for _ in range(2):
        decoded.clear()
        with pytest.warns(UserWarning, match=r"1 images cannot be read and are left out: .*cat/3\.png"):
            splits.append(load(Data(str(root), size=6, skip_unreadable=True), cache=run))
    assert not decoded
    assert equal(*splits)
    kept = torch.cat([splits[1].train.labels, splits[1].validation.labels, splits[1].test.labels])  # type: ignore[union-attr]
    assert kept.bincount().tolist() == [9, 10]
    Image.new("RGB", (20, 12), (0, 3, 50)).save(root / "cat" / "3.png")
    assert len(load(Data(str(root), size=6), cache=run).test) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_file_is_replaced(tmp_path: Path, decoded: list[str], damage: str) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    first = load(Data(str(root), size=6), cache=run)
    (path,) = run.iterdir()
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-9], "empty": b"", "foreign": b"{}" * 99}[damage])
    decoded.clear()
    assert equal(first, load(Data(str(root), size=6), cache=run))
    assert len(decoded) == 20
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_gives_one_warning(tmp_path: Path) -> None:
    make_folder(tmp_path / "images" / "train")
    make_folder(tmp_path / "images" / "test")
    (tmp_path / "file").write_bytes(b"")
    config = Data(str(tmp_path / "images"), size=6)
    with pytest.warns(UserWarning, match=r"decoded images cannot be kept in .*file/run .*set data\.cache") as caught:
        splits = load(config, cache=tmp_path / "file" / "run")
    assert len(caught) == 1
    assert equal(splits, load(config))


def test_a_full_disk_gives_one_warning_and_leaves_nothing(tmp_path: Path) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # writing beyond it fails as on a full disk
    try:
        with pytest.warns(UserWarning, match="decoded images cannot be kept") as caught:
            splits = load(Data(str(root), size=6), cache=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caught) == 1
    assert not list(run.iterdir())
    assert equal(splits, load(Data(str(root), size=6)))


def test_room_for_checkpoints_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    size = 20 * (3 * 6 * 6 + 1)
    for free, kept in ((2 * size - 1, 0), (2 * size, 1)):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load(Data(str(root), size=6), cache=run)
        assert (len(caught), len(list(run.iterdir()))) == (1 - kept, kept)


def test_one_process_of_a_torchrun_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    monkeypatch.setenv("RANK", "1")
    load(Data(str(root), size=6), cache=run)
    assert not run.exists()
    monkeypatch.setenv("RANK", "0")
    load(Data(str(root), size=6), cache=run)
    assert len(list(run.iterdir())) == 1


def test_images_in_use_outlive_the_replacement_of_their_file(tmp_path: Path) -> None:
    root, run = make_folder(tmp_path / "images"), tmp_path / "run"
    load(Data(str(root), size=6), cache=run)
    mapped = load(Data(str(root), size=6), cache=run)
    digest = load(Data(str(root), size=6)).digest
    CHANGES["other content"](root)
    load(Data(str(root), size=6), cache=run)
    assert mapped.digest == digest
    assert torch.equal(mapped.test.pixels[:, 0, 0, 0].long(), mapped.test.labels * 100)


def test_two_processes_at_once(tmp_path: Path) -> None:
    root, run = make_folder(tmp_path / "images", images=60), tmp_path / "run"
    forking = multiprocessing.get_context("fork")  # the libraries are loaded already
    both, digests = forking.Barrier(2), forking.SimpleQueue()

    def read() -> None:
        torch.set_num_threads(1)
        both.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            digests.put(load(Data(str(root), size=24), cache=run).digest)

    processes = [forking.Process(target=read) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {digests.get(), digests.get()} == {load(Data(str(root), size=24)).digest}
    assert len(list(run.iterdir())) == 1


def test_detection_images_are_mapped_too(tmp_path: Path, decoded: list[str]) -> None:
    path, run = make_coco(tmp_path / "images"), tmp_path / "run"
    config = settings(path)
    without, first = load_boxes(config), load_boxes(config, cache=run)
    decoded.clear()
    second = load_boxes(config, cache=run)
    assert not decoded
    assert without.summary() == first.summary() == second.summary()
    assert all(torch.equal(first.train.image(i), second.train.image(i)) for i in range(len(first.train)))
    Image.new("RGB", (64, 48), (9, 9, 9)).save(tmp_path / "images" / "train" / "5.png")
    assert load_boxes(config, cache=run).digest == load_boxes(config).digest != first.digest
    load_boxes(settings(path, memory=0), cache=tmp_path / "other")
    assert not (tmp_path / "other").exists()  # images that are read while training are not decoded beforehand
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(second.train.batches(2))
