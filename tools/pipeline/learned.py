"""Whether a trained supernet is better than guessing: one that is not cannot rank architectures."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.chain import Chain
from supernet.errors import InputError
from supernet.files import write_json
from supernet.scoring.metrics import BatchMetric, Metrics, check_finite
from supernet.scoring.shared_weights import SharedWeights
from supernet.seeding import generator
from supernet.space import Arch
from supernet_tools.pipeline.batch_norm import policy
from supernet_tools.pipeline.folder import RUN, read_run
from supernet_tools.pipeline.run import Run

SCORES = "shared_weights"
"""Entry of `run.json`: the scores of random architectures after the training, and those of guessing."""
DEVIATIONS = 3.0
"""Standard errors by which the best architecture must exceed guessing; the best of 16 guesses reaches 2."""
AGREEMENT = 0.2
"""Cohen's kappa from which predictions count as better than guessing where naming one class is right as often."""

FEWEST_STEPS = 20
"""Fewer steps only try out the commands: a search after them is not refused."""


class Agreement(BatchMetric):
    """Accuracy, and how far predictions agree with the labels beyond chance, which few or uneven classes hide.

    `kappa` is Cohen's ("A coefficient of agreement for nominal scales", 1960): 0 for predictions that have nothing to
    do with the labels, also for naming the most frequent class every time, and 1 if all are right. `deviations` is the
    number of right predictions above the expected one, in standard deviations over all orders of the labels.
    """

    name = "agreement"

    def of_batch(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the predicted classes, (N,), the labels, (N,), and whether all logits are finite."""
        return outputs.argmax(1), labels, outputs.isfinite().all()

    def combine(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Metrics:
        """Returns `accuracy`, `kappa` and `deviations`; all are NaN if a logit is not finite."""
        if not all(bool(finite) for *_, finite in parts):
            return dict.fromkeys(("accuracy", "kappa", "deviations"), math.nan)
        predicted, labels = (torch.cat([part[i] for part in parts]).cpu() for i in (0, 1))
        n, classes = len(labels), int(max(predicted.max(), labels.max())) + 1
        a, b = (torch.bincount(values, minlength=classes).double() for values in (predicted, labels))
        right, chance = int((predicted == labels).sum()) / n, float(a @ b) / n**2
        # The variance of the number of right predictions, when the labels are shuffled, from the doubly centred table
        # of which prediction fits which label (Hoeffding, 1951): cells of one class, and all others.
        centred = -(a[:, None] + b[None, :]) / n + chance  # label's class x predicted class
        centred[range(classes), range(classes)] += 1
        variance = float(b @ centred**2 @ a) / max(1, n - 1)
        spread = (right - chance) * n
        return {
            "accuracy": right,
            "kappa": (right - chance) / (1 - chance) if chance < 1 else 0.0,
            "deviations": spread / math.sqrt(variance) if variance > 1e-9 else 0.0,
        }


def probe_scores(run: Run, count: int | None = None, supernet: Chain | None = None) -> list[float]:
    """Returns the metric of random architectures with shared weights on the search-validation split.

    Args:
        run: whose data are scored.
        count: number of architectures; that of the kind of run by default.
        supernet: with trained weights; by default those of the run.
    """
    sampled = _sampled(run, count)
    metrics = run.shared_weights(supernet=supernet)(sampled)
    for arch, scored in zip(sampled, metrics, strict=True):
        check_finite(scored, f"architecture {arch.key}")
    return [scored[run.kind.metric] for scored in metrics]


def record_scores(run: Run, supernet: Chain) -> None:
    """Scores random architectures after a training and records in `run.json` whether one is better than guessing.

    For classifiers, guessing is to name the most frequent class of the search-validation split every time. One that is
    not above it counts as better if its predictions agree with the labels (see `Agreement`), as those of a network that
    finds half of the rare faults in a large set do. For detectors any mAP above zero is better than guessing, so only
    that of images without boxes, -1, is no better.
    """
    scores = probe_scores(run, supernet=supernet)
    record: dict[str, Any] = {
        "metric": run.kind.metric,
        "mean": statistics.mean(scores),
        "deviation": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "best": max(scores),
        "n": len(scores),
    }
    if run.kind.metric == "accuracy":
        labels = run.data.validation.labels
        guess = labels.bincount().max().item() / len(labels)
        bound = guess + DEVIATIONS * math.sqrt(guess * (1 - guess) / len(labels))
        learned = record["best"] > min(bound, 1 - 1e-9) or _agrees(run, supernet)
        record |= {"images": len(labels), "guessing": guess, "learned": learned}
    elif record["best"] < 0:
        record |= {"images": len(run.data.validation), "learned": False}
    document = read_run(run.folder)
    write_json(run.folder / RUN, document | {SCORES: record})


def _sampled(run: Run, count: int | None = None) -> list[Arch]:
    """Returns the random architectures that are scored after a training."""
    rng = generator(run.config.train.seed, "probe")
    return [run.space.sample(rng) for _ in range(count or run.kind.probes)]


def _agrees(run: Run, supernet: Chain) -> bool:
    """Returns whether the predictions of a random architecture agree with the labels of the search-validation split."""
    agreement = SharedWeights(
        supernet, run.data.calibration, run.data.validation, bn=policy(run.bn, 10), metric=Agreement()
    )
    return any(
        scored["kappa"] >= AGREEMENT and scored["deviations"] >= DEVIATIONS for scored in agreement(_sampled(run))
    )


def not_learned(run: Run) -> str:
    """Returns one line about a supernet that is no better than guessing, with what may help; empty if it is better."""
    record = read_run(run.folder).get(SCORES)
    if not isinstance(record, dict) or record.get("learned") is not False:
        return ""
    if record["best"] < 0:
        return (
            f"none of the {record['images']} images of the search-validation split of {run.folder} has a box to find, "
            "so their mAP ranks nothing; train again in another folder with images that show objects"
        )
    if not run.config.train.epochs:
        return (
            f"the weights that {run.folder} begins with are no better than guessing on its images: the best of "
            f"{record['n']} random architectures has an accuracy of {record['best']:.4f}, and naming the most frequent "
            f"class {record['guessing']:.4f}. If the classes are new, so is the classifier; train (train.epochs)"
        )
    return (
        f"the supernet of {run.folder} is no better than guessing after {_steps(run):,} steps: the best of "
        f"{record['n']} random architectures has an accuracy of {record['best']:.4f} on {record['images']} images, "
        f"and naming the most frequent class {record['guessing']:.4f}. Train again in another folder with more "
        f"epochs (train.epochs), another rate (train.lr is {run.config.train.lr:g}), or one option alone at first "
        "(lead, lead_epochs)"
    )


def check_learned(run: Run, *, force: bool = False) -> None:
    """Refuses to search with weights that rank nothing, unless `force` or after a few steps only.

    Raises:
        InputError: the supernet is no better than guessing.
    """
    if not force and (_steps(run) >= FEWEST_STEPS or not run.config.train.epochs) and (problem := not_learned(run)):
        raise InputError(f"{problem}; to search all the same, add --force")


def _steps(run: Run) -> int:
    """Returns the steps of the supernet's training."""
    return int(run.config.train.epochs * (run.summary.n_train // run.config.train.batch))
