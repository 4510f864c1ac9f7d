"""True accuracies of architectures from a table: the shipped benchmark, or a user's CSV file."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


def distinct(space: SearchSpace, rows: Mapping[Arch, Mapping[str, float]], column: str = "accuracy") -> Truth:
    """Returns the true accuracies in a table, one per network.

    Where several rows describe one network, the row in normal form wins, otherwise the first.
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


def read_truth(path: Path, space: SearchSpace, *, column: str = "accuracy") -> Truth:
    """Reads a CSV file with a column `arch` and a column of accuracies.

    Args:
        path: the file. `arch` is the JSON of an architecture, or the index of each option in the order of the space:
            consecutive digits, or numbers separated by `-`. The columns COLUMN_1, COLUMN_2, … are single trainings.
        space: the search space of the architectures.
        column: the name of the accuracy column; higher is better. An empty cell is a failed training.

    Raises:
        InputError: a column is missing, a row's architecture is not in the space, or a cell is not a number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); give a text file with a header line") from error
    names = list(rows[0]) if rows else []
    for name in ("arch", column):
        if name not in names:
            raise InputError(f"{path} has no column {name!r}; {nearest(name, names)}")
    wanted = [name for name in names if name == column or re.fullmatch(rf"{re.escape(column)}_\d+", name)]
    table = {}
    for line, row in enumerate(rows, start=2):
        try:
            values = {name: float(row[name]) for name in wanted if (row[name] or "").strip()}
            table[_arch(row["arch"].strip(), space)] = values
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return distinct(space, table, column)


def _arch(text: str, space: SearchSpace) -> Arch:
    """Reads an architecture from a cell; see `read_truth`."""
    if text.startswith("{"):
        return space.canonical(Arch.from_json(text))
    return space.from_indices([int(part) for part in (text.split("-") if "-" in text else text)])
