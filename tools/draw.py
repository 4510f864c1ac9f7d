"""Draw an architecture: python tools/draw.py nasnet-a-large --out cell.svg, or a space and --arch arch.json"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from supernet.checked import Checked, FilePath, Name, Text
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from supernet.drawing import Picture
    from supernet.space import Arch, SearchSpace


@dataclass(frozen=True)
class Draw(Checked):
    """Cells as in the papers' figures, pyramids by level and cell, widths as bars over the seed's, other networks as a
    list of their steps."""

    name: Annotated[Text, tyro.conf.Positional]
    """A published network or pyramid. With --arch a space (for a detector its name or its backbone's, for a pyramid
    alone "nasfpn"), or the folder of a run, whose settings the space then has."""
    arch: Text | None = None
    """Architecture of the space: JSON, or a file with it, such as an export's arch.json; of a run also a key, or
    front:3 for the third of the front of --search."""
    search: Name | None = None
    """Of a run: draw the best architecture of this search."""
    out: FilePath | None = None
    """File to write; pictures are .svg. NAME.svg by default."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""


def run() -> None:
    args = parse(Draw, __doc__)

    if args.out is not None:
        check_out(args.out)
    if (Path(args.name) / "run.json").exists():
        picture = of_run(Path(args.name), args.arch, args.search)
    elif args.search is not None:
        from supernet.errors import InputError

        raise InputError(f"{args.name!r} is not the folder of a run and has no searches; give --arch without --search")
    else:
        picture = published(args.name) if args.arch is None else decided(args.name, read(args.arch))
    out = args.out or Path(f"{Path(args.name).resolve().name}.svg")
    check_out(out)
    picture.save(out)
    print(f"wrote {out}")


def check_out(out: Path) -> None:
    """Raises `InputError` unless an SVG file of this name can be written."""
    from supernet.errors import InputError

    if not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} to write {out.name!r} in")
    if out.suffix != ".svg":
        raise InputError(f"pictures are .svg, not {out.name!r}; browsers and Inkscape convert them")
    if out.exists() and not out.is_file():
        raise InputError(f"{str(out)!r} is a folder or a device, not a file; give another --out")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise InputError(f"{str(out)!r} must not be written to; give another --out")


def published(name: str) -> "Picture":
    """A published network or pyramid. Raises `InputError` with the nearest name."""
    from supernet.drawing import draw_cells
    from supernet.errors import InputError, nearest
    from supernet.spaces import GENOTYPES, NETWORKS
    from supernet.spaces.published_cells import CELLS

    if name in NETWORKS:
        return draw_cells(CELLS[NETWORKS[name].cells].cells, title=name)
    if name in GENOTYPES:
        return of_space(GENOTYPES[name].space, name, lambda space: space.from_indices(GENOTYPES[name].indices))

    from detection.nasfpn.drawing import draw_pyramid
    from detection.nasfpn.published import NASFPN_NETWORKS
    from detection.nasfpn.space import WIRINGS

    pyramids = {**WIRINGS, **{network: WIRINGS["nasfpn-7"] for network in NASFPN_NETWORKS}}
    if name not in pyramids:
        known = nearest(name, [*GENOTYPES, *NETWORKS, *pyramids])
        raise InputError(f"there is no published network {name!r}; give --arch and a space, or {known}")
    return draw_pyramid(pyramids[name], title=name)


def read(text: str) -> "Arch":
    """An architecture from JSON text or a file with it."""
    from supernet_tools.pipeline.architectures import read_arch

    return read_arch(text)


def of_run(folder: Path, text: str | None, search: str | None) -> "Picture":
    """An architecture of a run: one that is given, or the best of a search."""
    from supernet.errors import InputError
    from supernet_tools.pipeline.architectures import named_arch, read_arch
    from supernet_tools.pipeline.runs import open_run

    if text is None and search is None:
        raise InputError(f"{str(folder)!r} is the folder of a run; give --search NAME, or --arch")
    name, settings = recipe_of(folder)
    if search is None and text is not None and not text.startswith("front:") and (Path(text).exists() or "{" in text):
        return decided(name, read_arch(text), settings)  # no search is opened for it
    arch = named_arch(open_run(folder, trained=False), text, search or "aging-evolution")
    return decided(name, arch, settings)


def decided(name: str, arch: "Arch", settings: Mapping[str, Any] | None = None) -> "Picture":
    """An architecture of a space; for a detector the searched ones of backbone and pyramid, side by side."""
    from supernet.errors import InputError
    from supernet.plugins import FUNCTION, check_importable

    if settings is None and FUNCTION.fullmatch(name):
        check_importable(name)
    backbone_arch, pyramid = arch.sub("backbone"), None
    if any(choice.endswith("cell1.inputs") for choice in arch):
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

    return config.space, ClassifierKind(config).space_settings()


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


if __name__ == "__main__":
    main(run)
