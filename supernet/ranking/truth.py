"""True accuracies of architectures from a table: the shipped benchmark, or a user's CSV file."""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supernet.checked import arguments_explained, checked_arguments
from supernet.csv_rows import csv_rows
from supernet.errors import InputError, nearest
from supernet.space import Arch, SearchSpace


def finite(value: float | None) -> bool:
    """Returns whether the value exists and is finite."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Truth:
    """True accuracies of distinct networks, by normal form.

    Attributes:
        values: mean accuracy; None where the table has none.
        repeats: accuracies of the single trainings, for networks whose trainings are all in the table.
    """

    values: dict[Arch, float | None]
    repeats: dict[Arch, tuple[float, ...]]


@arguments_explained  # a table of millions of cells, some of them NaN
def distinct(space: SearchSpace, rows: Mapping[Arch, Mapping[str, float]], column: str = "accuracy") -> Truth:
    """Returns the true accuracies in a table, one per network.

    Where several rows describe one network, the row in normal form wins, otherwise the first.

    Raises:
        InputError: something else than rows of numbers by architecture, or one of another space.
    """
    chosen: dict[Arch, Mapping[str, float]] = {}
    for arch, row in rows.items():
        form = space.normal_form(arch)
        if form not in chosen or arch == form:
            chosen[form] = row
    names = sorted({n for row in chosen.values() for n in row if re.fullmatch(rf"{re.escape(column)}_\d+", n)})
    truth = Truth({}, {})
    for form, row in chosen.items():
        value = row.get(column)
        truth.values[form] = value if finite(value) else None
        runs = [row.get(name, math.nan) for name in names]
        if runs and all(map(finite, runs)):
            truth.repeats[form] = tuple(runs)
    return truth


@checked_arguments
def read_truth(path: Path, space: SearchSpace, *, column: str = "accuracy") -> Truth:
    """Reads a CSV file with a column `arch` and a column of accuracies.

    Cells are separated by commas, or by semicolons or tabs if the header is, as spreadsheets write them. With
    semicolons and tabs a decimal comma is read too.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark. `arch` is the JSON of an architecture, or the
            index of each option in the order of the space: consecutive digits, or numbers separated by `-`. The columns
            COLUMN_1, COLUMN_2, … are single trainings.
        space: the search space of the architectures.
        column: the name of the accuracy column; higher is better. An empty cell is a failed training.

    Raises:
        InputError: a column is missing or stands there twice, a row's architecture is not in the space, a cell is not a
            finite number, or an architecture has other accuracies in another row. The line is named.
    """
    if column == "arch":
        raise InputError("column='arch' has the architectures; name the column of their accuracies")
    numbered, delimiter = csv_rows(path)
    names = numbered[0][1] if numbered else []
    for name in ("arch", column):
        if names.count(name) != 1:
            problem = f"two columns {name!r}" if name in names else f"no column {name!r}"
            raise InputError(f"{path} has {problem}; {nearest(name, dict.fromkeys(names))}")
    wanted = [name for name in names if name == column or re.fullmatch(rf"{re.escape(column)}_\d+", name)]
    table: dict[Arch, dict[str, float]] = {}
    lines: dict[Arch, int] = {}
    longer = []
    for line, cells in numbered[1:]:
        row = dict(zip(names, cells, strict=False))
        extra = [cell for cell in cells[len(names) :] if cell.strip()]
        try:
            if any(map(str.isdigit, extra)):
                raise InputError(f"it has {len(cells)} cells, not {len(names)}; write numbers with a decimal point")
            values = {name: _number(row[name], name, delimiter) for name in wanted if row.get(name, "").strip()}
            arch = _arch(row["arch"].strip(), space)
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if table.setdefault(arch, values) != values:
            raise InputError(
                f"{path}, line {line}: the architecture of line {lines[arch]} again with other numbers ({values}, "
                f"before {table[arch]}); keep one of the two"
            )
        lines.setdefault(arch, line)
        longer += [line] if extra else []
    if longer:
        warnings.warn(
            f"{len(longer)} lines of {path} have more cells than the header, which are not used; the first is line "
            f"{longer[0]}",
            stacklevel=2,
        )
    return distinct(space, table, column)


def _number(text: str, name: str, delimiter: str) -> float:
    """Reads a finite number from a cell. Raises `InputError` that names the column."""
    value = text.strip() if delimiter == "," else text.strip().replace(",", ".")
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"could not convert {name} {text[:80]!r} to a number") from None
    if not math.isfinite(number):
        raise InputError(f"{name} {text[:80]!r} is not finite; leave the cell of a failed training empty")
    return number


def _arch(text: str, space: SearchSpace) -> Arch:
    """Reads an architecture from a cell; see `read_truth`."""
    if not text:
        raise InputError("the cell of the column 'arch' is empty")
    if text.startswith("{"):
        return space.canonical(Arch.from_json(text))
    return space.from_indices([int(part) for part in (text.split("-") if "-" in text else text)])
