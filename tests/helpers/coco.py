"""Small data sets in COCO's layout: black images with one coloured rectangle each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from detection.config import DetectionData

Document = dict[str, Any]

CATEGORIES = [{"id": 90, "name": "tree"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> Document:
    """Returns an entry of the list "annotations"."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}


def make_coco(root: Path, *, images: int = 12, size: tuple[int, int] = (64, 48), name: str = "train") -> Path:
    """Writes black images with one rectangle each, coloured by category, and a crowd in the first; returns the file."""
    (root / name).mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for i in range(images):
        picture = Image.new("RGB", size)
        x, y, w, h = 4 + 2 * (i % 12), 6 + i % 12, 16, 10 + i % 12
        picture.paste((RED, GREEN, BLUE)[i % 3], (x, y, x + w, y + h))
        picture.save(root / name / f"{i}.png")
        entries.append({"id": 100 + i, "file_name": f"{name}/{i}.png", "width": size[0], "height": size[1]})
        annotations.append(annotation(1000 + i, 100 + i, (3, 7, 90)[i % 3], [x, y, w, h], area=w * h / 2, iscrowd=0))
    annotations.insert(0, annotation(500, 100, 7, [30, 30, 20, 10], area=90, iscrowd=1))
    return write(root / f"{name}.json", {"images": entries, "annotations": annotations, "categories": CATEGORIES})


def mixed_coco(root: Path, *, images: int = 3) -> Path:
    """Writes a data set of `images` wide images followed by as many tall ones; returns the file."""
    wide, tall = make_coco(root, images=images), make_coco(root, images=images, size=(48, 64), name="tall")
    both, other = (json.loads(path.read_text(encoding="utf-8")) for path in (wide, tall))
    both["images"] += [{**image, "id": image["id"] + 50} for image in other["images"]]
    both["annotations"] += [
        {**entry, "id": entry["id"] + 5000, "image_id": entry["image_id"] + 50} for entry in other["annotations"]
    ]
    return write(root / "both.json", both)


def write(path: Path, document: Any) -> Path:
    """Writes a document as JSON and returns the path."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def change(path: Path, edit: Callable[[Document], Any]) -> Path:
    """Edits a JSON file in place and returns the path."""
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    return write(path, document)


def settings(path: Path, **more: Any) -> DetectionData:
    """Returns a config for an annotation file whose images are relative to its folder."""
    return DetectionData(str(path), str(path.parent), **{"size": 32, **more})
