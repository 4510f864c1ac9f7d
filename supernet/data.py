"""Image sets that fit in memory: decoded once to uint8, split by seed, normalised and augmented in batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from supernet.config import Data, Preprocess
from supernet.errors import InputError
from supernet.seeding import derive_seed

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Labelled images and the normalisation that networks expect.

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
        train: for gradients.
        calibration: for batch-norm statistics before an evaluation.
        validation: for scores during a search.
        test: for the final report.
        classes: names in the order of labels.
        digest: 16 hex digits over pixels and labels of all parts.
    """

    train: Images
    calibration: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    digest: str

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.pixels.shape[1]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.train.pixels.shape[-1]

    def preprocess(self) -> Preprocess:
        """What a network trained on this set expects of its input."""
        mean, std = (tuple(map(float, value.flatten())) for value in (self.train.mean, self.train.std))
        return Preprocess(self.size, mean, std, self.classes)


def load(config: Data) -> Splits:
    """Read, decode and split a data set.

    Raises:
        InputError: a missing folder, one without images or with a single class, an unreadable image, or a split that
            would be empty.
    """
    if config.calibration < 1 or config.size < 1:
        raise InputError(f"calibration={config.calibration} and size={config.size} must be at least 1")
    if config.source == "digits":
        pixels, labels, classes = _digits(config.size)
        return _split(config, pixels, labels, classes, None)
    root = Path(config.source)
    if not config.source or not root.is_dir():
        raise InputError(
            f"there is no data set {config.source!r}: data.source is 'digits' or a folder with one folder per class"
        )
    if not (root / "train").is_dir():
        return _split(config, *_folder(root, config.size), None)
    pixels, labels, classes = _folder(root / "train", config.size)
    held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held is None:
        return _split(config, pixels, labels, classes, None)
    test_pixels, test_labels, test_classes = _folder(held, config.size, fewest=1)
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise InputError(f"{held} has the class {unknown[0]!r}, which {root / 'train'} lacks; the classes must agree")
    known = torch.tensor([classes.index(name) for name in test_classes])
    return _split(config, pixels, labels, classes, (test_pixels, known[test_labels]))


def _digits(size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    if size != pixels.shape[-1]:
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return (pixels * 255).round().to(torch.uint8), torch.from_numpy(digits.target).long(), tuple("0123456789")


def _folder(root: Path, size: int, *, fewest: int = 2) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS
    ]
    if not files:
        raise InputError(f"{root} holds no images: it needs one folder per class with files such as .jpg or .png")
    if len({label for _, label in files}) < fewest:
        raise InputError(f"{root} holds images of one class only, {classes[files[0][1]]!r}; there is nothing to learn")
    pixels = torch.stack([_decode(path, size) for path, _ in files])
    return pixels, torch.tensor([label for _, label in files]), classes


def _decode(path: Path, size: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms import v2

    try:
        with Image.open(path) as file:
            image: Tensor = v2.functional.pil_to_tensor(file.convert("RGB"))
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error}); repair or remove it") from error
    if image.shape[-2:] != (size, size):
        image = v2.functional.center_crop(v2.functional.resize(image, [size], antialias=True), [size, size])
    return image


def _split(
    config: Data, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], test: tuple[Tensor, Tensor] | None
) -> Splits:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(config.seed, "split")))
    n_test = 0 if test is not None else round(config.test * len(order))
    n_validation = round(config.validation * (len(order) - n_test))
    test_index, validation_index, train_index = order.tensor_split([n_test, n_test + n_validation])
    tested = n_test if test is None else len(test[1])
    if min(len(train_index), len(validation_index), tested) == 0:
        raise InputError(
            f"{config.source!r} has {len(labels)} images: too few for validation={config.validation} and "
            f"test={config.test}; every split needs at least one"
        )
    scaled = pixels[train_index].float() / 255
    mean, std = scaled.mean(dim=(0, 2, 3)).view(-1, 1, 1), scaled.std(dim=(0, 2, 3)).view(-1, 1, 1).clamp_min(1e-3)
    everything = Images(pixels, labels, mean, std)
    parts = {
        "train": everything.subset(train_index),
        "calibration": everything.subset(train_index[: config.calibration]),
        "validation": everything.subset(validation_index),
        "test": everything.subset(test_index) if test is None else Images(*test, mean, std),
    }
    sha = hashlib.sha256()
    for part in parts.values():
        sha.update(part.pixels.numpy().tobytes() + part.labels.numpy().tobytes())
    return Splits(**parts, classes=classes, digest=sha.hexdigest()[:16])


def augment(pixels: Tensor, *, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random translation and horizontal flip, each image on its own.

    Args:
        pixels: (N, C, H, W).
        shift: largest translation in pixels; what moves in is zero.
        flip: mirror half of the images.
        generator: of all draws, on the CPU.
    """
    n, c, h, w = pixels.shape
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        pixels = torch.where(mirrored.to(pixels.device).view(n, 1, 1, 1), pixels.flip(-1), pixels)
    if shift:
        top, left = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator).to(pixels.device)
        rows = (top + torch.arange(h, device=pixels.device)).view(n, 1, h, 1)
        columns = (left + torch.arange(w, device=pixels.device)).view(n, 1, 1, w)
        image = torch.arange(n, device=pixels.device).view(n, 1, 1, 1)
        channel = torch.arange(c, device=pixels.device).view(1, c, 1, 1)
        pixels = functional.pad(pixels, (shift, shift, shift, shift))[image, channel, rows, columns]
    return pixels
