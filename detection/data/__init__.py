"""Images with boxes: COCO files and composed digits, their splits and batches.

`coco` reads annotations, `digits` composes images, `images` holds a set, `load` makes the splits. It imports
`detection.config`, `detection.inputs` and ground modules of `supernet`.
"""

from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits, load

__all__ = ["DetectionSet", "DetectionSplits", "load"]
