"""Costs of detectors, with the backbone's MACs as papers on searched backbones count them."""

from collections.abc import Sequence

from detection.detector import Detector, backbone_of
from supernet.chain import Layouts
from supernet.checked import Pixels, checked_arguments
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

    Raises:
        InputError: an image that is too small, or no detector.
    """

    costs = (*COSTS, "backbone_macs")

    @checked_arguments
    def __init__(
        self, detector: Detector, input_shape: Sequence[int] | None = None, *, backbone_size: Pixels = 224
    ) -> None:
        super().__init__(detector, input_shape)
        self.start.cost["backbone_macs"] = 0
        backbone = backbone_of(self._chain)
        self._backbone = CostTable(backbone, (detector.input_shape[0], backbone_size, backbone_size))
        self._steps = len(backbone.step_names)
        # the backbone's entry before a step, by the layout of its input, which says which states of a cell are present
        self._before: dict[tuple[int, Layouts], Entry] = {(0, self.start.layout): self._backbone.start}

    def step(self, index: int, arch: Arch, before: Entry) -> Entry:
        """Returns the entry of one step, with its part of `backbone_macs`."""
        entry = super().step(index, arch, before)
        if "backbone_macs" not in entry.cost:
            entry.cost["backbone_macs"] = 0
            if index < self._steps:
                own = self._backbone.step(index, arch, self._before[index, before.layout])
                entry.cost["backbone_macs"] = own.cost["macs"]
                self._before[index + 1, entry.layout] = own
        return entry
