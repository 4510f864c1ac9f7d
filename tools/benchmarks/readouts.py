"""Can a detector with NAS-FPN be read after any repeat of its pyramid?

    python tools/benchmarks/readouts.py --pretrained runs/pre

Trains random pyramids with the loss of the last repeat alone, and with the mean of the losses of all repeats (the
setting `anytime`), with the same recipe and seeds. Ends with the AP of every read-out and with paired differences.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from supernet.checked import Count, FilePath, Threads
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet_tools.pipeline.run import Run

METRICS = {"map50": "AP50", "map": "AP"}


@dataclass(frozen=True)
class Readouts:
    """Compare the read-outs of detectors trained with and without deep supervision (Ghiasi et al., 2019, § 3).

    Finished trainings are kept, so the same command resumes.
    """

    recipe: Literal["nasfpn-digits", "nasfpn-bccd"] = "nasfpn-digits"
    """The recipe whose `retrain` part trains the detectors."""
    pretrained: FilePath | None = None
    """Folder of a classification supernet for the backbone, whose shared weights the detectors start with; fresh
    weights without it."""
    source: str = "digits"
    """The images, see `data.source`."""
    compose: tuple[Count, Count, Count] = (800, 100, 200)
    """Images of "digits" for training, search validation and test."""
    repeats: Annotated[int, Ge(2), Le(64)] = 2
    """Repeats of the pyramid."""
    seeds: Count = 5
    """Pyramids, each trained both ways with its own seed."""
    epochs: Count | None = None
    """Epochs of a training; the recipe's by default."""
    threads: Threads = 1
    """Threads of torch."""
    out: FilePath = Path("runs/readouts")
    """Folder of the runs."""


def run() -> None:
    """Trains, reads out and prints."""
    args = parse(Readouts, __doc__)
    import torch

    torch.set_num_threads(args.threads)
    runs = {"last": opened(args, anytime=False), "all": opened(args, anytime=True)}
    epochs = runs["last"].config.retrain.epochs
    scores = {name: [read_outs(of, seed, args.repeats) for seed in range(args.seeds)] for name, of in runs.items()}
    for metric, title in METRICS.items():
        values = {
            name: [[figures[metric] for figures in column] for column in zip(*rows, strict=True)]
            for name, rows in scores.items()
        }
        rows = [
            (f"loss of {name} repeats" if name == "all" else "loss of the last repeat", *map(cell, columns))
            for name, columns in values.items()
        ]
        paired = zip(values["all"], values["last"], strict=True)
        rows.append(("difference", *(cell([a - b for a, b in zip(*pair, strict=True)]) for pair in paired)))
        print_table(
            f"{title} on {len(runs['last'].data.test)} test images, {args.seeds} pyramids, {epochs} epochs",
            ("trained with the", *(f"read after {n} of {args.repeats}" for n in range(1, args.repeats + 1))),
            rows,
        )


def cell(values: list[float]) -> str:
    """Returns a mean with its interval."""
    return format_mean(values, 3)


def opened(args: Readouts, *, anytime: bool) -> "Run":
    """Returns a run whose pyramids are trained one way; no supernet is trained."""
    from supernet_tools.pipeline.config import DetectorRun
    from supernet_tools.pipeline.recipes import RECIPES
    from supernet_tools.pipeline.train import train_stage

    recipe = RECIPES[args.recipe]()
    assert isinstance(recipe, DetectorRun)
    settings = [text for text in recipe.settings if not text.startswith("repeats=")]
    epochs = recipe.retrain.epochs if args.epochs is None else args.epochs
    config = dataclasses.replace(
        recipe,
        settings=(*settings, f"repeats={args.repeats}", f"anytime={str(anytime).lower()}"),
        data=dataclasses.replace(recipe.data, source=args.source, compose=args.compose),
        train=dataclasses.replace(recipe.train, epochs=0),
        retrain=dataclasses.replace(recipe.retrain, epochs=epochs, warmup_epochs=min(1.0, epochs)),
        pretrained="" if args.pretrained is None else str(args.pretrained),
        start="scratch" if args.pretrained is None else "supernet",
    )
    return train_stage(config, args.out / ("all" if anytime else "last"), verbose=False)


def read_outs(run: "Run", seed: int, repeats: int) -> list[dict[str, float]]:
    """Trains one pyramid and returns its figures on the test split after each number of repeats."""
    from detection.detector import DetectorNetwork
    from detection.nasfpn import read_out
    from supernet.files import read_json, write_json
    from supernet.seeding import generator
    from supernet_tools.pipeline.retrain import retrain_folder, retrain_stage, trained_network

    arch = run.space.sample(generator("readouts", seed))
    retrain_stage(run, arch, dataclasses.replace(run.config.retrain, seed=seed))
    known = retrain_folder(run, arch, seed) / "readouts.json"
    if not known.exists():
        network = trained_network(run, arch, seed)
        assert isinstance(network, DetectorNetwork)
        figures = [run.kind.scores(read_out(network, n), run.data.test) for n in range(1, repeats + 1)]
        write_json(known, {"format": 1, "figures": [{name: row[name] for name in METRICS} for row in figures]})
    rows: list[dict[str, float]] = read_json(known)["figures"]
    return rows


if __name__ == "__main__":
    main(run)
