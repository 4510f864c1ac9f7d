"""Calibrated ranking: a few stand-alone trainings of the top networks correct the bias of shared-weight scores.

Weight sharing is biased, not only noisy: an option that trains slowly inside the supernet, or depth itself, lowers the
score of every architecture that has it. Such errors are nearly additive in the decisions, so a few true accuracies
reveal them: a ridge regression on one-hot decisions uses the shared score as its prior (cheap scores as input of a
model-based predictor: White et al., 2021, §5).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.checked import arguments_explained, is_number, is_whole, shown
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

Floats = NDArray[np.float64]
Label = Callable[[Sequence[Arch]], Sequence[float | None]]
"""Trains architectures on their own and returns their accuracies; None for a training that failed."""

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, math.inf)  # an infinite one means no correction at all
FLOOR = 0.1  # least slope of truth on score, as a ratio of their deviations: few labels must not reverse the score
FEWEST = 3  # labels: a slope, an intercept and one degree of freedom


@arguments_explained
def one_hot(space: SearchSpace, archs: Sequence[Arch]) -> Floats:
    """Returns the decisions of the normal forms, one-hot, (architectures, options of all choices); 0 where inactive.

    Raises:
        InputError: an architecture of another space.
    """
    starts = np.cumsum([0, *(len(choice.options) for choice in space.choices)])
    place = {choice.name: int(start) for choice, start in zip(space.choices, starts, strict=False)}
    features = np.zeros((len(archs), int(starts[-1])))
    for row, arch in enumerate(archs):
        form = space.normal_form(arch)
        for choice in space.active(form):
            features[row, place[choice.name] + choice.index(form[choice.name])] = 1.0
    return features


# -- ridge ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ridge:
    """`slope · prior + intercept + weights · (features - center)`.

    Attributes:
        slope: the slope of the truth on the prior.
        intercept: the intercept of the truth.
        weights: one per feature.
        center: mean of the features that the weights were fitted to.
        penalty: on the squared weights, in units of the noise variance; slope and intercept are not penalised.
    """

    slope: float
    intercept: float
    weights: Floats
    center: Floats
    penalty: float

    def __call__(self, features: Floats, prior: Floats | None = None) -> Floats:
        """Returns one prediction per row."""
        base = self.intercept + (0.0 if prior is None else self.slope * prior)
        return np.asarray(base + (features - self.center) @ self.weights, float)


def fit_ridge(features: Floats, truth: Floats, *, prior: Floats | None = None, penalty: float | None = 1.0) -> Ridge:
    """Fits a ridge as generalised least squares with random weights: `n × n` algebra for any number of features.

    Args:
        features: (n, features).
        truth: (n,).
        prior: a score that the weights correct, (n,); without it, the features alone predict.
        penalty: on the weights, above 0; None chooses the one of `PENALTIES` with the least leave-one-out error.

    Raises:
        InputError: arrays of different lengths or without rows, or a penalty that is not positive.
    """
    _check_fit(features, truth, prior)
    if penalty is not None and not (is_number(penalty) and penalty > 0):
        raise InputError(f"penalty={shown(penalty)} should be above 0, or None to choose one")
    if penalty is None:
        errors = [_leave_one_out(features, truth, prior, value) for value in PENALTIES]
        penalty = PENALTIES[int(np.argmin(errors))]
    center = features.mean(0)
    inverse, fixed = _parts(features, prior, penalty)
    free = np.linalg.pinv(fixed.T @ inverse @ fixed) @ fixed.T @ inverse @ truth
    slope = float(free[1]) if prior is not None else 0.0
    if prior is not None and prior.std() > 0:
        least = FLOOR * float(truth.std() / prior.std())
        if slope < least:
            slope = least
            rest = truth - slope * prior
            free = np.array([float((inverse @ rest).sum() / inverse.sum()), slope])
    residual = truth - fixed @ free
    weights = np.zeros(features.shape[1])
    if math.isfinite(penalty):
        weights = (features - center).T @ (inverse @ residual) / penalty
    return Ridge(slope, float(free[0]), weights, center, penalty)


def _check_fit(features: Floats, truth: Floats, prior: Floats | None) -> None:
    """Raises `InputError` for arrays that do not describe the same networks."""
    shapes = [np.shape(values) for values in (features, truth, truth if prior is None else prior)]
    if len(shapes[0]) != 2 or not shapes[0][0] or any(shape != shapes[0][:1] for shape in shapes[1:]):
        described = f"features of shape {shapes[0]}, truth of {shapes[1]}" + (
            "" if prior is None else f" and prior of {shapes[2]}"
        )
        raise InputError(f"{described} do not fit; give (n, features), and (n,) for the others, with n of at least 1")


def _parts(features: Floats, prior: Floats | None, penalty: float) -> tuple[Floats, Floats]:
    """Returns the inverse covariance of the labels up to a factor, and the columns that are not penalised."""
    centered = features - features.mean(0)
    covariance = np.eye(len(features)) + (centered @ centered.T / penalty if math.isfinite(penalty) else 0.0)
    ones = np.ones(len(features))
    fixed = ones[:, None] if prior is None else np.stack([ones, prior], 1)
    return np.linalg.inv(covariance), fixed


def leave_one_out(features: Floats, truth: Floats, prior: Floats | None, penalty: float) -> Floats:
    """Returns what the others predict for each, in closed form (Craven & Wahba, 1979), (n,).

    NaN where one label alone determines a coefficient that is not penalised.

    Args:
        features, truth, prior, penalty: see `fit_ridge`.

    Raises:
        InputError: see `fit_ridge`.
    """
    _check_fit(features, truth, prior)
    if not (is_number(penalty) and penalty > 0):
        raise InputError(f"penalty={shown(penalty)} should be above 0")
    inverse, fixed = _parts(features, prior, penalty)
    project = inverse - inverse @ fixed @ np.linalg.pinv(fixed.T @ inverse @ fixed) @ fixed.T @ inverse
    diagonal = np.diag(project)
    free = diagonal >= 1e-9
    return np.where(free, truth - project @ truth / np.where(free, diagonal, 1.0), math.nan)


def _leave_one_out(features: Floats, truth: Floats, prior: Floats | None, penalty: float) -> float:
    """Returns the mean squared leave-one-out error; infinite where a prediction is not defined."""
    error = float(np.mean((leave_one_out(features, truth, prior, penalty) - truth) ** 2))
    return error if math.isfinite(error) else math.inf


# -- ranking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A corrected ranking.

    Attributes:
        scores: the expected true accuracy of every candidate that has a finite shared score.
        labels: the true accuracies that were requested, in the order of the requests.
        failed: candidates whose stand-alone training failed; each used up a label.
        model: None if too few trainings succeeded; `scores` are the shared ones in that case.
    """

    scores: dict[Arch, float]
    labels: dict[Arch, float]
    failed: tuple[Arch, ...]
    model: Ridge | None

    @property
    def pick(self) -> Arch:
        """The candidate with the highest corrected score."""
        return max(self.scores, key=self.scores.__getitem__)


@arguments_explained
def calibrated_ranking(
    scores: Mapping[Arch, float | None],
    label: Label,
    *,
    space: SearchSpace,
    labels: int = 20,
    rounds: int = 4,
    penalty: float | None = 1.0,
) -> Calibration:
    """Corrects shared scores by the true accuracies of the candidates that look best.

    The budget is spent in rounds. Each round labels the best candidates without a label, by the shared score at first
    and by the corrected score afterwards, so that the later rounds leave a bias behind that dominated the first. No
    other accuracies are used than those that `label` returns.

    Args:
        scores: shared score of each candidate, higher is better; candidates within a user's limits.
        label: called `rounds` times, with each candidate at most once.
        space: the candidates' search space.
        labels: stand-alone trainings to spend, at least 3; never more than there are candidates.
        rounds: at least 1.
        penalty: see `fit_ridge`. None lets the labels choose: the ranking far from the top is then preserved when the
            scores are hardly biased, but the top is corrected less when they are.

    Raises:
        InputError: too few labels or rounds, or no candidate with a finite score.
    """
    if not isinstance(scores, Mapping) or not callable(label):
        raise InputError("scores is a mapping from architectures to numbers, and label a function that trains some")
    if not is_whole(labels, FEWEST) or not is_whole(rounds, 1):
        raise InputError(
            f"labels={shown(labels)} and rounds={shown(rounds)}: give at least {FEWEST} labels and one round"
        )
    known = {arch: float(s) for arch, s in scores.items() if s is not None and math.isfinite(s)}
    if not known:
        raise InputError(f"none of {len(scores)} candidates has a finite shared score; there is nothing to calibrate")
    archs, prior = list(known), np.array(list(known.values()))
    features = one_hot(space, archs)
    current, model = prior, None
    requested: list[int] = []
    truth: dict[int, float] = {}
    for size in _sizes(min(labels, len(archs)), rounds):
        seen = set(requested)
        chosen = [int(i) for i in np.argsort(-current, kind="stable") if i not in seen][:size]
        requested += chosen
        values = label([archs[i] for i in chosen])
        if not isinstance(values, Sequence | np.ndarray):
            raise InputError(f"label returned {shown(values)}; return one accuracy or None for each candidate")
        if len(values) != len(chosen):
            raise InputError(
                f"label returned {len(values)} values for {len(chosen)} candidates; use None for a failure"
            )
        truth.update({i: float(v) for i, v in zip(chosen, values, strict=True) if v is not None and math.isfinite(v)})
        if len(truth) >= FEWEST:
            index = np.array(list(truth))
            model = fit_ridge(features[index], np.array(list(truth.values())), prior=prior[index], penalty=penalty)
            current = model(features, prior)
    return Calibration(
        dict(zip(archs, current.tolist(), strict=True)),
        {archs[i]: value for i, value in truth.items()},
        tuple(archs[i] for i in requested if i not in truth),
        model,
    )


def _sizes(labels: int, rounds: int) -> list[int]:
    """Returns the labels per round: as even as possible, with at least `FEWEST` in the first."""
    first = min(labels, max(FEWEST, -(-labels // rounds)))
    rest, later = labels - first, rounds - 1
    if later == 0:
        return [labels]
    return [first, *(size for i in range(later) if (size := rest // later + (i < rest % later)))]
