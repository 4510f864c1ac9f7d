"""Scores extrapolated to a longer training, by what the run's own training recorded; see `supernet.ranking.growth`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supernet.errors import InputError
from supernet.files import read_json
from supernet.ranking.growth import Growth, Slope, extrapolated, growth
from supernet.space import Arch
from supernet_tools.pipeline.run import Run

EXTRAPOLATED = "extrapolated"
"""The metric that is added to the shared ones."""

Evaluate = Callable[[Sequence[Arch]], Sequence[Mapping[str, float] | None]]


def metric_of(run: Run) -> str:
    """The metric that is extrapolated: the loss of classifiers, which says more than few images' accuracy."""
    return "loss" if "loss" in run.kind.metrics else str(run.kind.metric)


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """A metric, higher is better."""
    return -metrics[metric] if metric == "loss" else metrics[metric]


def growth_of(run: Run) -> Growth | None:
    """The growth of the advantage of size in the training of a run; None where it was not recorded.

    Raises:
        InputError: `history.json` is damaged.
    """
    file = run.folder / "history.json"
    if not file.exists():
        return None
    try:
        rows = read_json(file).get("health", {}).get("size", ())
        return growth([Slope(**row) for row in rows])
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{file} has entries 'size' that this release did not write; restore the file") from error


def bonus_of(run: Run) -> float:
    """What a unit of ln(MACs) adds to the loss, with its sign turned, after a training as the run's recipe retrains."""
    seen, train, retrain = growth_of(run), run.config.train, run.config.retrain
    if seen is None or not train.epochs:
        return 0.0
    return seen.bonus(run.space, retrain.epochs / train.epochs)


class ExtrapolatedScores:
    """An evaluator that adds the extrapolated score to the shared metrics of another.

    Args:
        evaluate: scores architectures with shared weights.
        run: supplies the costs.
        bonus: per unit of ln(MACs).
    """

    def __init__(self, evaluate: Evaluate, run: Run, bonus: float) -> None:
        self.evaluate, self.run, self.bonus = evaluate, run, bonus

    @property
    def settings(self) -> Mapping[str, Any]:
        """What scores depend on; the bonus is a part of it."""
        return {**getattr(self.evaluate, "settings", {}), "growth": f"{self.bonus:.6g}"}

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        """Returns the metrics of the other evaluator with `extrapolated` among them; None for a failure."""
        results = list(self.evaluate(archs))
        metric = metric_of(self.run)
        scores = {a: score_of(m, metric) for a, m in zip(archs, results, strict=True) if m is not None}
        values = extrapolated(scores, {arch: self.run.cost(arch)["macs"] for arch in scores}, self.bonus)
        return [
            None if metrics is None else {**metrics, EXTRAPOLATED: values[arch]}
            for arch, metrics in zip(archs, results, strict=True)
        ]


def extrapolator(run: Run) -> Callable[[Evaluate], ExtrapolatedScores]:
    """Returns what adds the extrapolated score to an evaluator.

    Raises:
        InputError: no growth was recorded, or none is seen.
    """
    bonus = bonus_of(run)
    if not bonus:
        raise InputError(
            f"the training of {run.folder} shows no advantage of larger networks that would grow until the end of a "
            "retraining, so scores cannot be extrapolated: leave out --extrapolate"
        )
    return lambda evaluate: ExtrapolatedScores(evaluate, run, bonus)
