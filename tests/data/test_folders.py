"""Folders of images as people keep them: splits under many names, links, other files, and one level too high."""

import contextlib
import itertools
import os
import shutil
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from helpers.images import make_folder
from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.data.split import split
from supernet.data.steps import torch_generator
from supernet.errors import InputError


def read(root: Path, **settings: object) -> Splits:
    return load(Data(str(root), **{"size": 6, "workers": 0, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "testing")]
)
def test_three_splits_are_used_under_any_name(tmp_path: Path, names: tuple[str, str, str], stream: bool) -> None:
    for name, images in zip(names, (10, 4, 3), strict=True):
        make_folder(tmp_path / name, images=images)
    data = read(tmp_path, stream=stream, calibration=5)
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 8, 6]


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Testing"])
def test_two_splits_are_training_and_test(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path / "TRAIN")
    make_folder(tmp_path / name, images=3)
    data = read(tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 6)


def test_folders_beside_the_splits_are_named_as_unused(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "extra")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "unlabelled.png")
    with pytest.warns(UserWarning, match="these folders beside them are not used: 'extra', 'test'"):
        assert len(read(tmp_path).test) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = read(make_folder(tmp_path, ("bus", "test", "train")))
    assert data.classes == ("bus", "test", "train")


def test_names_of_splits_are_no_classes_on_their_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'testing', 'training', which are names of splits and not of classes"):
        read(make_folder(tmp_path / "a", ("training", "testing")))
    make_folder(tmp_path / "b" / "test")
    with pytest.raises(InputError, match=r"'test', which are names of splits .* needs a folder 'train'"):
        read(tmp_path / "b")
    make_folder(tmp_path / "c" / "train")
    make_folder(tmp_path / "c" / "val")
    make_folder(tmp_path / "c" / "valid")
    with pytest.raises(InputError, match="two folders for the validation split, 'val' and 'valid'; rename one"):
        read(tmp_path / "c")
    make_folder(tmp_path / "d", ("bus", "car"))
    make_folder(tmp_path / "d" / "train", ("2020", "2021"))
    with pytest.raises(InputError, match=r"d/train may be the training split or a class beside 'bus', 'car'"):
        read(tmp_path / "d")


def test_a_level_too_high_offers_the_right_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "one" / "inside" / "flowers")
    with pytest.raises(
        InputError, match=r"one class only, 'inside'; is '.*one/inside/flowers' the folder of the classes"
    ):
        read(tmp_path / "one")
    make_folder(tmp_path / "two" / "flowers" / "train")
    make_folder(tmp_path / "two" / "flowers" / "test")
    make_folder(tmp_path / "two" / "cars")
    with pytest.raises(InputError, match=r"a level too high: .*; give '.*two/flowers'"):
        read(tmp_path / "two")


def test_links_are_followed_and_cycles_refused(tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", ("cat", "more"))
    root = make_folder(tmp_path / "root", ("dog",))
    (root / "cat").symlink_to(elsewhere / "cat")
    (root / "dog" / "more").symlink_to(elsewhere / "more")
    (root / "dog" / "again").symlink_to(elsewhere / "more")  # twice is no cycle
    data = read(root)
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 40
    (root / "dog" / "up").symlink_to(root / "dog")
    with pytest.raises(InputError, match=r"the link .*dog/up leads into a folder that it lies in itself"):
        read(root)
    (root / "dog" / "up").unlink()
    (root / "dog" / "up").symlink_to(root)
    with pytest.raises(InputError, match="leads into a folder that it lies in itself"):
        read(root)


def test_a_class_whose_link_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root")
    (root / ".hidden").symlink_to("nowhere")
    read(root)
    (root / "bird").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"root/bird is a link that leads nowhere; restore what it led to, or remove"):
        read(root)


def test_files_of_other_types_are_named_where_nothing_is_left(tmp_path: Path) -> None:
    for name in ("cat/a.gif", "cat/b.gif", "dog/c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"holds no images: .*; not read as images in .*: 3 \.gif \(cat/a\.gif\)"):
            read(tmp_path)


def test_what_is_not_read_is_counted_and_named_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.avif", "dog/._0.png", ".DS_Store", "readme.txt", "cat/noext"):
        (root / name).write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(root / "loose.png")
    with pytest.warns(UserWarning, match="not read as images in") as caught:
        read(root)
    (message,) = [str(warning.message) for warning in caught]
    for part in ("2 .heic (cat/a.HEIC)", "1 .avif (dog/c.avif)", "2 hidden (.DS_Store)", "1 .txt (readme.txt)"):
        assert part in message
    assert "1 beside the class folders (loose.png)" in message
    assert "1 without an extension (cat/noext)" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(make_folder(tmp_path / "clean"))


@pytest.mark.parametrize("place", ["class", "file", "root", "newline"])
def test_names_that_cannot_be_printed_are_refused_before_work(tmp_path: Path, place: str) -> None:
    odd = os.fsdecode(b"caf\xe9") if place != "newline" else "caf\ne"
    root = make_folder(tmp_path / (odd if place == "root" else "root"))
    if place == "class":
        (root / "cat").rename(root / odd)
    elif place != "root":
        (root / "cat" / "3.png").rename(root / "cat" / f"{odd}.png")
    with pytest.raises(
        InputError, match=r"the name .*caf\\(xe9|ne).* is not UTF-8 or holds control characters"
    ) as caught:
        read(root)
    str(caught.value).encode()
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scan = make_folder(tmp_path), os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"the folder .*dog cannot be read \(Permission denied\)"):
        read(root)


NAMES = ["train", "Train", "training", "val", "valid", "TEST", "testing", "cat", "dog", ".hidden", "caf\udce9", "a\nb"]
FILES = ["a.png", "b.JPG", "c.heic", ".d.png", "e", "f.png", "g.png", "caf\udce9.png"]


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_tree_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    """Trees of split names, classes, odd names, files of several kinds and links; some files are no images."""
    place = st.lists(st.sampled_from(NAMES), max_size=3)
    entry = st.tuples(place, st.sampled_from(FILES), st.integers(0, 9))
    picture = tmp_path_factory.mktemp("picture") / "a.png"
    Image.new("RGB", (6, 6), (9, 8, 7)).save(picture)
    pixels, number = picture.read_bytes(), itertools.count()
    base = tmp_path_factory.mktemp("trees")

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 100,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.lists(entry, max_size=14), st.booleans(), st.booleans())
    def check(entries: list[tuple[list[str], str, int]], stream: bool, skip: bool) -> None:
        root = base / str(next(number))
        root.mkdir()
        for parts, name, kind in entries:
            folder = root.joinpath(*parts)
            folder.mkdir(parents=True, exist_ok=True)
            if kind == 0:
                with contextlib.suppress(FileExistsError):
                    (folder / "link").symlink_to(root)
            else:
                (folder / name).write_bytes(b"no image" if kind == 1 else pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = read(root, stream=stream, skip_unreadable=skip, calibration=2)
                assert len(data.train) > 0
            except InputError as error:
                lines = str(error).encode().splitlines()
                if len(lines) != 1:
                    raise AssertionError(lines) from error
        shutil.rmtree(root)

    check()


# -- stratified splits ------------------------------------------------------------------------------------------------


def counts(data: Splits, classes: int) -> list[list[int]]:
    parts = (data.train.labels, data.validation.labels, data.test.labels)  # type: ignore[union-attr]
    return [torch.bincount(labels, minlength=classes).tolist() for labels in parts]


def labelled(labels: torch.Tensor, **settings: float) -> Splits:
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return split(Data(**settings), pixels, labels, classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_every_class_is_in_every_split_as_far_as_its_images_suffice(seed: int) -> None:
    labels = torch.tensor([0] * 80 + [1] * 3 + [2] * 2 + [3] + [4] * 4)
    data = labelled(labels, seed=seed)
    train, validation, test = counts(data, 5)
    assert min(train) > 0
    assert all(count > 0 for label, count in enumerate(validation) if label != 3)
    assert all(count > 0 for label, count in enumerate(test) if label not in (2, 3))
    assert (sum(validation), sum(test)) == (14, 18)
    everything = torch.cat([data.train.pixels, data.validation.pixels, data.test.pixels])[:, 0, 0, 0]
    assert everything.sort().values.tolist() == list(range(90))
    for part in (data.train, data.validation, data.test):
        assert torch.equal(labels[part.pixels[:, 0, 0, 0].long()], part.labels)  # type: ignore[union-attr]


def test_more_classes_than_held_out_images() -> None:
    train, validation, test = counts(labelled(torch.arange(60) % 20, validation=0.1, test=0.1), 20)
    assert min(train) > 0
    assert max(validation) == max(test) == 1


def test_a_draw_that_has_every_class_everywhere_stays() -> None:
    labels = torch.arange(250) % 2
    data = labelled(labels)
    order = torch.randperm(250, generator=torch_generator(0, "split"))
    drawn = [part[:, 0, 0, 0].tolist() for part in (data.test.pixels, data.validation.pixels, data.train.pixels)]  # type: ignore[union-attr]
    assert drawn == [part.tolist() for part in order.tensor_split([50, 90])]
