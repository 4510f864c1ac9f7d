"""Tables on standard output."""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table. Names of users stand in it as they are: "[bold]" is no markup."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        *(Column(Text(column)) for column in columns), title=Text(title, style="table.title"), title_justify="left"
    )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_differences(differences: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints differences between two arms by name, each a `supernet.ranking.statistics.Difference` as a dictionary."""
    rows = [
        (
            name,
            f"{difference['mean']['value']:+.4f}",
            f"{difference['mean']['low']:+.4f} to {difference['mean']['high']:+.4f}",
            f"{difference['p']:.3f}",
            f"{difference['detectable']:.4f}",
            "{} and {}".format(*difference["sizes"]),
        )
        for name, difference in differences.items()
    ]
    print_table("differences", ("difference", "mean", "95 %", "p", "detectable at power 0.8", "n"), rows)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation over trainings, as text."""
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _cell(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        if abs(value) < 1e-3:
            return f"{value:.1e}"
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)
