"""Image sets: decoded once to uint8 or streamed, split by seed, normalised and augmented in batches."""

import dataclasses
import hashlib
import importlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet import sources
from supernet.augment import augment as vary
from supernet.augment import check_augment
from supernet.config import Augment, Data, Preprocess
from supernet.errors import InputError
from supernet.seeding import derive_seed
from supernet.sources import Labelled, Source
from supernet.stream import Stream

Batch = tuple[Tensor, Tensor]

COUNTED = 2**28
"""Values from which on statistics are taken by counting levels: a float32 copy of larger sets could exhaust memory."""


@dataclass(frozen=True)
class Images:
    """Labelled images in memory and the normalisation that networks expect.

    Attributes:
        pixels: uint8, (N, C, H, W).
        labels: int64, (N,).
        mean, std: float32, (C, 1, 1), on the scale 0..1.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def exact(self) -> bool:
        """Whether a training batch is a function of seed and step alone: always."""
        return True

    def subset(self, index: Tensor) -> "Images":
        """The images at these positions, in this order."""
        return Images(self.pixels[index], self.labels[index], self.mean, self.std)

    def to(self, device: torch.device | str) -> "Images":
        """The same set in the memory of a device."""
        return Images(*(tensor.to(device) for tensor in (self.pixels, self.labels, self.mean, self.std)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to float32, zero mean and unit variance per channel."""
        return (pixels.float() / 255 - self.mean) / self.std

    def batches(self, size: int, *, drop_last: bool = False) -> Iterator[Batch]:
        """Normalised `(images, labels)` in order; with `drop_last` all of the same size."""
        stop = len(self) - len(self) % size if drop_last and len(self) >= size else len(self)
        for start in range(0, stop, size):
            end = min(start + size, stop)
            yield self.normalize(self.pixels[start:end]), self.labels[start:end]


@dataclass(frozen=True)
class Splits:
    """The four parts of a data set. `calibration` is drawn from `train`; the others are disjoint.

    Attributes:
        train: for gradients; in memory, or streamed from disk.
        calibration: for batch-norm statistics before an evaluation, not augmented.
        validation: for scores during a search.
        test: for the final report.
        classes: names in the order of labels.
        digest: 16 hex digits over pixels and labels of all parts; of a stream over the names and sizes of its files, or
            what else tells it from others without reading it.
    """

    train: Images | Stream
    calibration: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    digest: str

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.calibration.pixels.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.calibration.pixels.shape[-1]

    def preprocess(self) -> Preprocess:
        """What a network trained on this set expects of its input."""
        mean, std = (tuple(map(float, value.flatten())) for value in (self.calibration.mean, self.calibration.std))
        return Preprocess(self.size, mean, std, self.classes)

    def to(self, device: torch.device | str) -> "Splits":
        """The same splits in the memory of a device; a stream's batches are moved to it one by one."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "calibration", "validation", "test")}
        return dataclasses.replace(self, **parts)


# -- training batches -------------------------------------------------------------------------------------------------


def training_batches(
    train: Images | Stream, augment: Augment, *, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless training batches from step `start` on, an epoch being `len(train) // batch` steps.

    Args:
        train: shuffled anew in each epoch; the images left over at an epoch's end are dropped.
        augment: how images are varied, but for mixing, which is `supernet.augment.mix`.
        batch: images of a step over all processes.
        seed: of order and variation.
        start: step of the first batch. For a train split that is `exact` the batches from there on are the same as of
            an iterator that started earlier.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.

    Returns:
        of images, float32, (batch / world, C, H, W), normalised, and labels, int64, (batch / world,).

    Raises:
        InputError: a start within an epoch of a stream that cannot be positioned there; later on, see
            `Stream.batches`.
    """
    assert batch <= len(train)
    assert batch % world == 0
    place = {"batch": batch, "seed": seed, "start": start, "rank": rank, "world": world}
    pieces = train.batches(augment, **place) if isinstance(train, Stream) else _batches(train, augment, **place)
    return ((train.normalize(pixels), labels) for pixels, labels in pieces)


def _batches(
    train: Images, augment: Augment, *, batch: int, seed: int, start: int, rank: int, world: int
) -> Iterator[Batch]:
    steps = len(train) // batch
    epoch, order = -1, torch.empty(0)
    for step in itertools.count(start):
        if step // steps != epoch:
            epoch = step // steps
            order = torch.randperm(len(train), generator=_generator(seed, "epoch", epoch))
        position = step % steps
        index = order[position * batch : (position + 1) * batch][rank::world].to(train.labels.device)
        draws = _generator(seed, "augment", step)
        yield vary(train.pixels[index], augment, generator=draws, rank=rank, world=world), train.labels[index]


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


# -- loading ----------------------------------------------------------------------------------------------------------


def load(config: Data) -> Splits:
    """Read, decode and split a data set.

    Raises:
        InputError: a setting out of range, a source that is not there, a folder without images or with a class that
            lacks some, unreadable images, more images than fit in memory, or a split without images or without those of
            a class that another split has.
    """
    if config.calibration < 1 or config.size < 1 or config.workers < 0:
        raise InputError(
            f"data.calibration={config.calibration} and data.size={config.size} must be at least 1, "
            f"data.workers={config.workers} at least 0"
        )
    check_augment(config.augment, config.size)
    if config.source == "digits":
        return split(config, *sources.digits(config.size))
    if config.source in ("cifar10", "cifar100"):
        pixels, labels, classes, test = sources.cifar(config)
        return split(config, pixels, labels, classes, test)
    if config.source.startswith("timm:"):
        return _timm(config)
    if config.source and Path(config.source).is_dir():
        return _folder(config, Path(config.source))
    if re.fullmatch(r"[\w.]+:\w+", config.source):
        return _function(config)
    raise InputError(
        f"there is no data set {config.source!r}: data.source is 'digits', 'cifar10', 'cifar100', a folder with one "
        "folder per class, 'timm:NAME' or 'package.module:function'"
    )


def _function(config: Data) -> Splits:
    module, _, name = config.source.partition(":")
    try:
        function: Callable[[Data], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the data set {config.source!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    splits = function(config)
    if not isinstance(splits, Splits):
        raise InputError(f"{config.source!r} returned {type(splits).__name__}, not the Splits that `split` makes")
    return splits


def _folder(config: Data, root: Path) -> Splits:
    inner = root / "train" if (root / "train").is_dir() else root
    train, test = sources.folder(inner), None
    held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if inner != root and held is not None:
        test = sources.folder(held, fewest=1).numbered_as(train.classes, inner)
    if config.stream:
        return _streamed(config, train, None, test)
    images = len(train) + (0 if test is None else len(test))
    sources.check_memory(images, config.size, remedy="read them while training: --data.stream")
    pixels, labels = sources.decode(train, torch.arange(len(train)), config)
    lost = sorted(set(train.labels.tolist()) - set(labels.tolist()))
    if lost:
        raise InputError(f"no image in {inner / train.classes[lost[0]]} can be read; repair some or remove the folder")
    decoded = None if test is None else sources.decode(test, torch.arange(len(test)), config)
    return split(config, pixels, labels, train.classes, decoded)


# -- splitting --------------------------------------------------------------------------------------------------------


def split(
    config: Data, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], test: Labelled | None = None
) -> Splits:
    """Splits by seed of images in memory, for every source and for functions of one's own.

    Args:
        config: `seed`, and the shares of `validation` and `test`.
        pixels: uint8, (N, C, H, W), square.
        labels: int64, (N,), from 0.
        classes: names in the order of labels.
        test: pixels and labels of a test split of its own; otherwise it is held out of the images.

    Raises:
        InputError: images and labels that do not fit together, an empty split, or a class that `train` lacks and
            another split has.
    """
    for images, numbers in [(pixels, labels), *([test] if test is not None else [])]:
        if images.dtype is not torch.uint8 or images.dim() != 4 or images.shape[-1] != images.shape[-2]:
            raise InputError(f"images are uint8, (N, C, size, size), not {images.dtype}, {tuple(images.shape)}")
        if numbers.shape != images.shape[:1] or numbers.dtype is not torch.int64:
            raise InputError(
                f"{len(images)} images need as many int64 labels, not {numbers.dtype}, {tuple(numbers.shape)}"
            )
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(classes):
            raise InputError(
                f"labels are from {int(numbers.min())} to {int(numbers.max())}, and there are {len(classes)} classes"
            )
    index = _split_index(config, labels, classes, None if test is None else test[1])
    mean, std = _statistics(pixels, index["train"])
    everything = Images(pixels, labels, mean, std)
    parts = {
        "train": everything.subset(index["train"]),
        "calibration": everything.subset(index["train"][: config.calibration]),
        "validation": everything.subset(index["validation"]),
        "test": everything.subset(index["test"]) if test is None else Images(*test, mean, std),
    }
    sha = hashlib.sha256()
    for part in parts.values():
        for tensor in (part.pixels, part.labels):
            sha.update(tensor.contiguous().numpy().data)  # the buffer itself: a copy could exhaust the memory
    return Splits(**parts, classes=classes, digest=sha.hexdigest()[:16])


def _split_index(
    config: Data, labels: Tensor, classes: tuple[str, ...], test: Tensor | None, validation: Tensor | None = None
) -> dict[str, Tensor]:
    """Positions in the training images per split, by seed; none are held out for a split with labels of its own."""
    for name, share in (("validation", config.validation), ("test", config.test)):
        if not 0 <= share < 1:
            raise InputError(f"data.{name}={share} is a share of the images, at least 0 and less than 1")
    order = torch.randperm(len(labels), generator=_generator(config.seed, "split"))
    n_test = 0 if test is not None else round(config.test * len(order))
    n_validation = 0 if validation is not None else round(config.validation * (len(order) - n_test))
    index = dict(zip(("test", "validation", "train"), order.tensor_split([n_test, n_test + n_validation]), strict=True))
    held = {
        "validation": labels[index["validation"]] if validation is None else validation,
        "test": labels[index["test"]] if test is None else test,
    }
    if min(len(index["train"]), *map(len, held.values())) == 0:
        raise InputError(
            f"{config.source!r} has {len(labels)} images: too few for validation={config.validation} and "
            f"test={config.test}; every split needs at least one"
        )
    known = set(labels[index["train"]].tolist())
    for name, numbers in held.items():
        missing = sorted(set(numbers.tolist()) - known)
        if missing:
            raise InputError(
                f"the {name} split has images of the class {classes[missing[0]]!r} and the training split has none: "
                f"more classes in {name} than in train; add images of it, or try another data.seed"
            )
    return index


def _statistics(pixels: Tensor, index: Tensor) -> Batch:
    """Mean and deviation per channel, (C, 1, 1), on the scale 0..1."""
    channels = pixels.shape[1]
    if len(index) * pixels[0].numel() <= COUNTED:
        scaled = pixels[index].float().div_(255)
        mean, std = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3))
    else:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for some in index.split(4096):
            for channel in range(channels):
                counts[channel] += torch.bincount(pixels[some, channel].flatten(), minlength=256)
        total = counts.sum(1, keepdim=True)
        center = (counts * levels).sum(1, keepdim=True) / total
        deviation = ((counts * (levels - center) ** 2).sum(1) / (total[:, 0] - 1)).sqrt()
        mean, std = center[:, 0].float(), deviation.float()
    return mean.view(-1, 1, 1), std.view(-1, 1, 1).clamp_min(1e-3)


# -- streams ----------------------------------------------------------------------------------------------------------


def _timm(config: Data) -> Splits:
    train = sources.timm_reader(config, config.train_split)
    if config.validation_split and config.validation_split == config.test_split:
        warnings.warn(
            f"data.validation_split and data.test_split are both {config.test_split!r}: the final report will be on "
            "the images that chose the architecture",
            stacklevel=3,
        )
    if train is None:
        return _iterated(config)
    held = [_held(config, train, name) for name in ("validation_split", "test_split")]
    # A reader of its own for the workers: open files would be shared with them.
    return _streamed(config, train, *held, fresh=sources.timm_reader(config, config.train_split))


def _held(config: Data, train: sources.Reader, name: str) -> sources.Reader | None:
    split_name = getattr(config, name)
    held = sources.timm_reader(config, split_name) if split_name else None
    if held is None:
        return None
    # Where timm finds no folder of the split's name it takes the root itself, with the training images in it.
    origins = [getattr(reader.dataset, "reader", reader.dataset) for reader in (train, held)]
    if all(hasattr(origin, "samples") for origin in origins) and origins[0].root == origins[1].root:
        raise InputError(
            f"{config.root!r} has no split {split_name!r} apart from the training images; give data.{name} another "
            "name, or '' to hold out a share of them"
        )
    where = (f"{config.source} {split_name}", f"{config.source} {config.train_split}")
    return dataclasses.replace(held, labels=sources.relabel(held, train.classes, where=where), classes=train.classes)


def _streamed(
    config: Data, train: Source, validation: Source | None, test: Source | None, *, fresh: Source | None = None
) -> Splits:
    """Splits whose training images stay on disk; the others are decoded."""
    index = _split_index(
        config, train.labels, train.classes, *(None if part is None else part.labels for part in (test, validation))
    )
    parts: dict[str, tuple[Source, Tensor]] = {
        "calibration": (train, index["train"][: config.calibration]),
        "validation": (train, index["validation"]),
        "test": (train, index["test"]),
    }
    for name, source in (("validation", validation), ("test", test)):
        if source is not None:
            parts[name] = (source, torch.arange(len(source)))
    images = sum(len(positions) for _, positions in parts.values())
    sources.check_memory(images, config.size, remedy="lower data.validation, data.test, data.calibration or data.size")
    sha = hashlib.sha256(f"{config.size} {train.identity(index['train'])}".encode())
    decoded = {}
    for name, (source, positions) in parts.items():
        sha.update(source.identity(positions).encode())
        decoded[name] = sources.decode(source, positions, config)
    return _assemble(
        config, fresh or train, decoded, train.classes, digest=sha.hexdigest()[:16], length=len(index["train"]),
        index=index["train"],
    )  # fmt: skip


def _iterated(config: Data) -> Splits:
    """Splits of a reader that can only be iterated over."""
    for name in ("validation_split", "test_split"):
        if not getattr(config, name):
            raise InputError(
                f"{config.source!r} can only be read in order, so no share of it can be held out: name a split in "
                f"data.{name}"
            )
    training = sources.open_timm(config, config.train_split)
    decoded, lengths = {}, []
    for part, name, most in (
        ("calibration", config.train_split, config.calibration),
        ("validation", config.validation_split, None),
        ("test", config.test_split, None),
    ):
        decoded[part] = sources.decode_iterable(sources.open_timm(config, name), config, most=most)
        lengths.append(len(decoded[part][1]))
    classes = sources.class_names(training, torch.cat([labels for _, labels in decoded.values()]))
    length = sources.images_in(training)
    text = f"{config.source} {config.train_split} {config.validation_split} {config.test_split} {length} {lengths}"
    return _assemble(
        config, sources.timm_factory(config, config.train_split), decoded, classes, length=length,
        digest=hashlib.sha256(f"{text} {config.size}".encode()).hexdigest()[:16],
    )  # fmt: skip


def _assemble(
    config: Data, source: Any, decoded: dict[str, Labelled], classes: tuple[str, ...], *, digest: str, length: int,
    index: Tensor | None = None,
) -> Splits:  # fmt: skip
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    stream = Stream(
        source, length, config.size, len(classes), mean, std, index=index, workers=config.workers,
        skip_unreadable=config.skip_unreadable,
    )  # fmt: skip
    parts = {name: Images(*part, mean, std) for name, part in decoded.items()}
    return Splits(stream, **parts, classes=classes, digest=digest)
