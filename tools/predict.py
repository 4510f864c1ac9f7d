"""Classify images, or draw detections: python tools/predict.py runs/x/export/KEY photos --run-code --out drawn"""

import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Ge, Le

from supernet.checked import Count, FilePath, Name, Seed, Text
from supernet.errors import InputError, RunError
from supernet_tools.pipeline.command_line import Flags, closing, main, parse, search_unused
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from detection.config import DetectorPreprocess
    from supernet.config import Preprocess
    from supernet_tools.pipeline.run import Run


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".mpo")
"""Suffixes of the image files that are taken from folders."""


@dataclass(frozen=True)
class Predict(Flags):
    """Classify image files into a table and a page, or draw the detections of a detector.

    A classifier gives predictions.csv, with the probability of every class, and predictions.html with the images. A
    detector gives a PNG per image with boxes, labels and scores; of a run's own test images also the true boxes, white.
    All detections, whatever their score, stand in detections.json, in COCO's format of results, and detections.csv.
    A video becomes an MP4 file with the detections drawn; its frames are called NAME#NUMBER in the tables.

    Nothing is overwritten: where there is a file of the name, the new file gets a number. Files that cannot be read are
    named at once, the others are predicted, and the exit code is 2."""

    model: Annotated[FilePath, tyro.conf.Positional]
    """The folder of a run, whose retrained network is used, or with --run-code an exported folder."""
    paths: tyro.conf.Positional[tuple[FilePath, ...]] = ()
    """Image files, and folders whose images are taken with those in the folders in them; of a detector also video files
    (.mp4, .mov, .mkv, .webm, .avi; needs the extra "video"); by default the first test images of the run."""
    run_code: bool = False
    """Run the model.py of an exported folder. It can do everything that you can: only for folders that you trust."""
    images: tuple[FilePath, ...] = ()
    """The same as a flag."""
    out: FilePath = Path("predictions")
    """Folder to write into."""
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    """For a detector: lowest score of the boxes that are drawn."""
    score_threshold: Annotated[float, Ge(0), Le(1)] | None = None
    """For a detector: lowest score of the detections in the tables; by default as it was built, 0.05."""
    overlap: Annotated[float, Ge(0), Le(1)] | None = None
    """For a detector: IoU above which non-maximum suppression drops the weaker of two boxes of a class; 0.5 by
    default."""
    detections: Count | None = None
    """For a detector: most detections per image."""
    every: Count = 1
    """For a video: detect in every n-th frame only."""
    test: Count = 8
    """Number of test images of a run, if no images are named."""
    search: Name = "aging-evolution"
    """For a run: name of the search whose best architecture is used."""
    arch: Text | None = None
    """For a run: an architecture instead: JSON, a file with it, a key, or front:3 for the third of the front."""
    seed: Seed = 0
    """For a run: seed of the retraining."""
    init: Literal["scratch", "shared"] = "scratch"
    """For a run: the retraining from fresh weights, or the one from the shared weights."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """What names another network or other images than those that are given."""
        yield from search_unused(self.arch)
        if self.paths or self.images:
            for name in ("test", "data.source", "data.images"):
                yield name, "beside images that are named"


def run() -> None:
    args = parse(Predict, __doc__)
    if not args.model.is_dir():
        raise InputError(f"there is no folder {str(args.model)!r}; give that of a run or of an export")
    images = image_files((*args.paths, *args.images))

    if args.out.is_symlink() and args.out == Path("predictions"):  # which nobody need have typed
        raise InputError("'predictions' is a link; name the folder that it leads to, or another one, with --out")
    check_writable(args.out)

    exported = not (args.model / "run.json").exists() and (args.model / "preprocess.json").exists()
    if exported:
        own = ("search", "arch", "seed", "init", "data.source", "data.images")
        args.refuse(*own, reason=f"for {args.model}, which is an export")
    else:
        args.refuse("run_code", reason=f"for {args.model}, which is not an exported folder")
    if exported and not args.run_code:
        raise InputError(
            f"{args.model} is an export: to predict, its model.py is executed, which can do everything that you can; "
            "if you trust the folder, add --run-code"
        )
    if exported and not images:
        raise InputError(f"{args.model} is an export and has no images of its own; name files or folders")
    network, preprocess, opened = from_export(args.model) if exported else from_run(args)

    from detection.config import DetectorPreprocess

    if isinstance(preprocess, DetectorPreprocess):
        from detection.predictions import set_thresholds
        from detection.video import is_video

        if not any(map(is_video, images)):
            args.refuse("every", reason="without a video")
        set_thresholds(network, score=args.score_threshold, overlap=args.overlap, detections=args.detections)
        unreadable = draw(args, network, preprocess, opened, images)
    else:
        boxes = ("threshold", "score_threshold", "overlap", "detections", "every")
        args.refuse(*boxes, reason=f"for a classifier, as {args.model} is")
        unreadable = classify(args, network, preprocess, opened, images)
    if unreadable:
        raise SystemExit(2)  # each is named above, and the others are predicted


def classify(
    args: Predict, network: "nn.Module", preprocess: "Preprocess", opened: "Run | None", images: Sequence[Path]
) -> int:
    """Writes the table and the page of a classifier, prints a line per image; returns how many cannot be read."""
    from supernet_tools.pipeline.predictions import classified, of_pixels, page_of, table_of

    if images:
        results = list(classified(network, preprocess, images))
    else:
        assert opened is not None
        results = list(of_pixels(network, opened.data.test, args.test))
    predictions = [result for result in results if not isinstance(result, str)]
    for problem in results:
        if isinstance(problem, str):
            print(f"error: {problem}", file=sys.stderr)
    for prediction in predictions:
        best = prediction.probabilities.topk(min(3, len(preprocess.classes)))
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        print(f"{prediction.file}: " + ", ".join(f"{preprocess.classes[i]} {value:.4f}" for i, value in named))
    if predictions:
        page = page_of(predictions, preprocess.classes, f"{len(predictions)} images by {args.model}")
        texts = (("csv", table_of(predictions, preprocess.classes)), ("html", page))
        closing(write_as_new(args.out, "predictions", ending, text.encode()) for ending, text in texts)
    return len(results) - len(predictions)


def draw(
    args: Predict, network: "nn.Module", preprocess: "DetectorPreprocess", opened: "Run | None", images: Sequence[Path]
) -> int:
    """Writes a picture of the detections per image, and tables of all; returns how many images cannot be read."""
    from detection.predictions import coco_results, csv_text, detect, draw_detections, read_image
    from detection.video import is_video

    pictures: list[tuple[str, Any, Any]] = [(path.stem, path, None) for path in images]
    if opened is not None and not images:
        pictures = [(f"test{i}", i, opened.data.test) for i in range(min(args.test, len(opened.data.test)))]
    unreadable = 0
    results: list[dict[str, Any]] = []
    number = 0  # of the image, or frame of a video
    for name, source, test in pictures:
        number += 1
        try:
            if test is None and is_video(source):
                detected, count = film(args, network, preprocess, source, first=number)
                results += detected
                number += count - 1
                continue
            pixels = read_image(source) if test is None else test.image(source)
        except InputError as error:
            unreadable += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        truth = None if test is None else test.annotations.target(source)
        boxes = detect(network, pixels, preprocess)
        image_id, file_name = number, str(source)
        if test is not None:
            image_id, file_name = int(test.annotations.ids[source]), test.annotations.name(source)
        results += coco_results(image_id, file_name, boxes, preprocess)
        picture, count = draw_detections(pixels, boxes, preprocess.classes, threshold=args.threshold, truth=truth)
        file = save_as_new(picture, args.out, name)
        print(f"wrote {file}: {count} of {len(boxes['scores'])} boxes with a score from {args.threshold:g}")
    if unreadable < len(pictures):
        document = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        tables = (("json", document), ("csv", csv_text(results)))
        closing(write_as_new(args.out, "detections", ending, text.encode()) for ending, text in tables)
    return unreadable


def film(
    args: Predict, network: "nn.Module", preprocess: "DetectorPreprocess", path: Path, *, first: int
) -> tuple[list[dict[str, Any]], int]:
    """Writes a video with the detections drawn; returns them as `coco_results`, and the number of frames."""
    from detection.predictions import coco_results, detect, draw_detections
    from detection.video import encoded, frame_rate, frames

    results: list[dict[str, Any]] = []
    counts: list[int] = []

    def drawn() -> Iterator["Image"]:
        for number, pixels in enumerate(frames(path)):
            if number % args.every:
                continue
            boxes = detect(network, pixels, preprocess)
            results.extend(coco_results(first + len(counts), f"{path}#{number}", boxes, preprocess))
            picture, count = draw_detections(pixels, boxes, preprocess.classes, threshold=args.threshold)
            counts.append(count)
            yield picture

    content = encoded(drawn(), frame_rate(path) / args.every)
    file = write_as_new(args.out, path.stem, "mp4", content)
    print(f"wrote {file}: {len(counts)} frames, {sum(counts)} boxes with a score from {args.threshold:g}")
    return results, len(counts)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the files among paths and the images in the folders among them, sorted; hidden ones are left out.

    Raises:
        InputError: a path is not there, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        if not path.is_dir():
            raise InputError(f"there is no image file or folder {str(path)!r}")
        inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        shown = sorted(file for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts))
        if not shown:
            raise InputError(f"the folder {str(path)!r} holds no image; give one with files such as .jpg or .png")
        files += shown
    return list(dict.fromkeys(files))


def check_writable(folder: Path) -> None:
    """Raises `InputError` unless files can be written into the folder, or it can be created."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{str(there)!r} is not a folder that may be written to; give another --out")


def save_as_new(picture: "Image", folder: Path, name: str) -> Path:
    """Saves a picture as NAME.png, or under another number where that is taken; returns the path."""
    encoded = io.BytesIO()
    picture.save(encoded, format="png")
    return write_as_new(folder, name, "png", encoded.getvalue())


def write_as_new(folder: Path, name: str, ending: str, content: bytes) -> Path:
    """Writes NAME.ENDING, or NAME-2.ENDING and so on where there is something of that name; returns the path.

    Nothing is ever overwritten, whether it is a photograph, a link or the result of an earlier call.

    Raises:
        RunError: it cannot be written, e.g. because the disk is full; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        file = folder / (f"{name}.{ending}" if number == 1 else f"{name}-{number}.{ending}")
        try:
            with file.open("xb") as new:  # fails if there is anything of that name, even a link to nowhere
                try:
                    new.write(content)
                    new.flush()
                except BaseException:
                    file.unlink(missing_ok=True)
                    raise
            return file
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{file} cannot be written ({error.strerror}); make room or give another --out") from error
    raise AssertionError("unreachable")


def from_export(folder: Path) -> "tuple[nn.Module, Preprocess | DetectorPreprocess, None]":
    """The network of an exported folder, what it expects of images, and no run."""
    from supernet.export import load_exported
    from supernet_tools.pipeline.export import is_detector, preprocess_of

    preprocess = preprocess_of(folder)
    if not is_detector(preprocess) and not preprocess.classes:
        raise InputError(f"{folder} names no classes, so its outputs cannot be predictions; call its load() instead")
    return load_exported(folder), preprocess, None


def from_run(args: Predict) -> "tuple[nn.Module, Preprocess | DetectorPreprocess, Run]":
    """The retrained network of a run, what it expects of images, and the run."""
    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.retrain import trained_network
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.model, trained=False, moved=args.data)
    arch = named_arch(opened, args.arch, args.search)
    network = trained_network(opened, arch, args.seed, shared=args.init == "shared")
    return network, opened.kind.preprocess(opened.summary), opened


if __name__ == "__main__":
    main(run)
