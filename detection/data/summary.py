"""What a set of images with boxes holds, in a few numbers."""

from detection.data.images import DetectionSet

SMALL, MEDIUM = 32**2, 96**2
"""Areas in square pixels of the stored image, up to which COCO calls an object small, and medium."""


def summary_row(data: DetectionSet) -> list[str]:
    """Returns the cells of a row about a set: images, objects, objects per image, the shares of the three sizes.

    Crowds and other ignored regions are counted apart, as "ignored".
    """
    annotations = data.annotations
    single = ~annotations.crowd
    per_image = [
        int(single[start:end].sum()) for start, end in zip(annotations.starts, annotations.starts[1:], strict=False)
    ]
    areas, objects = annotations.areas[single], int(single.sum())
    small, medium = int((areas < SMALL).sum()), int(((areas >= SMALL) & (areas <= MEDIUM)).sum())
    empty = sum(count == 0 for count in per_image)
    mean = objects / max(len(data), 1)
    sizes = (small, medium, objects - small - medium)
    return [
        f"{len(data):,}" + (f" ({empty:,} without objects)" if empty else ""),
        f"{objects:,}" + (f" ({int((~single).sum()):,} ignored)" if objects < len(single) else ""),
        f"{mean:.1f}, at most {max(per_image, default=0)}",
        " / ".join(f"{100 * size / max(objects, 1):.0f} %" for size in sizes),
    ]


COLUMNS = ("split", "images", "objects", "per image", "small / medium / large")
