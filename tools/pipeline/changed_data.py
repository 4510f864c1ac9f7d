"""Going on with a run after its images were repaired, removed or left out: one flag, and a record in `run.json`."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernet.config import DataSummary, from_dict
from supernet.errors import InputError
from supernet.files import write_json
from supernet.training.checkpoint import load_state
from supernet_tools.pipeline.folder import RUN, read_run

FLAG = "--accept-changed-data"
SETTING = "skip_unreadable"
"""The field of a data config that may be switched in a run that has begun."""
CHANGES = "data_changes"
"""Entry of `run.json`: every accepted change, with the facts about the data before it and the steps done on them."""
STATE = "state.pt"
PARTS = ("train", "calibration", "validation", "test")


def accept_data(folder: Path, config: Any, summary: DataSummary, *, accept: bool) -> None:
    """Compares the data that were read with those of the run, and records a change that is accepted.

    Args:
        folder: the run's folder.
        config: its recipe as it is now.
        summary: the summary of the data that were read.
        accept: whether changes are accepted; a warning then says what has changed.

    Raises:
        InputError: the data have changed, and that is not accepted; or classes, channels or size have changed.
    """
    document = read_run(folder)
    before = from_dict(DataSummary, document["data"], owner=f"{folder / RUN}, data")
    differences = _differences(before, summary)
    skipped, skip = document["config"].get("data", {}).get(SETTING), getattr(config.data, SETTING, None)
    if skipped != skip:
        differences.append(f"data.{SETTING} {skipped} -> {skip}")
    if not differences:
        return
    text = ", ".join(differences)
    if not accept:
        raise InputError(
            f"{folder} was made with another set of images ({text}); restore them, add {FLAG} to go on with these, or "
            "train again in another folder"
        )
    for name in ("classes", "in_channels", "size"):
        old, new = getattr(before, name), getattr(summary, name)
        if old != new:
            raise InputError(f"{folder} cannot go on with these images: {name} was {old} and is {new} now")
    if sum(_counts(before)) != sum(_counts(summary)):
        text += "; with another number of images the splits are drawn again, so images trained on may now be held out"
    warnings.warn(f"{folder} goes on with changed data: {text}", stacklevel=2)
    checkpoint = folder / STATE
    steps = load_state(checkpoint)["step"] if checkpoint.exists() else None
    record = {"digest": before.digest, "changed": differences, "after_steps": steps, "data": document["data"]}
    document[CHANGES] = [*document.get(CHANGES, ()), record]
    document["data"] = json.loads(json.dumps(dataclasses.asdict(summary)))
    if skip is not None:
        document["config"]["data"][SETTING] = skip
    write_json(folder / RUN, document)


def earlier_digests(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the digests of the data that a run was made with before accepted changes, from its `run.json`."""
    return tuple(str(change["digest"]) for change in document.get(CHANGES, ()))


def _counts(summary: DataSummary) -> list[int]:
    return [getattr(summary, f"n_{part}") for part in PARTS if part != "calibration"]


def _differences(before: DataSummary, now: DataSummary) -> list[str]:
    """Returns what is known to differ between two sets; empty if nothing does."""
    if before.digest == now.digest:
        return []
    counts = [
        f"{part} images {getattr(before, f'n_{part}')} -> {getattr(now, f'n_{part}')}"
        for part in PARTS
        if getattr(before, f"n_{part}") != getattr(now, f"n_{part}")
    ]
    return [f"digest {before.digest} -> {now.digest}", *(counts or ["the same numbers of images"])]
