"""What an exported detector expects of its input, as plain data."""

from dataclasses import dataclass

from supernet.config import Preprocess


@dataclass(frozen=True)
class DetectorPreprocess(Preprocess):
    """`Preprocess` with the resize rule of detectors; `classes` are the names of labels 1, 2 and so on."""

    longest: int = 0
    """The shorter side gets `input_size` pixels unless the longer one would exceed these; 0 stretches every image to a
    square of `input_size`, which is what model.pt2 takes in either case."""
