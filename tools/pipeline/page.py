"""Parts of a report: sections with sentences, tables, plots and images. Names from data are always shown as text."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from supernet.ranking.statistics import json_safe

TILE = 96
"""Pixels of an embedded image."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#666666")
"""Distinguishable with colour-vision deficiency (Okabe & Ito)."""


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: the heading.
        lines: sentences.
        tables: each with a caption, columns and rows.
        plots: each with an id, traces and a layout of plotly.
        images: each with a source (a data URI) and a caption.
        picture: a data URI of a drawing, or empty.
        code: commands, verbatim.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    plots: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    picture: str = ""
    code: list[str] = field(default_factory=list)

    def table(
        self,
        caption: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        bars: Mapping[str, Callable[[float], str]] | None = None,
    ) -> None:
        """Adds a table.

        Args:
            caption: above it; may be empty.
            columns: their titles.
            rows: their values.
            bars: functions that format the numbers of a column, by its title. Each number gets a bar, its share of the
                column's largest.
        """
        drawn = {columns.index(title): write for title, write in (bars or {}).items()}
        largest = {place: max((float(str(row[place])) for row in rows), default=0.0) for place in drawn}
        cells: list[list[object]] = []
        for row in rows:
            cells.append([])
            for place, value in enumerate(row):
                if place in drawn:
                    number = float(str(value))
                    share = 100 * number / largest[place] if largest[place] else 0.0
                    cells[-1].append({"text": drawn[place](number), "share": f"{share:.1f}"})
                else:
                    cells[-1].append(_cell(value))
        self.tables.append({"caption": caption, "columns": list(columns), "rows": cells})

    def plot(self, name: str, traces: Sequence[Mapping[str, Any]], *, x: str, y: str, **layout: Any) -> None:
        """Adds a plot."""
        frame = {
            "margin": {"l": 60, "r": 20, "t": 70, "b": 50},
            "xaxis": {"title": {"text": plain(x)}, "automargin": True},
            "yaxis": {"title": {"text": plain(y)}, "automargin": True},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
            **layout,
        }
        self.plots.append({"id": name, "data": json_safe(list(traces)), "layout": json_safe(frame)})


def plain(text: object) -> str:
    """Returns a text escaped for plotly, which interprets tags and entities."""
    return html.escape(str(text), quote=False)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def jpeg(pixels: Tensor, side: int = TILE) -> str:
    """An image as a data URI.

    Args:
        pixels: uint8, (C, H, W) with one or three channels; of others the first is shown.
        side: height and width in pixels.
    """
    from PIL import Image

    shown = pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1)
    image = Image.fromarray(shown.permute(1, 2, 0).contiguous().cpu().numpy())
    content = io.BytesIO()
    resample = Image.Resampling.NEAREST if image.width < side // 2 else Image.Resampling.LANCZOS
    image.resize((side, side), resample).save(content, format="jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def category_axis(title: str) -> dict[str, Any]:
    """An axis of plotly with a name per value."""
    return {"title": {"text": plain(title)}, "type": "category", "automargin": True}


def curve(x: Sequence[Any], y: Sequence[Any], name: str, colour: int, dash: str = "solid") -> dict[str, Any]:
    """A line with a point per value; `colour` is a place in `COLOURS`."""
    line = {"color": COLOURS[colour % len(COLOURS)], "dash": dash}
    return {"type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y), "name": plain(name), "line": line}


def markers(
    x: Sequence[Any], y: Sequence[Any], name: str, colour: int, text: Sequence[str], **marker: Any
) -> dict[str, Any]:
    """A point per value, each with a text that is shown while the pointer is over it; `marker` is plotly's."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "name": plain(name),
        "hovertext": list(text),
        "hovertemplate": "%{x}, %{y}<br>%{hovertext}<extra></extra>",
        "marker": {"color": COLOURS[colour % len(COLOURS)], "size": 7, **marker},
    }
