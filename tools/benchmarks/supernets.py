"""Every searcher against trained supernets, each network scored once for all, for tools/benchmarks/search.py."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from supernet.errors import InputError
from supernet.space import Arch, SearchSpace
from supernet_tools.benchmarks.curves import at, curve, maker, plot, plotly_objects, save_plot, shown
from supernet_tools.pipeline.command_line import print_table

SEARCHERS = (
    "random",
    "aging-evolution",
    "top-k-evolution",
    "local-search",
    "nsga2",
    "reinforce",
    "pnas",
    "predictor",
)


class Supernet:
    """The scores of a trained supernet's networks. Those of all searches come from one cache, RUN/scores.db.

    Attributes:
        asked: the metrics of every distinct network so far, by the key of its normal form.
        cost: of an architecture; to trace a cell network takes as long as to score it, so only who needs it asks.
    """

    best = math.inf

    def __init__(self, folder: Path, score: str, *, images: int, bn_batches: int) -> None:
        import torch

        from supernet_tools.pipeline.stages import open_stage

        run = open_stage(folder)
        if score not in run.kind.metrics:
            raise InputError(f"networks of {folder} have no {score!r}; --score is one of {', '.join(run.kind.metrics)}")
        held = run.data.validation
        if images > len(held):
            raise InputError(f"images={images} is more than the {len(held)} of the search-validation split")
        if images:  # drawn, since a source may list its images class by class
            order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, validation=held.subset(order[:images])))
        self.images = images or len(held)
        self.space: SearchSpace = run.supernet.space
        self.cost = run.cost
        self.asked: dict[str, Mapping[str, float]] = {}
        self._evaluate = run.shared_weights(bn_batches=bn_batches, costs=False)

    @property
    def cached(self) -> int:
        """How many of them were in the cache."""
        return int(self._evaluate.hits)

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Metrics of normal forms; what one search asked for is there for all others."""
        new = [arch for arch in dict.fromkeys(archs) if arch.key not in self.asked]
        if new:
            self.asked |= {arch.key: row for arch, row in zip(new, self._evaluate(new), strict=True)}
        return [self.asked[arch.key] for arch in archs]


def supernet(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    searchers: tuple[str, ...] = SEARCHERS,
    score: Literal["loss", "accuracy", "map", "map50"] = "loss",
    seeds: int = 5,
    first_seed: int = 0,
    evaluations: int = 300,
    batch: int = 10,
    points: tuple[int, ...] = (50, 100, 200, 300),
    images: int = 0,
    bn_batches: int = 10,
    out: Path | None = None,
) -> None:
    """The best score found against trained supernets at equal distinct evaluations.

    Each network is scored once: RUN/scores.db serves all searchers, seeds and later calls, so a killed benchmark goes
    on by the same command. A searcher that does not fit a space is left out with its reason. Means with 95 % intervals
    over seeds.

    Args:
        runs: Folders of trained supernets.
        searchers: Names of tools/search.py, with settings as in nsga2:population_size=20.
        score: What is searched for, map or map50 of detectors; losses are shown with a minus, so that higher is better.
        seeds: Searches of each.
        first_seed: The others follow.
        evaluations: Distinct networks after which a search ends.
        batch: Architectures asked for at a time.
        points: Evaluations at which the best score is told.
        images: Of the search-validation split; 0 for all.
        bn_batches: Calibration batches, of 64 images or a detector's `scoring_batch`.
        out: Folder for the curves, supernet-RUN.json, .html and .png; only tables without.
    """
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("batch", batch), ("runs", len(runs))):
        if value < 1:
            raise InputError(f"{name}={value} is too small; give at least 1")
    if len({path.resolve().name for path in runs}) < len(runs):
        raise InputError("two runs have folders of one name, by which results are told apart; rename one")
    makers = {name: _searching_for(name, score) for name in searchers}
    if out is not None:
        plotly_objects()
        out.mkdir(parents=True, exist_ok=True)
    for folder in runs:
        opened = Supernet(folder, score, images=images, bn_batches=bn_batches)
        title = f"{folder.resolve().name} ({opened.space.name})"
        curves = _curves(opened, makers, range(first_seed, first_seed + seeds), evaluations, batch)
        told = [n for n in points if n <= evaluations]
        rows = [(name, *(shown([at(run, n) for run in found], 4) for n in told)) for name, found in curves.items()]
        minus = "-" if score == "loss" else ""
        print_table(
            f"{title}: best {minus}{score} after so many networks, {seeds} seeds, batches of {batch}, {opened.images} "
            f"images; {len(opened.asked):,} distinct networks, {opened.cached:,} of them from the cache",
            ("searcher", *map(str, told)),
            rows,
        )
        if out is not None:
            settings = {"score": minus + score, "batch": batch, "images": opened.images, "bn_batches": bn_batches}
            document = {"run": str(folder), "space": opened.space.name, **settings, "curves": curves}
            path = out / f"supernet-{folder.resolve().name}"
            path.with_suffix(".json").write_text(json.dumps(document), encoding="utf-8")
            save_plot(plot(f"{title}, best {minus}{score}", curves, evaluations=evaluations), path)


def _searching_for(name: str, score: str) -> Any:
    """The searcher's maker, told which metric counts; NSGA-II has MACs for a second objective."""
    make, metric = maker(name), "-loss" if score == "loss" else score
    fixed = {"metric"} | ({"objectives", "cost"} if name.partition(":")[0] == "nsga2" else set())
    for key in fixed & make.keywords.keys():
        raise InputError(f"{key} of {name!r} follows from --score; leave it out")

    def made(opened: Supernet, seed: int) -> Any:
        more = {"objectives": (metric, "-macs"), "cost": opened.cost} if "cost" in fixed else {}
        return make(opened.space, seed=seed, metric=metric, **more)

    return made


def _curves(
    opened: Supernet, makers: Mapping[str, Any], seeds: Sequence[int], evaluations: int, batch: int
) -> dict[str, list[list[float]]]:
    """One list per seed of every searcher that fits the space."""
    from supernet.progress import progress

    curves: dict[str, list[list[float]]] = {name: [] for name in makers}
    with progress(f"searching {opened.space.name}", len(makers) * len(seeds)) as update:
        for done, seed in enumerate(seeds):  # so that a benchmark that is cut short has some seeds of every searcher
            for number, name in enumerate(list(curves), start=1):
                try:
                    searcher = makers[name](opened, seed)
                    curves[name].append(curve(opened, searcher, evaluations=evaluations, batch=batch))
                except InputError as error:
                    del curves[name]
                    print(f"{name} is left out of {opened.space.name}: {error}")
                update(done * len(makers) + number, f"{name}, {len(opened.asked):,} networks")
    return curves
