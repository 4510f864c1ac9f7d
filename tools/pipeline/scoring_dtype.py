"""Decides whether networks of a run are scored in bfloat16: if it is faster and ranks them as float32 does."""

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
"""The type in which networks are scored; "auto" is bfloat16 if a probe finds it faster with the same ranking."""

FILE, FORMAT = "scoring.json", 1
NETWORKS, TOP = 24, 10
"""The number of random networks that the audit scores in both types, and of the best ones that must agree."""
MOST_TIME = 0.9
"""Bfloat16 is used if it takes at most this share of the time of float32; a smaller gain is not worth other scores."""
HOPELESS_TIME = 1.5
"""The audit ends early if bfloat16 takes more than this multiple of the time of float32."""
LEAST_TAU = 0.98
"""The rankings count as the same from this Kendall's τ on."""


def scored_in_bf16(run: Run, choice: ScoringDtype, recorded: str | None, *, bn_batches: int) -> bool:
    """Returns whether a search scores in bfloat16.

    With "auto" a resumed search keeps the type that it started with. A new one scores `NETWORKS` random architectures
    in both types, alternating, and keeps the outcome in the run's `scoring.json` for the next search on this machine.

    Args:
        run: a classifier's run, unless `choice` is "fp32".
        choice: see `ScoringDtype`.
        recorded: the setting `evaluate.dtype` of the study, "float32" if it has none; None for a new study.
        bn_batches: calibration batches per candidate.

    Raises:
        InputError: "bf16" for a detector.
    """
    if choice == "fp32":
        return False
    if run.kind.metric != "accuracy":
        if choice == "auto":
            return False
        raise InputError("detectors are scored in float32 only; leave out scoring_dtype='bf16'")
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
    """Returns the outcome of the audit, from the run's folder if it was made on this machine with these weights."""
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
        f"scoring in bfloat16 takes {document['ratio']:.2f} of the time of float32, and τ between both is "
        f"{document['tau']:.3f} over {document['networks']} networks; the best {TOP} "
        f"{'agree' if document['top'] else 'differ'}: {'bfloat16' if document['bf16'] else 'float32'} from now on "
        f"({file})"
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
        evaluate.cache = None  # cached scores would take no time
        evaluate(archs[:1])  # warm-up: trunk features, and what torch prepares once
    seconds, scores = [0.0, 0.0], [list[float](), list[float]()]
    for at in range(0, len(archs), 4):
        for side, evaluate in enumerate((exact, fast)):
            began = clock()
            scores[side] += [row[run.kind.metric] for row in evaluate(archs[at : at + 4])]
            seconds[side] += clock() - began
        if seconds[1] > HOPELESS_TIME * seconds[0]:
            break  # the ranking no longer matters
    ratio, tau = seconds[1] / seconds[0], float(kendall(scores[0], scores[1]))
    tau = tau if math.isfinite(tau) else 0.0  # all networks score the same
    best = sorted(scores[0], reverse=True)[:TOP]
    by_fast = sorted(range(len(scores[0])), key=lambda i: -scores[1][i])[:TOP]
    same = best == sorted((scores[0][i] for i in by_fast), reverse=True)
    chosen = ratio <= MOST_TIME and tau >= LEAST_TAU and same
    return {"ratio": ratio, "tau": tau, "top": same, "networks": len(scores[0]), "bf16": chosen}
