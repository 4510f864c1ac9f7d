"""Where labelled images come from: embedded scans, folders, torchvision's CIFAR, timm's readers; and their decoding."""

import hashlib
import itertools
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from supernet.config import Data
from supernet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged files; it has no class of its own for them."""

Labelled = tuple[Tensor, Tensor]
Problem = tuple[str, str]


class Source(Protocol):
    """Labelled images that can be read one by one, in any order and from several processes."""

    @property
    def labels(self) -> Tensor:
        """int64, (N,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of labels."""
        ...

    @property
    def threads(self) -> int:
        """How many threads of one process may read at a time."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        """An image in RGB and its label."""
        ...

    def name(self, index: int) -> str:
        """What a message calls this image."""
        ...

    def identity(self, index: Tensor) -> str:
        """Digest of the images at these positions, without decoding them."""
        ...


def check_memory(images: int, size: int, *, channels: int = 3, remedy: str) -> None:
    """Whether images would fit in memory once decoded.

    Raises:
        InputError: they need more than is free; it ends with `remedy`.
    """
    # Twice: the splits are copies. Statistics of up to 2**28 values are taken in float32, of more by counting levels.
    values = images * channels * size**2
    needed, free = 2 * values + 4 * min(values, 2**28), free_memory()
    if needed > free:
        raise InputError(
            f"{images} images of {size}×{size} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
            f"{remedy}"
        )


def free_memory() -> int:
    """Bytes that new data can take, counting caches that the system would give up for it where it tells of them."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


# -- decoding ---------------------------------------------------------------------------------------------------------


def fit(image: "Image.Image", size: int) -> Tensor:
    """An RGB image as uint8, (3, size, size): its shorter side resized to fit, then cropped at the centre."""
    from torchvision.transforms.v2 import functional as transforms

    pixels: Tensor = transforms.pil_to_tensor(image)
    if pixels.shape[-2:] != (size, size):
        pixels = transforms.center_crop(transforms.resize(pixels, [size], antialias=True), [size, size])
    return pixels


def decode(source: Source, index: Tensor, config: Data) -> Labelled:
    """Read images into memory, in the given order.

    Args:
        source: of the images.
        index: int64, (N,), positions in it.
        config: `size`, and whether unreadable images are left out (with a warning) or an error.

    Returns:
        pixels, uint8, (N, 3, size, size), and labels, int64, (N,); without those left out.

    Raises:
        InputError: images that cannot be read; it counts all of them and names the first.
    """
    pixels = torch.empty(len(index), 3, config.size, config.size, dtype=torch.uint8)
    readable = torch.ones(len(index), dtype=torch.bool)
    positions = index.tolist()

    def read(start: int) -> list[Problem]:
        problems = []
        for row in range(start, min(start + 64, len(positions))):
            try:
                pixels[row] = fit(source[positions[row]][0], config.size)
            except UNREADABLE as error:
                readable[row] = False
                problems.append(problem(source, positions[row], error))
        return problems

    with ThreadPoolExecutor(source.threads) as pool:
        problems = [one for some in pool.map(read, range(0, len(positions), 64)) for one in some]
    labels = source.labels[index]
    if not problems:
        return pixels, labels
    report_unreadable(problems, skip=config.skip_unreadable)
    return pixels[readable], labels[readable]


def problem(source: Source, index: int, error: Exception) -> Problem:
    """Name of an image that cannot be read, and why."""
    name = source.name(index)
    return name, str(error).replace(f" {name!r}", "")  # Pillow names the file again


def report_unreadable(problems: Sequence[Problem], *, skip: bool) -> None:
    """Warn of images that cannot be read, or raise `InputError`; either names the first and counts all."""
    shown = ", ".join(f"{name} ({why})" for name, why in problems[:5])
    shown += f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    if skip:
        warnings.warn(f"left out what cannot be read, {len(problems)} images: {shown}", stacklevel=3)
        return
    what = f"{len(problems)} images cannot be read: {shown}"
    if len(problems) == 1:
        what = f"the image {problems[0][0]} cannot be read ({problems[0][1]})"
    raise InputError(f"{what}; repair or remove what is damaged, or leave it out with --data.skip-unreadable")


# -- digits and CIFAR -------------------------------------------------------------------------------------------------


def digits(size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """scikit-learn's 1,797 scans: pixels, uint8, (N, 1, size, size), labels and class names."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.from_numpy(scans.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    if size != pixels.shape[-1]:
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return (pixels * 255).round().to(torch.uint8), torch.from_numpy(scans.target).long(), tuple("0123456789")


def cifar(config: Data) -> tuple[Tensor, Tensor, tuple[str, ...], Labelled]:
    """CIFAR-10 or CIFAR-100: pixels, labels, class names, and pixels and labels of its test split.

    Raises:
        InputError: the files are not in `config.root`, and fetching them is off or fails.
    """
    from torchvision import datasets
    from torchvision.transforms.v2.functional import resize

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    parts = []
    for train in (True, False):
        try:
            part = kind(config.root, train=train, download=config.download)
        except (RuntimeError, OSError) as error:
            remedy = "fetch it: --data.download"
            if config.download:
                remedy = "is the network there, and the folder writable?"
            raise InputError(f"the folder {config.root!r} holds no {config.source} ({error}); {remedy}") from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        if config.size != pixels.shape[-1]:
            check_memory(len(pixels), config.size, remedy="lower --data.size")
            side = [config.size, config.size]
            pixels = torch.cat([resize(some, side, antialias=True) for some in pixels.split(1000)])
        parts.append((pixels, torch.tensor(part.targets)))
    return *parts[0], tuple(part.classes), parts[1]


# -- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """The image files of a folder with one folder per class."""

    root: Path
    names: "numpy.ndarray[Any, numpy.dtype[numpy.bytes_]]"
    """Paths below the root. One array: a list of a million strings would be copied into every worker process."""
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = min(8, os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        from PIL import Image

        with Image.open(self.name(index)) as file:
            return file.convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        """Path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def identity(self, index: Tensor) -> str:
        """Digest of names, sizes and labels."""
        sha = hashlib.sha256()
        for i in index.tolist():
            sha.update(self.names[i] + f" {os.path.getsize(self.name(i))} {self.labels[i]}\n".encode())
        return sha.hexdigest()

    def numbered_as(self, classes: tuple[str, ...], other: Path) -> "Files":
        """With the labels that these names have in `other`. Raises `InputError` for a class that is not there."""
        return replace(self, labels=relabel(self, classes, where=(str(self.root), str(other))), classes=classes)


def relabel(source: Source, classes: tuple[str, ...], *, where: tuple[str, str]) -> Tensor:
    """Labels of a held-out source in the order of the training classes. Raises `InputError` for a class without one."""
    unknown = sorted(set(source.classes) - set(classes))
    if unknown:
        raise InputError(f"{where[0]} has the class {unknown[0]!r}, which {where[1]} lacks; the classes must agree")
    return torch.tensor([classes.index(name) for name in source.classes])[source.labels]


def folder(root: Path, *, fewest: int = 2) -> Files:
    """List a folder with one folder per class; names that start with a dot are passed over.

    Raises:
        InputError: no images, a class without images, or fewer than `fewest` classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = tuple(sorted(item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith(".")))
    found: list[tuple[tuple[str, ...], int]] = []
    for label, name in enumerate(classes):
        for place, folders, files in os.walk(root / name):
            folders[:] = [item for item in folders if not item.startswith(".")]
            parts = Path(place).relative_to(root).parts
            images = (file for file in files if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith("."))
            found += [((*parts, file), label) for file in images]
    if not found:
        raise InputError(f"{root} holds no images: it needs one folder per class with files such as .jpg or .png")
    present = {label for _, label in found}
    if len(present) < fewest:
        raise InputError(f"{root} holds images of one class only, {classes[found[0][1]]!r}; there is nothing to learn")
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise InputError(f"the class folder {root / empty[0]} holds no images; fill or remove it")
    found.sort()
    names = numpy.array([os.fsencode(os.path.join(*parts)) for parts, _ in found])
    return Files(root, names, torch.tensor([label for _, label in found]), classes)


# -- timm -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A data set of timm or torchvision with random access.

    Attributes:
        dataset: opened anew for every use: a reader of tar files keeps handles, which processes must not share.
        title: what messages call it.
    """

    dataset: Any
    title: str
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        from PIL import Image

        reader = getattr(self.dataset, "reader", None)
        if reader is None:  # of torchvision: decodes itself
            return self.dataset[index][0].convert("RGB"), int(self.labels[index])
        with reader[index][0] as file, Image.open(file) as image:  # timm's own __getitem__ silently takes the next one
            return image.convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        """The reader's name of an image where it has one."""
        try:
            return f"{self.title} {self.dataset.filename(index)}"
        except (AttributeError, AssertionError, KeyError):
            return f"{self.title} number {index}"

    def identity(self, index: Tensor) -> str:
        """Digest of the title and the positions."""
        return hashlib.sha256(f"{self.title} {len(self)} {index.tolist()}".encode()).hexdigest()


def open_timm(config: Data, split: str, **options: Any) -> Any:
    """A split of a "timm:…" source as timm's factory makes it.

    Raises:
        InputError: a package, the root or the split is missing; with what timm says about it.
    """
    from timm.data import create_dataset

    name = config.source.removeprefix("timm:")
    if "/" not in name and not Path(config.root).exists():  # timm asserts it without a word
        raise InputError(f"{config.source!r} reads files below data.root, and there is no {config.root!r}")
    try:
        dataset: Any = create_dataset(
            name, root=config.root, split=split, download=config.download, seed=config.seed, **options
        )
    except (ImportError, AssertionError, RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"timm cannot open {config.source!r}, split {split!r}, root {config.root!r}: {type(error).__name__}: "
            f"{error}; see the names of readers at timm.data.create_dataset"
        ) from error
    return dataset


def timm_reader(config: Data, split: str) -> Reader | None:
    """A split of a "timm:…" source with random access; None for a reader that can only be iterated over."""
    from torch.utils.data import IterableDataset

    dataset = open_timm(config, split)
    if isinstance(dataset, IterableDataset):
        return None
    labels = _labels(dataset)
    reader = getattr(dataset, "reader", None)
    threads = min(8, os.cpu_count() or 1) if reader is None or hasattr(reader, "samples") else 1
    if type(reader).__name__ == "ReaderImageInTar":
        threads = 1  # one position in the file for all
    return Reader(dataset, f"{config.source} {split}", labels, class_names(dataset, labels), threads)


def timm_factory(config: Data, split: str) -> Callable[[int], Any]:
    """What opens a training split for one epoch, given the images per batch: iterable readers round up to them."""
    return partial(_open_training, config, split)


def _open_training(config: Data, split: str, batch: int) -> Any:
    return open_timm(config, split, is_training=True, batch_size=batch)


def _labels(dataset: Any) -> Tensor:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        found: Iterable[Any] = getattr(dataset, "targets", ())
        if len(dataset) and not len(found):  # type: ignore[arg-type]
            found = (dataset[i][1] for i in range(len(dataset)))
    elif hasattr(reader, "targets"):
        found = reader.targets
    elif hasattr(reader, "iter_targets"):
        found = reader.iter_targets()
    else:
        found = [label for _, label in reader.samples]
    return torch.tensor([int(label) for label in found])


def class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """Names in the order of labels where the data set has some, numbers otherwise."""
    origin = getattr(dataset, "reader", dataset)
    numbers = getattr(origin, "class_to_idx", None) or getattr(origin, "class_name_to_idx", None) or {}
    names = {number: str(name) for name, number in reversed(numbers.items())}
    return tuple(names.get(number, str(number)) for number in range(max([*names, int(labels.max())]) + 1))


def images_in(dataset: Any) -> int:
    """Length of an iterable data set, before it is rounded up to whole batches per worker."""
    return int(getattr(getattr(dataset, "reader", None), "num_samples", 0) or len(dataset))


def decode_iterable(dataset: Any, config: Data, *, most: int | None) -> Labelled:
    """Read an iterable data set into memory, or its first `most` images: pixels and labels as in `decode`."""
    count = images_in(dataset) if most is None else most
    check_memory(count, config.size, remedy="lower data.size, or give a smaller split")
    pairs = [(fit(image.convert("RGB"), config.size), int(label)) for image, label in itertools.islice(dataset, most)]
    if not pairs:
        raise InputError(f"{config.source!r} yields no images for a split of {count}; is data.root complete?")
    return torch.stack([pixels for pixels, _ in pairs]), torch.tensor([label for _, label in pairs])
