"""Whether networks of a run are scored in bfloat16: where that is faster and ranks them as float32 does."""

import math
import platform
import time
from typing import Any, Literal

import torch

from supernet.errors import InputError
from supernet.files import read_json, write_json
from supernet.seeding import generator
from supernet.training.distributed import alone, current
from supernet_tools.pipeline.run import Run

ScoringDtype = Literal["fp32", "bf16", "auto"]
"""What networks are scored in; "auto" is bfloat16 where a probe finds it faster and its ranking the same."""

FILE, FORMAT = "scoring.json", 1
NETWORKS, TOP = 24, 10
"""Random networks that the audit scores both ways, and the best of them that must be the same."""
FASTER = 0.9
"""Time in bfloat16 over that in float32 from which on it is not worth other scores."""
SLOWER = 1.5
"""The same from which on the audit ends early."""
SAME = 0.98
"""Kendall's τ between both from which on their rankings are the same."""


def scored_in_bf16(run: Run, choice: ScoringDtype, recorded: str | None, *, bn_batches: int) -> bool:
    """Returns whether a search scores in bfloat16.

    With "auto" a search that goes on keeps what it began with. A new one scores `NETWORKS` random architectures both
    ways in turn, and keeps the outcome in the run's `scoring.json` for the next search on this machine.

    Args:
        run: of a classifier, unless `choice` is "fp32".
        choice: see `ScoringDtype`.
        recorded: the setting `evaluate.dtype` of the study; "float32" of one without it; None for a new one.
        bn_batches: calibration batches per candidate.

    Raises:
        InputError: "bf16" for a detector.
    """
    if choice == "fp32":
        return False
    if run.kind.metric != "accuracy":
        if choice == "auto":
            return False
        raise InputError("the detectors of a run are scored in float32; leave out the bfloat16")
    if choice == "bf16":
        return True
    if recorded is not None:
        return recorded == "bfloat16"
    world = current()
    answer = b""
    if world.main:
        with alone():
            answer = b"bf16" if _probed(run, bn_batches)["bf16"] else b"fp32"
    return world.from_main(answer) == b"bf16"


def _probed(run: Run, bn_batches: int) -> dict[str, Any]:
    """The outcome of the probe, from the run's folder if it is of this machine and these weights."""
    evaluators = [run.shared_weights(bn_batches=bn_batches, costs=False, bf16=bf16) for bf16 in (False, True)]
    facts = {
        "format": FORMAT,
        "processor": platform.processor() or platform.machine(),
        "device": str(run.config.train.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **evaluators[0].settings,
    }
    file = run.folder / FILE
    if file.exists():
        document = read_json(file)
        if {name: document.get(name) for name in facts} == facts and isinstance(document.get("bf16"), bool):
            return document
    document = facts | audit(run, *evaluators)
    write_json(file, document)
    print(
        f"scoring in bfloat16 takes {document['ratio']:.2f} of the time; τ {document['tau']:.3f} with float32 over "
        f"{document['networks']} networks, the best {TOP} {'the same' if document['top'] else 'others'}: "
        f"{'bfloat16' if document['bf16'] else 'float32'} from here on ({file})"
    )
    return document


def audit(run: Run, exact: Any, fast: Any) -> dict[str, Any]:
    """Scores random architectures with two evaluators in turn: time ratio, Kendall's τ, and whether the best agree.

    The best agree if those of `fast` have the scores of the best of `exact`, by `exact`.
    """
    from supernet.ranking.statistics import kendall

    rng = generator(run.config.train.seed, "scoring dtype")
    archs = list(dict.fromkeys(run.space.normal_form(run.space.sample(rng)) for _ in range(4 * NETWORKS)))[:NETWORKS]
    clock = time.process_time if str(run.config.train.device) == "cpu" else time.perf_counter
    for evaluate in (exact, fast):
        evaluate.cache = None  # what the cache has takes no time
        evaluate(archs[:1])  # trunk features, and what torch prepares once
    seconds, scores = [0.0, 0.0], [list[float](), list[float]()]
    for at in range(0, len(archs), 4):
        for side, evaluate in enumerate((exact, fast)):
            began = clock()
            scores[side] += [row[run.kind.metric] for row in evaluate(archs[at : at + 4])]
            seconds[side] += clock() - began
        if seconds[1] > SLOWER * seconds[0]:
            break  # the ranking does not matter any more
    ratio, tau = seconds[1] / seconds[0], float(kendall(scores[0], scores[1]))
    tau = tau if math.isfinite(tau) else 0.0  # all networks score the same
    best = sorted(scores[0], reverse=True)[:TOP]
    by_fast = sorted(range(len(scores[0])), key=lambda i: -scores[1][i])[:TOP]
    same = best == sorted((scores[0][i] for i in by_fast), reverse=True)
    chosen = ratio <= FASTER and tau >= SAME and same
    return {"ratio": ratio, "tau": tau, "top": same, "networks": len(scores[0]), "bf16": chosen}
