"""Labelled images in memory and the splits of a data set."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.checked import shown
from supernet.config import DataSummary, Preprocess
from supernet.data.steps import check_size
from supernet.data.stream import Stream
from supernet.errors import InputError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Labelled images in memory and the normalisation that networks expect.

    Attributes:
        pixels: uint8, (N, C, H, W).
        labels: int64, (N,).
        mean, std: float32, (C, 1, 1), on the scale 0..1.

    Raises:
        InputError: pixels or labels of another shape or type.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) != 4 or tuple(self.labels.shape) != shape[:1]:
            raise InputError(
                f"pixels of shape {shape} and labels of {tuple(self.labels.shape)} should be (N, C, H, W) and (N,)"
            )
        if self.pixels.dtype is not torch.uint8 or self.labels.dtype is not torch.int64:
            raise InputError(
                f"pixels of {self.pixels.dtype} and labels of {self.labels.dtype} should be torch.uint8, 0 to 255, and "
                "torch.int64; supernet.data.load((images, labels)) converts others"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def exact(self) -> bool:
        """Whether a training batch is a function of seed and step alone: always."""
        return True

    def subset(self, index: Tensor) -> "Images":
        """Returns the images at these positions, in this order.

        Raises:
            InputError: a position without an image, or something else than positions.
        """
        if isinstance(index, Tensor) and index.numel() and int(index.min()) < 0:
            raise InputError(f"index={shown(index)} should be positions of {len(self)} images, from 0")
        try:
            pixels, labels = self.pixels[index], self.labels[index]
        except (IndexError, TypeError) as error:
            raise InputError(f"index={shown(index)} should be positions of {len(self)} images, from 0") from error
        return Images(pixels, labels, self.mean, self.std)

    def to(self, device: torch.device | str) -> "Images":
        """Returns the same set in the memory of a device."""
        return Images(*(tensor.to(device) for tensor in (self.pixels, self.labels, self.mean, self.std)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Converts uint8, (N, C, H, W), to float32 with zero mean and unit variance per channel."""
        return (pixels.float() / 255 - self.mean) / self.std

    def batches(self, size: int, *, drop_last: bool = False) -> Iterator[Batch]:
        """Yields normalised `(images, labels)` in order; with `drop_last`, batches of `size` images only.

        Raises:
            InputError: a size below 1.
        """
        check_size(size)
        stop = len(self) - len(self) % size if drop_last and len(self) >= size else len(self)
        for start in range(0, stop, size):
            end = min(start + size, stop)
            yield self.normalize(self.pixels[start:end]), self.labels[start:end]


@dataclass(frozen=True)
class Splits:
    """The four parts of a data set. `calibration` is drawn from `train`; the others are disjoint.

    Attributes:
        train: for gradients; in memory, or streamed from disk.
        calibration: recalibrates batch norm before an evaluation; not augmented.
        validation: for scores during a search.
        test: for the final report.
        classes: names in the order of labels.
        digest: 16 hex digits over pixels and labels of all parts; for a stream, over the names and sizes of its files,
            or the reader's name, split and length.
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

    def summary(self) -> DataSummary:
        """Returns what others need to know about this data set without its images, e.g. to store it."""
        return DataSummary(
            classes=self.classes,
            in_channels=self.in_channels,
            size=self.size,
            mean=tuple(self.calibration.mean.flatten().tolist()),
            std=tuple(self.calibration.std.flatten().tolist()),
            n_train=len(self.train),
            n_calibration=len(self.calibration),
            n_validation=len(self.validation),
            n_test=len(self.test),
            digest=self.digest,
        )

    def normalized_by(self, mean: Sequence[float], std: Sequence[float]) -> "Splits":
        """Returns the same images with another normalisation, such as that of a trained network.

        Args:
            mean, std: per channel, on the scale 0..1.

        Raises:
            InputError: another number of values than channels, or a deviation that is not above 0.
        """
        for name, given in (("mean", mean), ("std", std)):
            try:
                numbers = torch.as_tensor(given, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                numbers = torch.full((self.in_channels,), math.nan)
            low = 0.0 if name == "std" else -math.inf
            if numbers.shape != (self.in_channels,) or not ((low < numbers) & (numbers < math.inf)).all():
                kind = "positive numbers" if name == "std" else "finite numbers"
                raise InputError(f"{name}={shown(given)} should be {kind}, one per channel of {self.in_channels}")
        values = {name: torch.tensor(list(value)).view(-1, 1, 1) for name, value in (("mean", mean), ("std", std))}
        parts = ("train", "calibration", "validation", "test")
        return dataclasses.replace(self, **{part: dataclasses.replace(getattr(self, part), **values) for part in parts})

    def preprocess(self) -> Preprocess:
        """Returns what a network trained on this data set expects of its input."""
        return self.summary().preprocess()

    def to(self, device: torch.device | str) -> "Splits":
        """Returns the same splits in the memory of a device; a stream's batches are moved to it one by one."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "calibration", "validation", "test")}
        return dataclasses.replace(self, **parts)
