"""Draw an architecture: python tools/draw.py nasnet-a-large --out cell.svg, or a space and --arch arch.json"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from supernet.checked import FilePath, Name, Text
from supernet.paths import check_new_file
from supernet_tools.pipeline.command_line import Flags, main, parse, search_unused
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from supernet.drawing import Picture


@dataclass(frozen=True)
class Draw(Flags):
    """Cells as in the papers' figures, pyramids by level and cell, widths as bars over the seed's, other networks as a
    list of their steps."""

    name: Annotated[Text, tyro.conf.Positional]
    """A published network or pyramid. With --arch a space (for a detector its name or its backbone's, for a pyramid
    alone "nasfpn"), or the folder of a run, whose settings the space then has."""
    arch: Text | None = None
    """Architecture of the space: JSON, or a file with it, such as an export's arch.json; of a run also a key, or
    front:3 for the third of the front of --search."""
    search: Name | None = None
    """For a run: draw the best architecture of this search."""
    out: FilePath | None = None
    """File to write; pictures are .svg. NAME.svg by default."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """A search beside a network that is named."""
        yield from search_unused(self.arch)


def run() -> None:
    args = parse(Draw, __doc__)

    if args.out is not None:
        check_picture(args.out)
    if (Path(args.name) / "run.json").exists():
        picture = of_run(Path(args.name), args.arch, args.search)
    elif args.search is not None:
        from supernet.errors import InputError

        raise InputError(f"{args.name!r} is not the folder of a run and has no searches; give --arch without --search")
    elif args.arch is None:
        picture = published(args.name)
    else:
        picture = of_text(args.name, args.arch)
    out = args.out or Path(f"{Path(args.name).resolve().name}.svg")
    check_picture(out)
    picture.save(out)
    print(f"wrote {out}")


def check_picture(out: Path) -> None:
    """Raises `InputError` unless a picture of this name can be written."""
    from supernet.errors import InputError

    if out.suffix != ".svg":
        raise InputError(f"pictures are .svg, not {out.name!r}; browsers and Inkscape convert them")
    check_new_file(out, flag="out", suffix=".svg")


def published(name: str) -> "Picture":
    """A published network or pyramid. Raises `InputError` with the nearest name."""
    from supernet.drawing import draw_cells
    from supernet.errors import InputError, nearest
    from supernet.spaces import GENOTYPES, NETWORKS
    from supernet.spaces.published_cells import CELLS

    if name in NETWORKS:
        return draw_cells(CELLS[NETWORKS[name].cells].cells, title=name)
    if name in GENOTYPES:
        from supernet_tools.pipeline.pictures import of_space

        return of_space(GENOTYPES[name].space, name, lambda space: space.from_indices(GENOTYPES[name].indices))

    from detection.nasfpn.drawing import draw_pyramid
    from detection.nasfpn.published import NASFPN_NETWORKS
    from detection.nasfpn.space import WIRINGS

    pyramids = {**WIRINGS, **{network: WIRINGS["nasfpn-7"] for network in NASFPN_NETWORKS}}
    if name not in pyramids:
        known = nearest(name, [*GENOTYPES, *NETWORKS, *pyramids])
        raise InputError(f"there is no published network {name!r}; give --arch and a space, or {known}")
    return draw_pyramid(pyramids[name], title=name)


def of_text(name: str, text: str) -> "Picture":
    """An architecture of a space by name, from JSON text or a file with it."""
    from supernet_tools.pipeline.architectures import read_arch
    from supernet_tools.pipeline.pictures import decided

    return decided(name, read_arch(text))


def _exists(text: str) -> bool:
    """Whether a text is the path of a file; one that is too long for a name is an architecture that cannot be read."""
    try:
        return Path(text).exists()
    except OSError:
        return True


def of_run(folder: Path, text: str | None, search: str | None) -> "Picture":
    """An architecture of a run: one that is given, or the best of a search."""
    from supernet.errors import InputError
    from supernet_tools.pipeline.architectures import named_arch, read_arch
    from supernet_tools.pipeline.pictures import decided, recipe_of
    from supernet_tools.pipeline.runs import open_run

    if text is None and search is None:
        raise InputError(f"{str(folder)!r} is the folder of a run; give --search NAME, or --arch")
    name, settings = recipe_of(folder)
    if search is None and text is not None and not text.startswith("front:") and ("{" in text or _exists(text)):
        return decided(name, read_arch(text), settings)  # no search is opened for it
    arch = named_arch(open_run(folder, trained=False), text, search or "aging-evolution")
    return decided(name, arch, settings)


if __name__ == "__main__":
    main(run)
