"""Draw an architecture: python tools/draw.py nasnet-a-large --out cell.svg, or a space and --arch arch.json"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from common import main, parse


@dataclass(frozen=True)
class Draw:
    """Cells as in the papers' figures, widths as bars over the seed's, other networks as a list of their steps."""

    name: Annotated[str, tyro.conf.Positional]
    """A published network, or with --arch a space."""
    arch: str | None = None
    """Architecture of the space: JSON, or a file with it."""
    out: Path | None = None
    """File to write, .svg or .png; NAME.svg by default."""


def run() -> None:
    args = parse(Draw, __doc__)

    from supernet.drawing import Picture, draw_cells, draw_chain, draw_widths
    from supernet.errors import InputError, nearest
    from supernet.space import Arch
    from supernet.spaces import GENOTYPES, NETWORKS, builder
    from supernet.spaces.cells import CELLS, cells_of

    title = args.name
    if args.arch is None and args.name in NETWORKS:
        picture: Picture = draw_cells(CELLS[NETWORKS[args.name].cells].cells, title=title)
    else:
        import torch

        if args.arch is None and args.name not in GENOTYPES:
            known = nearest(args.name, [*GENOTYPES, *NETWORKS])
            raise InputError(f"there is no published network {args.name!r}; give --arch and a space, or {known}")
        space_name = args.name if args.arch is not None else GENOTYPES[args.name].space
        with torch.device("meta"):
            chain = builder(space_name)(phase="standalone")
        space = chain.space
        if args.arch is None:
            arch = space.from_indices(GENOTYPES[args.name].indices)
        else:
            text = args.arch if args.arch.lstrip().startswith("{") else _read(Path(args.arch))
            arch = space.canonical(Arch.from_json(text))
            title = f"{args.name} {arch.key}"
        if any(name.endswith(".block0.left") for name in arch):
            picture = draw_cells(cells_of(arch, space).cells, title=title)
        elif hasattr(chain, "seed"):  # a WidthChain
            picture = draw_widths(arch, chain.seed, title=title)
        else:
            picture = draw_chain(arch, title=title)
    out = args.out or Path(f"{args.name}.svg")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} to write {out.name!r} in")
    picture.save(out)
    print(f"wrote {out}")


def _read(path: Path) -> str:
    from supernet.errors import InputError

    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the architecture {str(path)!r} cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    main(run)
