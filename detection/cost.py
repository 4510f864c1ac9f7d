"""Costs of detectors: those of a `CostTable`, and the backbone's MACs as papers on searched backbones count them."""

from collections.abc import Sequence

from detection.detector import Detector, backbone_of
from supernet.cost import CostTable
from supernet.cost.count import COSTS
from supernet.cost.table import Entry
from supernet.space import Arch


class DetectorCosts(CostTable):
    """A `CostTable` of a detector with a further cost, `backbone_macs`, at a size of its own.

    `macs`, `params` and `activations` are those of backbone, neck and dense heads for one image; of two stages, also
    those of the box head on as many regions as it proposes at most (`RegionBoxes.proposals`).

    Args:
        detector: only its shapes are kept.
        input_shape: (C, H, W); the detector's own by default.
        backbone_size: height and width in pixels at which `backbone_macs` are counted; neck, heads and the classifier
            that the backbone was trained with are not.
    """

    costs = (*COSTS, "backbone_macs")

    def __init__(
        self, detector: Detector, input_shape: Sequence[int] | None = None, *, backbone_size: int = 224
    ) -> None:
        super().__init__(detector, input_shape)
        self._start.cost["backbone_macs"] = 0
        backbone = backbone_of(detector)
        self._backbone = CostTable(backbone, (detector.input_shape[0], backbone_size, backbone_size))
        self._given = [self._backbone._start]  # what every step is given; a backbone's maps do not depend on decisions
        first = next(iter(backbone.space.enumerate()))
        for index, name in enumerate(backbone.step_names):
            self._given.append(self._backbone._step(index, first.sub(name), self._given[-1]))

    def _step(self, index: int, arch: Arch, before: Entry) -> Entry:
        entry = super()._step(index, arch, before)
        if "backbone_macs" not in entry.cost:
            inside = index < len(self._given) - 1
            entry.cost["backbone_macs"] = (
                self._backbone._step(index, arch, self._given[index]).cost["macs"] if inside else 0
            )
        return entry
