"""Fronts of searches with more than one objective."""

from collections.abc import Sequence

from searchers.study import Trial, score


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that no other one beats: none is at least as good in every objective and better in one.

    Args:
        trials: failed ones are left out; of equal ones the first stays.
        objectives: metrics, maximised; with a leading minus ("-macs"), minimised.

    Returns:
        the front, best in the first objective first.

    Raises:
        InputError: a trial without one of the metrics.
    """
    scored = [(tuple(score(t, name) for name in objectives), t) for t in trials if not t.failed]
    scored.sort(key=lambda pair: (tuple(-value for value in pair[0]), pair[1].number))
    front: list[tuple[tuple[float, ...], Trial]] = []
    for values, trial in scored:  # whatever beats a trial comes before it
        if not any(all(a >= b for a, b in zip(other, values, strict=True)) for other, _ in front):
            front.append((values, trial))
    return [trial for _, trial in front]
