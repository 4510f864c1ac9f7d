"""Whether a search beat random: the best of a search and random networks, retrained by one recipe."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from supernet.config import Train
from supernet.errors import RunError
from supernet.files import remove_temporaries, write_json
from supernet.paths import inside
from supernet.ranking.statistics import Difference, json_safe, paired, welch
from supernet.space import Arch
from supernet.training.distributed import current
from supernet_tools.pipeline.architectures import random_feasible
from supernet_tools.pipeline.retrain import true_accuracies
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.search import searched_top


def control_stage(
    run: Run, search: str, train: Train, *, top: int, random: int, seeds: int = 1, verbose: bool = True
) -> dict[str, Any]:
    """Retrains the best networks of a search and random ones within its limits, by one recipe and the same seeds.

    Args:
        run: whose search it is.
        search: its name.
        train: how every network is trained.
        top: networks of the search.
        random: random networks.
        seeds: trainings of each network.
        verbose: show progress.

    Returns:
        the document of `fidelity/control-SEARCH.json`: both arms, the differences over networks and over seeds, and a
        verdict in words.

    Raises:
        InputError: no such search, or too few networks within its limits.
        RunError: all trainings of an arm failed.
    """
    best, feasible = searched_top(run, search, top)
    candidates = random_feasible(run, feasible, random + top, train.seed)  # the search may have found some of these
    arms = {"top": best, "random": [arch for arch in candidates if arch not in best][:random]}
    trainings = true_accuracies(run, [*arms["top"], *arms["random"]], train, seeds=seeds, verbose=verbose)
    complete = {
        arm: [
            [value for value in trainings[arch] if value is not None] for arch in archs if None not in trainings[arch]
        ]
        for arm, archs in arms.items()
    }
    failed = [arch.key for arch, values in trainings.items() if None in values]
    if not complete["top"] or not complete["random"]:
        raise RunError(f"nothing to compare: the retrainings of {', '.join(failed)} failed; a lower lr may help")
    per_network = {arm: [statistics.fmean(values) for values in rows] for arm, rows in complete.items()}
    per_seed = {arm: [statistics.fmean(values) for values in zip(*rows, strict=True)] for arm, rows in complete.items()}
    over_networks = welch(per_network["top"], per_network["random"])
    document = {
        "format": 1,
        "search": search,
        "limits": feasible.limits,
        "recipe": dataclasses.asdict(train),
        "seeds": seeds,
        **{arm: [_row(run, arch, trainings[arch]) for arch in archs] for arm, archs in arms.items()},
        "failed": failed,
        "over_networks": dataclasses.asdict(over_networks),
        "over_seeds": dataclasses.asdict(paired(per_seed["top"], per_seed["random"])),
        "truth": run.kind.truth,
        "verdict": _verdict(over_networks, failed, run.kind.metric),
    }
    if current().main:
        remove_temporaries(inside(run.folder, "fidelity"), alone=False)
        write_json(inside(run.folder, "fidelity", f"control-{search}.json"), json_safe(document))
    return document


def _row(run: Run, arch: Arch, values: Sequence[float | None]) -> dict[str, Any]:
    return {"arch": dict(arch), "key": arch.key, "macs": run.cost(arch)["macs"], run.kind.truth: list(values)}


def _verdict(difference: Difference, failed: Sequence[str], metric: str) -> str:
    """Whether the search beat random, in words."""
    mean, (top, random) = difference.mean, difference.sizes
    if math.isnan(mean.low):
        verdict = "no interval; give --top 2 or more"
    elif mean.low > 0:
        verdict = "the search beat random"
    elif mean.high < 0:
        verdict = "the search lost to random"
    else:
        verdict = "no difference is shown"
    verdict += f": {top} searched minus {random} random networks, {metric} {mean}"
    if not math.isnan(difference.detectable):
        verdict += f"; with power 0.8, differences of {difference.detectable:.4f} or more would have been seen"
    if failed:
        verdict += f"; failed and left out: {', '.join(failed)}"
    return verdict
