"""What all scripts share: recipes and names from the command line, one-line errors, tables on screen."""

import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from supernet.errors import InputError, RunError, nearest

T = TypeVar("T")


def main(run: Callable[[], None]) -> None:
    """Run a script; wrong input ends in one line and exit code 2, a run that cannot go on in 1, Ctrl-C in 130."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {rank()}{message}", file=sys.stderr)
    try:
        run()
    except (InputError, RunError) as error:
        print(f"error: {rank()}{error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    except KeyboardInterrupt:
        print("interrupted; what was done is saved and the same command goes on with it", file=sys.stderr)
        raise SystemExit(130) from None


def rank() -> str:
    """Which process of a torchrun speaks; nothing for the first, or the only one."""
    number = os.environ.get("RANK", "0")
    return "" if number == "0" else f"(rank {number}) "


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """An entry of a table by name. Raises `InputError` with the nearest name."""
    if name not in table:
        raise InputError(f"there is no {kind} {name!r}; {nearest(name, table)}")
    return table[name]


def parse(settings: type[T], description: str | None, args: Sequence[str] | None = None) -> T:
    """A dataclass from typed command-line flags."""
    return tyro.cli(settings, description=description, args=args)


def parse_recipe(recipes: Mapping[str, Callable[[], T]], description: str) -> tuple[T, Path, bool]:
    """`RECIPE [--field value …] --out FOLDER [--plan]`: the recipe with every field open to a flag, folder, plan."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:24}{(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.items()]
        print(f"{description}\n\nusage: {sys.argv[0]} RECIPE [--help] [--field value ...] --out FOLDER\n\nrecipes:")
        print("\n".join(lines))
        raise SystemExit(0 if args else 2)
    recipe = choose("recipe", args[0], recipes)()

    kind = type(recipe)

    def configure(
        *,
        out: Path,
        plan: bool = False,
        config: Annotated[kind, tyro.conf.arg(name="")] = recipe,  # type: ignore[valid-type]
    ) -> tuple[Any, Path, bool]:
        """Train by this recipe.

        Args:
            out: Folder of the run; an interrupted one goes on.
            plan: Only say what it would take: parameters, memory, time, disk.
            config: Every field of the recipe.
        """
        return config, out, plan

    return tyro.cli(configure, args=args[1:], prog=f"{Path(sys.argv[0]).name} {args[0]}", description=description)


def given_arch(text: str) -> Any:
    """The `Arch` of JSON text or of a file with it, such as an export's arch.json; nothing of a space is checked."""
    from supernet.space import Arch

    if text.lstrip().startswith("{"):
        return Arch.from_json(text)
    try:
        written = Path(text).read_text(encoding="utf-8")
        document = json.loads(written)
    except FileNotFoundError:
        raise InputError(f"{text!r} is neither the JSON of an architecture nor a file with one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"the architecture {text!r} cannot be read ({error})") from error
    exported = isinstance(document, dict) and isinstance(document.get("values"), dict)
    return Arch.from_json(json.dumps(document["values"]) if exported else written)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_differences(differences: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of `supernet.ranking.statistics.Difference`s, as dictionaries, by name."""
    rows = [
        (
            name,
            f"{d['mean']['value']:+.4f}",
            f"{d['mean']['low']:+.4f} to {d['mean']['high']:+.4f}",
            f"{d['p']:.3f}",
            f"{d['detectable']:.4f}",
            "{} and {}".format(*d["sizes"]),
        )
        for name, d in differences.items()
    ]
    columns = ("difference", "mean", "95 %", "p", "detectable at power 0.8", "n")
    print_table("differences", columns, rows)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation over trainings."""
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _cell(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)
