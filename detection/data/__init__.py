"""Images with boxes: COCO files and composed digits, their splits and batches.

`coco` reads annotations, `digits` composes images, `images` holds a set, `batches` makes training batches, and `load`
makes the splits. The package imports `detection.config`, `detection.inputs`, `supernet.data` and the ground modules of
`supernet`.
"""

from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits, annotations_by_part, load

__all__ = ["DetectionSet", "DetectionSplits", "annotations_by_part", "load"]
