"""Several objectives: Pareto fronts, their hypervolume, and the sorting that NSGA-II selects by."""

import math
from collections.abc import Collection, Sequence

from searchers.study import Trial, score
from supernet.checked import is_number, plain_scalar, shown
from supernet.errors import InputError

MINIMISED = ("macs", "params", "activations", "matmul_macs", "latency_ms", "loss")
"""Metrics that are minimised; naming one as an objective without a minus is an error."""

Point = Sequence[float]
"""Values of the objectives, all to be maximised."""


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that no other trial dominates by being at least as good in every objective and better in one.

    Args:
        trials: the candidates; failed ones are left out, and of equal ones the first stays.
        objectives: metrics to maximise; with a leading minus (`"-macs"`), to minimise.

    Returns:
        the front, best in the first objective first.

    Raises:
        InputError: a trial lacks one of the metrics, or `objectives` is a single string.
    """
    _check_names(objectives)
    if not isinstance(trials, Sequence) or not all(isinstance(trial, Trial) for trial in trials):
        raise InputError(f"trials={shown(trials)} should be a sequence of Trial")
    scored = [(tuple(score(t, name) for name in objectives), t) for t in trials if not t.failed]
    scored.sort(key=lambda pair: (tuple(-value for value in pair[0]), pair[1].number))
    front: list[tuple[tuple[float, ...], Trial]] = []
    for values, trial in scored:  # a trial comes after all that dominate it
        if not any(all(a >= b for a, b in zip(other, values, strict=True)) for other, _ in front):
            front.append((values, trial))
    return [trial for _, trial in front]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that is at least as good as the reference and at most as good as one of the points (Zitzler, 1999).

    It is exact in any number d of objectives: a sweep in O(n log n) for two; for more, slices along the last objective,
    in O(n**(d - 1) log n). Thousands of points in two dimensions and hundreds in three take a second at most.

    Args:
        points: values to maximise; points not better than the reference in every objective add nothing.
        reference: the worst value of each objective that counts.

    Raises:
        InputError: a point with another number of objectives, or a value that is not a finite number.
    """
    try:
        sound = [len(point) == len(reference) and all(map(math.isfinite, point)) for point in (*points, reference)]
    except TypeError as error:
        raise InputError(f"points and reference hold something other than numbers ({error})") from error
    if not all(sound):
        wrong = (*points, reference)[sound.index(False)]
        raise InputError(f"the point {tuple(wrong)} does not compare with the reference {tuple(reference)}")
    above = {tuple(point) for point in points if all(a > b for a, b in zip(point, reference, strict=True))}
    return _sliced(sorted(above, key=lambda point: -point[-1]), tuple(reference))


def _sliced(points: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """The hypervolume of points above the reference, which are sorted by the last objective, highest first."""
    if len(reference) == 1:
        return points[0][0] - reference[0] if points else 0.0
    if len(reference) == 2:
        return _swept(points, reference)
    volume = 0.0
    for number, point in enumerate(points, start=1):
        floor = points[number][-1] if number < len(points) else reference[-1]
        if point[-1] > floor:  # between these two heights, the first `number` points reach up
            below = sorted({p[:-1] for p in points[:number]}, key=lambda p: -p[-1])
            volume += (point[-1] - floor) * _sliced(below, reference[:-1])
    return volume


def _swept(points: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """The area: from the highest point down, each adds the strip by which it is wider than all before it."""
    area, widest = 0.0, reference[0]
    for first, second in points:
        if first > widest:
            area += (first - widest) * (second - reference[1])
            widest = first
    return area


def nondominated_sort(points: Sequence[Point], violations: Sequence[float] | None = None) -> list[list[int]]:
    """Fast non-dominated sorting (Deb et al., 2002, § III-A) with constrained domination (§ VI-A).

    Args:
        points: values to maximise.
        violations: how far each point violates the constraints, 0 for not at all. A smaller violation dominates;
            points that violate nothing are compared by their objectives.

    Returns:
        the positions of the points by front, in ascending order within each front.

    Raises:
        InputError: points of different numbers of values or with NaN, or another number of violations.
    """
    _check_points(points)
    if violations is not None and (len(violations) != len(points) or not all(map(_is_value, violations))):
        raise InputError(f"violations={shown(violations)} should be a number for each of {len(points)} points, not NaN")
    excess = [0.0] * len(points) if violations is None else violations

    def dominates(a: int, b: int) -> bool:
        if excess[a] or excess[b]:
            return excess[a] < excess[b]
        pairs = list(zip(points[a], points[b], strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    dominated: list[list[int]] = [[] for _ in points]  # by each point
    dominators = [0] * len(points)  # how many dominate each point
    for a in range(len(points)):
        for b in range(a):
            for winner, loser in ((a, b), (b, a)):
                if dominates(winner, loser):
                    dominated[winner].append(loser)
                    dominators[loser] += 1
    fronts = [[i for i, count in enumerate(dominators) if count == 0]]
    while fronts[-1]:
        next_front = []
        for winner in fronts[-1]:
            for loser in dominated[winner]:
                dominators[loser] -= 1
                if dominators[loser] == 0:
                    next_front.append(loser)
        fronts.append(sorted(next_front))
    return fronts[:-1]


def crowding_distance(points: Sequence[Point]) -> list[float]:
    """The perimeter of the box between a point's neighbours on its front, infinite at the ends (§ III-B).

    Each objective counts relative to its range over the points; one in which all are equal does not count.

    Raises:
        InputError: points of different numbers of values or with NaN.
    """
    _check_points(points)
    distance = [0.0] * len(points)
    for objective in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: points[i][objective])
        values = [points[i][objective] for i in order]
        if values[0] == values[-1]:
            continue
        distance[order[0]] = distance[order[-1]] = math.inf
        for place in range(1, len(order) - 1):
            distance[order[place]] += (values[place + 1] - values[place - 1]) / (values[-1] - values[0])
    return distance


def _check_points(points: Sequence[Point]) -> None:
    """Raises `InputError` for points that cannot be compared."""
    try:
        sound = all(len(point) == len(points[0]) and all(map(_is_value, point)) for point in points)
    except TypeError:
        sound = False
    if not sound:
        raise InputError(f"points={shown(points)} should be sequences of equally many numbers, none of them NaN")


def _is_value(value: object) -> bool:
    return is_number(plain_scalar(value))


def check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    """Returns valid objectives as a tuple: two or more metrics, costs with a minus. Raises `InputError` otherwise."""
    _check_names(objectives)
    names = [name.removeprefix("-") for name in objectives]
    if len(set(names)) < max(2, len(names)) or not all(names):
        raise InputError(f"objectives={tuple(objectives)!r} are not two or more different metrics; name each once")
    for objective in objectives:
        if objective in MINIMISED:
            raise InputError(f"objective {objective!r} would be maximised; write '-{objective}' to minimise it")
    return tuple(objectives)


def _check_names(objectives: Sequence[str]) -> None:
    """Raises `InputError` for a single string, which would be read as a sequence of letters, and for other types."""
    named = isinstance(objectives, Collection) and not isinstance(objectives, str) and len(objectives) > 0
    if not named or not all(isinstance(name, str) for name in objectives):
        raise InputError(f"objectives={objectives!r} is not a sequence of names; write ('accuracy', '-macs')")
