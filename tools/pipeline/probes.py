"""Fine-tunes a few architectures from the shared weights and corrects the shared scores by what that changes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from supernet.checked import shown
from supernet.config import Train
from supernet.errors import InputError
from supernet.files import read_json, write_json
from supernet.paths import inside
from supernet.progress import progress
from supernet.ranking.probes import FEWEST, Correction, fit_correction
from supernet.scoring.metrics import check_finite
from supernet.scoring.shared_weights import SharedWeights
from supernet.seeding import derive_seed, generator
from supernet.space import Arch
from supernet.train import train_standalone
from supernet.training.distributed import current
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.search import shared_scores

CORRECTED = "corrected"
"""The metric that a correction adds to the shared ones."""
STEPS = 60
BATCH = 64
REPEATS = 1000  # draws in a row without a new network after which there are none left
RATE = 0.3  # of the supernet's peak learning rate; it falls linearly to zero

Evaluate = Callable[[Sequence[Arch]], Sequence[Mapping[str, float] | None]]


def metric_of(run: Run) -> str:
    """The metric that probes are compared by: the loss of classifiers, which says more than few images' accuracy."""
    return "loss" if "loss" in run.kind.metrics else str(run.kind.metric)


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """A metric, higher is better."""
    return -metrics[metric] if metric == "loss" else metrics[metric]


def probe_archs(run: Run, count: int, seed: int = 0) -> list[Arch]:
    """Distinct random networks.

    Raises:
        InputError: fewer than a correction needs, or more than the space has.
    """
    if count < FEWEST:
        raise InputError(f"{count} probes are too few to correct a ranking; give at least {FEWEST}, or 0 for none")
    rng, archs, repeats = generator(seed, "probes"), dict[Arch, None](), 0
    while len(archs) < count and repeats < REPEATS and count <= run.space.size():
        before = len(archs)
        archs.setdefault(run.space.normal_form(run.space.sample(rng)))
        repeats = 0 if len(archs) > before else repeats + 1
    if len(archs) < count:
        raise InputError(f"{count} probes are more than the distinct networks of {run.space.name!r}; give fewer")
    return list(archs)


def fine_tuned(
    run: Run, arch: Arch, evaluate: SharedWeights, *, steps: int = STEPS, seed: int = 0
) -> Mapping[str, float]:
    """Metrics of a network after a few steps from the shared weights; the same images in the same order for all.

    Its batch norms are recalibrated as for the shared scores. The running statistics begin with a mixture over all
    paths, which is far off, and would not have forgotten it.
    """
    data, config = run.data, run.config.train
    batch = min(BATCH, config.batch, len(data.train))
    rng = torch.Generator().manual_seed(derive_seed(seed, "probe images"))
    needed = min(steps * batch, len(data.train) // batch * batch)
    images = data.train.subset(torch.randperm(len(data.train), generator=rng)[:needed])
    train: Train = dataclasses.replace(
        config,
        epochs=max(round(steps * batch / needed), 1),
        batch=batch,
        lr=RATE * config.lr,
        schedule="linear",
        warmup_epochs=0.0,
        lr_floor=0.0,
        ema=0.0,
        patience=0,
        distill=False,
        compile=False,
        seed=seed,
    )
    network = run.supernet.subnet(arch)
    train_standalone(network, dataclasses.replace(data, train=images), train, task=run.kind.task, verbose=False)
    metrics = evaluate.of_network(network)
    check_finite(metrics, f"the probe {arch.key}")
    return metrics


def probe_stage(
    run: Run, count: int, *, steps: int = STEPS, seed: int = 0, bn_batches: int = 10, verbose: bool = True
) -> Correction:
    """Fine-tunes random architectures and learns from them how to correct shared scores.

    Every finished probe is recorded in `RUN/probes/`, so a repeated call, after a kill for example, trains only those
    that are missing and ends in the same correction.

    Args:
        run: with a trained supernet.
        count: number of probes.
        steps: the number of fine-tuning steps for each.
        seed: the seed of the architectures, the images and their order.
        bn_batches: calibration batches of every score.
        verbose: show progress.
    """
    archs, metric = probe_archs(run, count, seed), metric_of(run)
    evaluate = run.shared_weights(costs=False, bn_batches=bn_batches)
    context = {"steps": steps, "seed": seed, "bn_batches": bn_batches, "weights": evaluate.settings["supernet"]}
    file = inside(run.folder, "probes", f"{derive_seed(*context.values()):016x}.json")
    known: dict[str, dict[str, float]] = {}
    if file.exists():
        document = read_json(file)
        if document.get("context") != context or not isinstance(document.get("probes"), dict):
            raise InputError(f"{file} is damaged or was written for {shown(document.get('context'))}; delete it")
        known = document["probes"]
        for key, scores in known.items():
            value = scores.get(metric) if isinstance(scores, dict) else None
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{file} has {shown(scores)} as the scores of the probe {key}; delete the file")
    with progress("probes", count, start=sum(a.key in known for a in archs), enabled=verbose) as update:
        for number, arch in enumerate(archs):
            if arch.key not in known:
                known[arch.key] = dict(fine_tuned(run, arch, evaluate, steps=steps, seed=seed))
                write_json(file, {"format": 1, "context": context, "probes": known})
            update(number + 1, "")
    shared = shared_scores(run, archs, bn_batches=bn_batches, verbose=False)
    return fit_correction(
        run.space,
        {arch: score_of(known[arch.key], metric) for arch in archs},
        {arch: score_of(shared[arch], metric) for arch in archs},
    )


class CorrectedScores:
    """An evaluator that adds the corrected score to the shared metrics of another.

    Args:
        evaluate: scores architectures with shared weights.
        correction: made by `probe_stage`.
        metric: that the correction was fitted to.
    """

    def __init__(self, evaluate: Evaluate, correction: Correction, metric: str) -> None:
        self.evaluate, self.correction, self.metric = evaluate, correction, metric

    @property
    def settings(self) -> Mapping[str, Any]:
        """What scores depend on; the probes are a part of it."""
        probes = sorted((arch.key, score) for arch, score in self.correction.probes.items())
        return {**getattr(self.evaluate, "settings", {}), "probes": f"{derive_seed(*probes):016x}"}

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        """Returns the metrics of the other evaluator with `corrected` among them; None for a failure."""
        results = list(self.evaluate(archs))
        scored = {a: score_of(m, self.metric) for a, m in zip(archs, results, strict=True) if m is not None}
        corrected = self.correction(scored)
        return [
            None if metrics is None else {**metrics, CORRECTED: corrected[arch]}
            for arch, metrics in zip(archs, results, strict=True)
        ]


def corrector(run: Run, count: int, *, bn_batches: int = 10) -> Callable[[Evaluate], CorrectedScores]:
    """Fine-tunes probes and returns what adds the corrected score to an evaluator.

    Raises:
        InputError: several processes, of which each would train the probes.
    """
    if current().size > 1:
        raise InputError("probes are fine-tuned by one process; search without torchrun, or without probes")
    correction = probe_stage(run, count, bn_batches=bn_batches)
    return lambda evaluate: CorrectedScores(evaluate, correction, metric_of(run))
