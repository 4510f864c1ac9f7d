"""Searchers on trained supernets, where each network is scored once for all of them. Used by search.py."""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from supernet.checked import Count, FilePath, Natural, Seed
from supernet.errors import InputError
from supernet.space import Arch
from supernet_tools.benchmarks.curves import Curve, best_after, curve, format_mean, maker, new_figure, plot, save_plot
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from searchers.loop import Searcher

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
    """The shared-weight scores of a trained supernet. All searches read and fill one cache, RUN/scores.db.

    Args:
        folder: the run's folder.
        score: the metric that is searched for.
        images: how many of the search-validation split score a network; 0 for all.
        bn_batches: calibration batches.

    Attributes:
        space: the space that is searched.
        images: how many images score a network.
        scored: the metrics of every network that was asked for, by the key of its normal form.
        cost: the cost table of the run. Tracing a cell network takes as long as scoring it, so costs are counted only
            for the searchers that need them.

    Raises:
        InputError: networks of the run have no such metric, or the split has fewer images.
    """

    best = math.inf

    def __init__(self, folder: Path, score: str, *, images: int, bn_batches: int) -> None:
        import torch

        from supernet.scoring.cache import ScoreCache
        from supernet_tools.pipeline.run import SCORES
        from supernet_tools.pipeline.runs import open_run

        run = open_run(folder)
        if score not in run.kind.metrics:
            raise InputError(f"networks of {folder} have no metric {score!r}; they have {', '.join(run.kind.metrics)}")
        data = run.data
        validation = data.validation
        if images > len(validation):
            raise InputError(f"images={images} exceeds the search-validation split, which has {len(validation)}")
        if images:  # drawn at random, since a source may list its images class by class
            order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0))
            data = dataclasses.replace(data, validation=validation.subset(order[:images]))
        self.images = images or len(validation)
        self.space = run.space
        self.cost = run.cost
        self.scored: dict[str, Mapping[str, float]] = {}
        cache = ScoreCache(folder / SCORES)
        self._evaluate = run.kind.shared_weights(run.supernet, data, cache=cache, bn_batches=bn_batches)

    @property
    def cached(self) -> int:
        """The number of networks whose score was already in the cache."""
        return self._evaluate.hits

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Returns the metrics of architectures in normal form, each scored once for all searches."""
        new = [arch for arch in dict.fromkeys(archs) if arch.key not in self.scored]
        if new:
            self.scored |= {arch.key: row for arch, row in zip(new, self._evaluate(new), strict=True)}
        return [self.scored[arch.key] for arch in archs]


def supernet(
    runs: Annotated[tuple[FilePath, ...], tyro.conf.Positional],
    searchers: tuple[str, ...] = SEARCHERS,
    score: Literal["loss", "accuracy", "map", "map50"] = "loss",
    seeds: Count = 5,
    first_seed: Seed = 0,
    evaluations: Count = 300,
    batch: Count = 10,
    points: tuple[Count, ...] = (50, 100, 200, 300),
    images: Natural = 0,
    bn_batches: Count = 10,
    out: FilePath | None = None,
) -> None:
    """The best score found on trained supernets at equal numbers of distinct evaluations.

    Each network is scored once: RUN/scores.db serves all searchers, seeds and later calls, so the same command resumes
    an interrupted benchmark. A searcher that does not fit a space is left out, with its reason. Values are means with
    95 % intervals over seeds. Beside `random`, a second table has the differences to random search with the same seed.
    The last table tells whether a searcher has learnt to propose better networks, which the best one need not show.

    Args:
        runs: Folders of trained supernets.
        searchers: Names from tools/search.py, with settings as in nsga2:population_size=20.
        score: The metric to search for; map or map50 for detectors. Losses are negated, so that higher is better.
        seeds: Searches per searcher.
        first_seed: Seed of the first search; the others count up from it.
        evaluations: Distinct networks after which a search ends.
        batch: Architectures per proposal.
        points: Evaluations at which the best score is printed.
        images: Images of the search-validation split that score a network; 0 for all.
        bn_batches: Calibration batches, of 64 images or of a detector's `scoring_batch`.
        out: Folder for the curves: supernet-RUN.json, .html and .png. Without it, only tables are printed.
    """
    if not runs:
        raise InputError("name at least one folder of a trained supernet")
    if len({path.resolve().name for path in runs}) < len(runs):
        raise InputError("two runs have folders of the same name, which names their results; rename one")
    makers = {name: _searching_for(name, score, evaluations) for name in searchers}
    if out is not None:
        new_figure()  # fails before the searches, not after them, if plotly is missing
        out.mkdir(parents=True, exist_ok=True)
    for folder in runs:
        opened = Supernet(folder, score, images=images, bn_batches=bn_batches)
        title = f"{folder.resolve().name} ({opened.space.name})"
        curves, proposed = _curves(opened, makers, range(first_seed, first_seed + seeds), evaluations, batch)
        reached = [n for n in points if n <= evaluations]
        rows = [
            (name, *(format_mean([best_after(best, n) for best in runs_of], 4) for n in reached))
            for name, runs_of in curves.items()
        ]
        minus = "-" if score == "loss" else ""
        print_table(
            f"{title}: best {minus}{score} by networks scored, {seeds} seeds, batches of {batch}, {opened.images} "
            f"images; {len(opened.scored):,} distinct networks, {opened.cached:,} of them from the cache",
            ("searcher", *map(str, reached)),
            rows,
        )
        if "random" in curves and len(curves) > 1:
            gains = [(name, *_gains(of_name, curves["random"], reached)) for name, of_name in curves.items()]
            print_table(
                f"{title}: best {minus}{score} above that of random search with the same seed, {seeds} seeds",
                ("searcher", *map(str, reached)),
                [row for row in gains if row[0] != "random"],
            )
        means = [
            (name, *(format_mean(list(part), 4) for part in zip(*ends, strict=True))) for name, ends in proposed.items()
        ]
        heading = f"{title}: mean {minus}{score} of what a search proposed first and last"
        print_table(heading, ("searcher", "first fifth", "last fifth"), means)
        if out is not None:
            settings = {"score": minus + score, "batch": batch, "images": opened.images, "bn_batches": bn_batches}
            document = {"run": str(folder), "space": opened.space.name, **settings, "curves": curves}
            path = out / f"supernet-{folder.resolve().name}"
            path.with_suffix(".json").write_text(json.dumps(document), encoding="utf-8")
            save_plot(plot(f"{title}, best {minus}{score}", curves, evaluations=evaluations), path)


def _gains(curves: Sequence[Curve], chance: Sequence[Curve], points: Sequence[int]) -> list[str]:
    """Returns the cells of one searcher: means of paired differences with their intervals."""
    pairs = list(zip(curves, chance, strict=True))
    return [format_mean([best_after(ours, n) - best_after(random, n) for ours, random in pairs], 4) for n in points]


SearcherOf = Callable[[Supernet, int], "Searcher"]
"""Makes a searcher for a supernet from a seed."""


def _searching_for(name: str, score: str, evaluations: int) -> SearcherOf:
    """Returns what makes a searcher that maximises `score`; the second objective of NSGA-II is MACs."""
    make, metric = maker(name, evaluations), "-loss" if score == "loss" else score
    fixed = {"metric"} | ({"objectives", "cost"} if name.partition(":")[0] == "nsga2" else set())
    for key in fixed & make.keywords.keys():
        raise InputError(f"{key} of {name!r} follows from score={score!r}; leave it out")

    def create(opened: Supernet, seed: int) -> "Searcher":
        more: dict[str, Any] = {"objectives": (metric, "-macs"), "cost": opened.cost} if "cost" in fixed else {}
        searcher: Searcher = make(opened.space, seed=seed, metric=metric, **more)
        return searcher

    return create


class _Proposals:
    """A supernet that remembers the score of every proposal of one search, repeats too."""

    def __init__(self, opened: Supernet, metric: str) -> None:
        self.space, self.best = opened.space, opened.best
        self._opened, self._name, self._sign = opened, metric.removeprefix("-"), -1.0 if metric[0] == "-" else 1.0
        self._scores: list[float] = []

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Returns the metrics of architectures in normal form."""
        rows = self._opened.score(archs)
        self._scores += [self._sign * row[self._name] for row in rows]
        return rows

    def ends(self) -> tuple[float, float]:
        """Returns the mean score of the first and of the last fifth of the proposals."""
        fifth = max(1, len(self._scores) // 5)
        return statistics.fmean(self._scores[:fifth]), statistics.fmean(self._scores[-fifth:])


def _curves(
    opened: Supernet, makers: Mapping[str, SearcherOf], seeds: Sequence[int], evaluations: int, batch: int
) -> tuple[dict[str, list[Curve]], dict[str, list[tuple[float, float]]]]:
    """Returns a curve per seed of every searcher that fits, and the mean scores of its first and last proposals."""
    from supernet.progress import progress

    curves: dict[str, list[Curve]] = {name: [] for name in makers}
    proposed: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    with progress(f"searching {opened.space.name}", len(makers) * len(seeds)) as update:
        for done, seed in enumerate(seeds):  # seeds outside: an interrupted benchmark has some of every searcher
            for number, name in enumerate(list(curves), start=1):
                try:
                    searcher = makers[name](opened, seed)
                    proposals = _Proposals(opened, searcher.metric)
                    curves[name].append(curve(proposals, searcher, evaluations=evaluations, batch=batch))
                    proposed[name].append(proposals.ends())
                except InputError as error:
                    del curves[name], proposed[name]
                    print(f"{name} is left out of {opened.space.name}: {error}")
                update(done * len(makers) + number, f"{name}, {len(opened.scored):,} networks")
    return curves, proposed
