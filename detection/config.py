"""Configurations of detectors and their data as frozen dataclasses, free of torch, so that `--help` is instant."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from supernet.checked import Checked, Count, Natural, Pixels, Positive, Seed, Share, Text, shown
from supernet.config import Preprocess


@dataclass(frozen=True)
class DetectionAugment(Checked):
    """How each training image is varied with its boxes; not at all by default."""

    flip: bool = False
    """Mirror half of the images."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Range of a random zoom: above 1, a random part of the image is enlarged to its size; below 1, the image is shrunk
    and placed at random on a border (large-scale jitter, Ghiasi et al., 2021: 0.1 to 2)."""
    sizes: tuple[Pixels, ...] = ()
    """Multi-scale training: every step draws one of these sizes and uses it instead of `data.size`, with `data.longest`
    in proportion; networks are scored at `data.size`."""
    mosaic: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the training images that are mosaics of four images (YOLOv4, Bochkovskiy et al., 2020, §3.3)."""
    balance: Share = 0.0
    """Draw images with rare classes more often: if only a share f of the images has a class, and f is below this
    threshold t, its images get the weight sqrt(t / f) (repeat factor sampling, Gupta et al., 2019, §B). The number of
    images per epoch stays the same."""
    aspect_groups: bool = True
    """Put images in landscape and in portrait format into different batches, as torchvision and MMDetection do: a batch
    of both is padded to a square. What is left over of both formats shares the last batches."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A range with its bounds swapped."""
        if self.scale[0] > self.scale[1]:
            yield "scale", "should have the smaller factor first"


@dataclass(frozen=True)
class DetectionData(Checked):
    """Where images with boxes come from and how they are split. Splits depend on the seed alone."""

    source: str = "digits"
    """"digits" (embedded: scikit-learn's digits on its photographs), or the annotations of the training images: a file
    in COCO's layout, such as "coco/annotations/instances_train2017.json"; the data.yaml of a set in YOLO's layout; in
    Pascal VOC's, a folder or a list such as "VOC2007/ImageSets/Main/train.txt"; a .csv file with a row per object."""
    images: str = ""
    """Folder that the file names in `source` are relative to; not for YOLO's layout, whose data.yaml names it, and for
    VOC's and a .csv file's only where it is neither JPEGImages nor images, nor beside the annotations."""
    validation_source: str = ""
    """Annotations of the images that score architectures; if empty, the `val` images of a data.yaml do, or else a share
    of the training images."""
    validation_images: str = ""
    """Folder of the images of `validation_source`; if empty, `images`."""
    test_source: str = ""
    """Annotations of the images for the final report; if empty, the `test` images of a data.yaml, or else the share
    `test` of the training images."""
    test_images: str = ""
    """Folder of the images of `test_source`; if empty, `images`."""
    size: Pixels = 96
    """Height and width that images are resized to, in pixels; with `longest`, their shorter side."""
    longest: Annotated[int, Ge(0), Le(2**14)] = 0
    """Keep the aspect ratio: the shorter side gets `size` pixels unless the longer one would exceed this many (800 and
    1333 for COCO); 0 stretches every image to a square."""
    min_side: Pixels = 32
    """Pixels that both sides of every stored image must have: at least the largest stride of the backbone."""
    mean: tuple[float, ...] = ()
    """Per channel on the scale 0..1: the normalisation that the backbone was trained with; if empty, it is measured on
    the calibration images."""
    std: tuple[Positive, ...] = ()
    """As `mean`; set both or neither."""
    cache: Text = "auto"
    """Where the decoded images of files are kept, so that later commands start at once: "auto" is the run's folder,
    "off" nowhere, anything else another folder. It has no influence on results."""
    compose: tuple[Count, Count, Count] = (800, 200, 200)
    """Number of images of "digits" for training, search validation and test."""
    calibration: Count = 200
    """Images of the training split that recalibrate batch norm before an evaluation."""
    validation: Share = 0.2
    """Share of the training images held out to score architectures, without a `validation_source`."""
    test: Share = 0.2
    """Share held out for the final report, without a `test_source`."""
    memory: Natural = 2**31
    """Bytes of decoded images to keep in memory; the images of an annotation file that do not fit are read from disk
    when they are used."""
    workers: Annotated[int, Ge(0), Le(1024)] = 4
    """Processes that prepare training batches; 0 for the training process itself."""
    augment: DetectionAugment = field(default_factory=DetectionAugment)
    seed: Seed = 0
    """Seed of the splits and of composed images."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Sizes that contradict each other, and half a normalisation."""
        if self.size < self.min_side:
            yield "size", f"should be at least min_side={self.min_side}"
        if self.augment.sizes and min(self.augment.sizes) < self.min_side:
            yield "augment.sizes", f"should each be at least min_side={self.min_side}"
        if 0 < self.longest < self.size:
            yield "longest", f"should be 0 or at least size={self.size}"
        if {len(self.mean), len(self.std)} not in ({0}, {3}):
            yield "mean", f"and std={self.std} should have three values each, or none"

    def unused(self) -> Iterator[tuple[str, str]]:
        """What is for files of annotations, or for composed images, and shares of what has its own annotations."""
        if self.source == "digits":
            for name in ("images", "validation_source", "validation_images", "test_source", "test_images"):
                yield name, "with source='digits', whose images are composed"
            for name in ("validation", "test"):
                yield name, "with source='digits'; compose has the number of its images"
            return
        if self.source.endswith((".yaml", ".yml")) and not (self.validation_source or self.test_source):
            yield "images", f"with source={shown(self.source)}, which names the folder of its images"
        yield "compose", f"with source={shown(self.source)}; it is for 'digits'"
        for part in ("validation", "test"):
            if getattr(self, f"{part}_source"):
                yield part, f"beside {part}_source, which names these images"
            else:
                yield f"{part}_images", f"without {part}_source"


@dataclass(frozen=True)
class DetectorPreprocess(Preprocess):
    """What an exported detector expects of its input; `classes` are the names of labels 1, 2 and so on."""

    longest: Annotated[int, Ge(0), Le(2**14)] = 0
    """The shorter side gets `input_size` pixels unless the longer one would exceed this many; 0 stretches every image
    to a square of `input_size`, which is what model.pt2 takes in either case."""
    category_ids: tuple[int, ...] = ()
    """Ids of the labels 1, 2 and so on in the annotations of the training images."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Besides those of every network, names and ids of different numbers."""
        yield from super().conflicts()
        if self.classes and self.category_ids and len(self.category_ids) != len(self.classes):
            yield "category_ids", f"and classes={shown(self.classes)} should have one value each per class"
