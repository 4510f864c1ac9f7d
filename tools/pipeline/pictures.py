"""Pictures of architectures: of a space by name, or of a run."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supernet.drawing import Picture
    from supernet.space import Arch, SearchSpace


def decided(name: str, arch: "Arch", settings: Mapping[str, Any] | None = None) -> "Picture":
    """An architecture of a space; for a detector the searched ones of backbone and pyramid, side by side."""
    from supernet.errors import InputError
    from supernet.plugins import FUNCTION, check_importable

    if settings is None and FUNCTION.fullmatch(name):
        check_importable(name)
    backbone_arch, pyramid = arch.sub("backbone"), None
    if any(choice.endswith(("cell1.inputs", "cell1.first")) for choice in arch):
        from detection.nasfpn.drawing import draw_pyramid, pyramid_of

        pyramid = draw_pyramid(pyramid_of(arch), title=f"{name} {arch.key}")
    if pyramid is not None and not backbone_arch:
        if name != "nasfpn" and not name.startswith("retinanet-nasfpn-"):
            raise InputError(f"the architecture is that of a pyramid alone, not of {name!r}; give the name 'nasfpn'")
        return pyramid
    detector = re.fullmatch("(?:retinanet|faster-rcnn-fpn)(?:-fpn|-nasfpn)?-(.+)", name)
    space = detector[1] if backbone_arch and detector else name
    title = f"{name} {arch.key}"
    backbone = of_space(space, title, lambda space: space.canonical(backbone_arch or arch), settings)
    return backbone if pyramid is None else backbone.beside(pyramid)


def recipe_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name of a run's space, and the settings of its classifier or of its detector's backbone."""
    from supernet_tools.pipeline.config import DetectorRun
    from supernet_tools.pipeline.runs import config_of

    config = config_of(folder)
    if isinstance(config, DetectorRun):
        from supernet_tools.pipeline.detector import DetectorKind

        detector = DetectorKind(config)
        return detector.space, detector.backbone_settings()
    from supernet_tools.pipeline.classifier import ClassifierKind
    from supernet_tools.pipeline.run import read_summary

    return config.space, ClassifierKind(config).builder_arguments(read_summary(folder))


def of_space(
    name: str, title: str, choose: "Callable[[SearchSpace], Arch]", settings: Mapping[str, Any] | None = None
) -> "Picture":
    """One architecture of a classification space."""
    import torch

    from supernet.drawing import draw_cells, draw_chain, draw_widths
    from supernet.spaces import build
    from supernet.spaces.published_cells import cells_of
    from supernet.spaces.widths import WidthChain

    with torch.device("meta"):
        chain = build(name, "standalone", settings or {})
    arch = choose(chain.space)
    if any(choice.endswith(".block0.left") for choice in arch):
        return draw_cells(cells_of(arch, chain.space).cells, title=title)
    if isinstance(chain, WidthChain):
        widths, seed = ({group: int(of[group]) for group in chain.seed} for of in (arch, chain.seed))
        return draw_widths(widths, seed, title=title)
    return draw_chain(arch, title=title)
