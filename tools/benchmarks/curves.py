"""Searches as curves of the best score so far, their intervals and plots, for tools/benchmarks/search.py."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from supernet.errors import InputError, nearest
from supernet.space import Arch, SearchSpace

STALE = 2_000  # trials without a new network after which a search is given up


# -- searches ----------------------------------------------------------------------------------------------------------


def maker(text: str) -> "functools.partial[Any]":
    """A searcher by its name in tools/search.py, with settings after a colon: `nsga2:population_size=20`."""
    from searchers.catalog import searcher_maker, searcher_settings

    name, _, settings = text.partition(":")
    known = searcher_settings(name)
    values: dict[str, Any] = {}
    for pair in filter(None, settings.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"settings of {name!r} are NAME=VALUE with commas between, not {pair!r}")
        if key not in known:
            raise InputError(f"searcher {name!r} has no setting {key!r}; {nearest(key, known)}")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value

    return functools.partial(searcher_maker(name), **values)


class Scored(Protocol):
    """A space whose networks have scores: an `Oracle`, or a trained supernet."""

    @property
    def space(self) -> SearchSpace: ...

    @property
    def best(self) -> float:
        """The highest score there is; infinite where nobody knows it."""

    def score(self, archs: Sequence[Arch]) -> Sequence[Mapping[str, float]]:
        """The metrics of architectures in their normal form, none of a failed training."""


def curve(oracle: Scored, searcher: Any, *, evaluations: int, batch: int) -> list[float]:
    """The best score after each distinct evaluation, up to the best network, the budget or the end of the search."""
    from searchers import Trial

    name, sign = searcher.metric.removeprefix("-"), -1.0 if searcher.metric.startswith("-") else 1.0
    best: list[float] = []
    seen: set[str] = set()
    trials = last = 0
    while trials < last + STALE and (archs := searcher.ask(batch)):
        forms = [oracle.space.normal_form(arch) for arch in archs]
        told = []
        for arch, form, metrics in zip(archs, forms, oracle.score(forms), strict=True):
            repeat, failed = form.key in seen, "" if metrics else "the table has no score"
            told.append(Trial(trials, arch, form.key, metrics, repeat, 0.0, 0, failed))
            trials += 1
            if not repeat:
                seen.add(form.key)
                last = trials
                found = sign * metrics[name] if metrics else -math.inf
                best.append(max(best[-1] if best else -math.inf, found))
            if best[-1] >= oracle.best or len(best) >= evaluations:
                return best
        searcher.tell(told)
    return best


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval by Student's t; the width is not a number for fewer than two values."""
    import numpy as np
    from scipy import stats

    n = len(values)
    if n < 2:
        return (values[0] if n else math.nan), math.nan
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def shown(values: Sequence[float], digits: int = 1) -> str:
    mean, half = interval(values)
    return "-" if math.isnan(mean) else f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def at(best: Sequence[float], evaluations: int) -> float:
    """The best score after so many evaluations; a search that ended before keeps what it had."""
    return best[min(evaluations, len(best)) - 1]


def plotly_objects() -> Any:
    """The package that draws."""
    try:
        import plotly.graph_objects  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("--out draws with the package plotly, which is not installed; pip install plotly") from error
    return plotly.graph_objects


def plot(
    title: str, curves: Mapping[str, Sequence[Sequence[float]]], *, evaluations: int, best: float = math.inf
) -> Any:
    """The mean over seeds by evaluations with its 95 % band, a colour per searcher: the regret, or the best so far.

    Args:
        title: of the picture.
        curves: searcher to the best score so far after each evaluation, one list per seed.
        evaluations: the last one drawn.
        best: the highest score there is, from which the regret is counted; infinite where nobody knows it.
    """
    from plotly.colors import qualitative  # type: ignore[import-not-found]

    objects, known = plotly_objects(), math.isfinite(best)
    figure = objects.Figure()
    for name, colour in zip(curves, qualitative.Dark24 * (1 + len(curves) // 24), strict=False):
        steps = list(range(1, evaluations + 1))
        bands = [interval([best - at(run, n) if known else at(run, n) for run in curves[name]]) for n in steps]
        mean, low, high = ([m + side * (0 if math.isnan(h) else h) for m, h in bands] for side in (0, -1, 1))
        low = [max(value, 0.0) if known else value for value in low]
        edges = {"x": steps + steps[::-1], "y": high + low[::-1]}
        figure.add_scatter(
            **edges,
            fill="toself",
            opacity=0.15,
            mode="none",
            fillcolor=colour,
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
        line = {"color": colour, "width": 1.5}
        figure.add_scatter(x=steps, y=mean, name=name, mode="lines", legendgroup=name, line=line)
    what = "regret (best score − best found)" if known else "best score found"
    figure.update_layout(
        title=f"{title}: mean and 95 % interval over seeds",
        xaxis_title="distinct evaluations",
        yaxis_title=what,
        xaxis_type="log",
    )
    return figure


def save_plot(figure: Any, path: Path) -> None:
    """`path`.html, and `path`.png where the package kaleido and its browser are there; a line says what is missing."""
    figure.write_html(path.with_suffix(".html"), include_plotlyjs=True)
    try:
        figure.write_image(path.with_suffix(".png"), width=1000, height=650)
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"{path.with_suffix('.png').name} is left out: {str(error).strip().splitlines()[0]}")
