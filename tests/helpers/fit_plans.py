"""The plan of `fit digits` as its run records it, which tests change as somebody may who sends a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supernet_tools.pipeline import fit_plan
from supernet_tools.pipeline.folder import FIT

REQUEST = fit_plan.FitRequest(
    source="digits",
    limits={"macs": None, "params": None, "latency_ms": None},
    minutes=10.0,
    pretrained="",
    overrides={},
    seed=0,
    device="cpu",
)
"""The request of `fit digits`."""

SETTINGS: dict[str, Any] = {
    "size": 8,
    "batch": 32,
    "validation": 0.2,
    "space": "shufflenet-small",
    "space_settings": ["stem=4"],
    "init": "shared",
    "epochs": 2,
    "trials": 20,
    "trainings": 2,
    "retrain_epochs": 1,
    "front": 0,
}


def plan_of(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """A fit.json as `fit digits` writes it, changed."""
    document: dict[str, Any] = {
        "format": fit_plan.FORMAT,
        "request": json.loads(json.dumps(REQUEST.__dict__)),
        "source": {
            "kind": "digits",
            "classes": ["0", "1"],
            "counts": [9, 9],
            "n_validation": 0,
            "n_test": 0,
            "sides": [16, 16, 16],
            "channels": 1,
        },
        "timing": {"step": 0.1, "network_step": 0.1, "score": 0.1, "steps": 3},
        "model": "",
        "factor": 1.0,
        "settings": [{"name": n, "value": v, "reason": "", "flag": f"--{n}"} for n, v in SETTINGS.items()],
    }
    change(document)
    folder.mkdir(exist_ok=True)
    (folder / FIT).write_text(json.dumps(document))
    return folder


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Gives a setting another value."""
    return lambda document: next(row for row in document["settings"] if row["name"] == name).update(value=value)
