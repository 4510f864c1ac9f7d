"""Costs of detectors, with the backbone's MACs as papers on searched backbones count them."""

from collections.abc import Sequence

from detection.detector import Detector, backbone_of
from supernet.cost import CostTable
from supernet.cost.count import COSTS
from supernet.cost.table import Entry
from supernet.space import Arch


class DetectorCosts(CostTable):
    """A `CostTable` of a detector with an additional cost, `backbone_macs`, which has an image size of its own.

    `macs`, `params` and `activations` count backbone, neck and dense heads for one image; for Faster R-CNN also the box
    head on the largest number of proposals (`RegionBoxes.proposals`).

    Args:
        detector: only the shapes of its tensors are kept.
        input_shape: (C, H, W) of an image; the detector's own by default.
        backbone_size: height and width in pixels at which `backbone_macs` are counted. Neck, heads and the classifier
            head of the pre-training are not counted.
    """

    costs = (*COSTS, "backbone_macs")

    def __init__(
        self, detector: Detector, input_shape: Sequence[int] | None = None, *, backbone_size: int = 224
    ) -> None:
        super().__init__(detector, input_shape)
        self.start.cost["backbone_macs"] = 0
        backbone = backbone_of(self._chain)
        self._backbone = CostTable(backbone, (detector.input_shape[0], backbone_size, backbone_size))
        # the entry before every step of the backbone, which is the same for all architectures: `as_backbone` checks it
        self._before = [self._backbone.start]
        first = next(iter(backbone.space.enumerate()))
        for index, name in enumerate(backbone.step_names):
            self._before.append(self._backbone.step(index, first.sub(name), self._before[-1]))

    def step(self, index: int, arch: Arch, before: Entry) -> Entry:
        """Returns the entry of one step, with its part of `backbone_macs`."""
        entry = super().step(index, arch, before)
        if "backbone_macs" not in entry.cost:
            inside = index < len(self._before) - 1
            entry.cost["backbone_macs"] = (
                self._backbone.step(index, arch, self._before[index]).cost["macs"] if inside else 0
            )
        return entry
