"""Does the demo's winner beat its random controls, whatever the seed? python tools/benchmarks/demo.py --seeds 10

Runs `tools/quickstart.py` with each seed, one after another; finished runs are only read. Ends with a table of all.
"""

import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.checked import Checked, Count, FilePath
from supernet.errors import RunError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

SCRIPT = Path(__file__).parents[1] / "quickstart.py"


@dataclass(frozen=True)
class Demos(Checked):
    """Run the demo with several seeds, and count how often its winner is at least the best of its controls."""

    out: FilePath = Path("runs/demos")
    """Folder of the runs, one per seed; an interrupted one goes on."""
    seeds: Count = 10
    """Seeds, from 0 on."""


def run() -> None:
    """Runs what is missing, and prints every seed."""
    args = parse(Demos, __doc__)
    rows = []
    for seed in range(args.seeds):
        rows.append(row_of(seed, finished(args.out / str(seed), seed)))
        print(f"seed {seed}: winner {rows[-1][1]}, best random network {rows[-1][3]}", file=sys.stderr, flush=True)
    columns = ("seed", "winner", "from", "best random", "worst random", "best simple", "paid", "trainings", "cpu s")
    print_table("test accuracy of the demo's winner and of its controls, means over the winner's seeds", columns, rows)
    best = sum(row[1] >= row[3] for row in rows)
    last = sum(row[1] < row[4] for row in rows)
    print(f"at least the best of the random networks: {best} of {len(rows)}; below all of them: {last}")


def finished(folder: Path, seed: int) -> dict[str, Any]:
    """Returns the summary of a demo with the processor time that it took, None if an earlier command ran it.

    Raises:
        RunError: the demo failed.
    """
    from supernet.files import read_json

    file, seconds = folder / "summary.json", None
    if not file.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, str(SCRIPT), "--out", str(folder), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"the demo with seed {seed} failed: {done.stderr.strip().splitlines()[-1:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**read_json(file), "cpu": seconds}


def row_of(seed: int, summary: dict[str, Any]) -> tuple[Any, ...]:
    """Returns a row of the table."""
    accuracy = {row["network"]: round(statistics.fmean(row["test"]), 4) for row in summary["controls"]}
    random = [value for name, value in accuracy.items() if name.startswith("random")]
    simple = [value for name, value in accuracy.items() if name.startswith("simple")]
    selected = summary["selected"]
    return (
        seed,
        accuracy["winner"],
        selected["winner"]["name"] or selected["winner"]["arm"],
        max(random),
        min(random),
        simple[0] if simple else "",
        "yes" if selected["paid"] else "no",
        f"{selected['trainings']:g}",
        "" if summary["cpu"] is None else f"{summary['cpu']:.0f}",
    )


if __name__ == "__main__":
    main(run)
