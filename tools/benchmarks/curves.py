"""Searches as curves of the best score so far, with intervals and plots. Used by tools/benchmarks/search.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

if TYPE_CHECKING:
    import plotly.graph_objects

    from searchers.loop import Searcher

PATIENCE = 2_000
"""Trials without a new network after which a search is given up."""

Curve = list[float]
"""The best score so far after each distinct evaluation."""


# -- searches ----------------------------------------------------------------------------------------------------------


def maker(text: str, evaluations: int | None = None) -> "_Maker":
    """Returns what makes a searcher with its settings bound.

    Args:
        text: a name from tools/search.py, with settings after a colon: `nsga2:population_size=20,mutation=0.1`, or
            `nsga2:published`, or `nsga2:published:mutation=0.1`.
        evaluations: the budget that settings suit which are not given; None for the published ones.

    Raises:
        InputError: there is no such searcher or setting, or a value has the wrong type.
    """
    from searchers.catalog import PUBLISHED, searcher_class
    from supernet_tools.pipeline.settings import parse_settings

    name, _, settings = text.partition(":")
    if f":{settings.partition(':')[0]}" == PUBLISHED:
        name, settings = name + PUBLISHED, settings.partition(":")[2]
    values = parse_settings(
        searcher_class(name),
        [pair for pair in settings.split(",") if pair],
        owner=f"the searcher {name!r}",
        reserved=("space", "seed", "feasible"),
    )
    return _Maker(name, values, evaluations)


@dataclass(frozen=True)
class _Maker:
    """A searcher by name, with settings, for a budget."""

    name: str
    keywords: Mapping[str, Any]
    evaluations: int | None

    def __call__(self, space: SearchSpace, **settings: Any) -> Any:
        from searchers.catalog import budget_settings, searcher_maker

        overrides = {**self.keywords, **settings}
        suited = {} if self.evaluations is None else budget_settings(self.name, space, self.evaluations, overrides)
        return searcher_maker(self.name)(space, **suited, **overrides)


class Scored(Protocol):
    """A space whose networks have scores: an `Oracle`, or a trained supernet."""

    @property
    def space(self) -> SearchSpace:
        """The space that is searched."""

    @property
    def best(self) -> float:
        """The highest score in the space; infinity if it is unknown."""

    def score(self, archs: Sequence[Arch]) -> Sequence[Mapping[str, float]]:
        """Returns the metrics of architectures in normal form; an empty mapping stands for a failed training."""


def curve(oracle: Scored, searcher: "Searcher", *, evaluations: int, batch: int, trials: int | None = None) -> Curve:
    """Runs a search and returns the best score so far after each distinct evaluation.

    The curve ends at the best network of the space, at the budget, or when the searcher proposes nothing new.

    Args:
        oracle: what scores the proposals.
        searcher: a fresh one.
        evaluations: the budget, in distinct networks.
        batch: architectures per proposal.
        trials: the budget in trials, repeats included; None for no other limit than `PATIENCE`.
    """
    from searchers import Trial

    metric: str = searcher.metric
    name, sign = metric.removeprefix("-"), -1.0 if metric.startswith("-") else 1.0
    best: Curve = []
    seen: set[str] = set()
    done = last_new = 0
    while done < (last_new + PATIENCE if trials is None else trials) and (archs := searcher.ask(batch)):
        forms = [oracle.space.normal_form(arch) for arch in archs]
        reports = []
        for arch, form, metrics in zip(archs, forms, oracle.score(forms), strict=True):
            repeat, failed = form.key in seen, "" if metrics else "the table has no score"
            reports.append(Trial.of(oracle.space, arch, metrics, number=done, repeat=repeat, failed=failed))
            done += 1
            if not repeat:
                seen.add(form.key)
                last_new = done
                score = sign * metrics[name] if metrics else -math.inf
                best.append(max(best[-1] if best else -math.inf, score))
            if best[-1] >= oracle.best or len(best) >= evaluations:
                return best
        searcher.tell(reports)
    return best


def best_after(curve: Sequence[float], evaluations: int) -> float:
    """Returns the best score after a number of evaluations; a search that ended earlier keeps its last value."""
    return curve[min(evaluations, len(curve)) - 1]


# -- means and plots ---------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half-width of its 95 % interval by Student's t; NaN for fewer than two values."""
    from supernet.ranking.statistics import mean_interval

    mean = mean_interval(values)
    return mean.value, mean.high - mean.value


def format_mean(values: Sequence[float], digits: int = 1) -> str:
    """Returns "mean ± half-width of the 95 % interval"; the mean alone for one value, a dash for none."""
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def new_figure() -> "plotly.graph_objects.Figure":
    """Returns an empty figure. Raises `InputError` if plotly is not installed."""
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise InputError("plots need the package plotly, which is not installed: pip install plotly") from error
    return plotly.graph_objects.Figure()


def plot(
    title: str, curves: Mapping[str, Sequence[Sequence[float]]], *, evaluations: int, best: float = math.inf
) -> "plotly.graph_objects.Figure":
    """Draws, for each searcher, the mean over seeds and its 95 % band against evaluations on a logarithmic axis.

    Args:
        title: the title of the figure.
        curves: searcher to one curve per seed.
        evaluations: where the axis ends.
        best: the highest score in the space. If it is finite, the regret is drawn, otherwise the best score so far.
    """
    figure = new_figure()
    from plotly.colors import qualitative

    known = math.isfinite(best)
    value: Callable[[Sequence[float], int], float] = (
        (lambda run, n: best - best_after(run, n)) if known else (lambda run, n: best_after(run, n))
    )
    steps = list(range(1, evaluations + 1))
    for name, colour in zip(curves, qualitative.Dark24 * (1 + len(curves) // 24), strict=False):
        bands = [interval([value(run, n) for run in curves[name]]) for n in steps]
        halves = [0.0 if math.isnan(half) else half for _, half in bands]
        mean = [middle for middle, _ in bands]
        high = [middle + half for middle, half in zip(mean, halves, strict=True)]
        low = [middle - half for middle, half in zip(mean, halves, strict=True)]
        if known:
            low = [max(edge, 0.0) for edge in low]  # a regret is never negative
        figure.add_scatter(
            x=steps + steps[::-1],
            y=high + low[::-1],
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
    figure.update_layout(
        title=f"{title}: mean and 95 % interval over seeds",
        xaxis_title="distinct evaluations",
        yaxis_title="regret (best score − best found)" if known else "best score found",
        xaxis_type="log",
    )
    return figure


def save_plot(figure: "plotly.graph_objects.Figure", path: Path) -> None:
    """Writes `path`.html, and `path`.png if the package kaleido and its browser are installed.

    If they are not, one printed line says why there is no PNG.
    """
    from supernet.files import replacing

    with replacing(path.with_suffix(".html")) as temporary:  # never through a link that somebody has put there
        temporary.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    try:
        figure.write_image(path.with_suffix(".png"), width=1000, height=650)
    except (ImportError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        print(f"{path.with_suffix('.png').name} was not written: {reason}")
