"""Spaces whose scores are all known: tables and synthetic functions. Used by tools/benchmarks/search.py."""

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, Choice, SearchSpace

OPS = ("skip", "k3", "k5", "k7")
MOMENTS = 200
"""Random networks from which the mean and the deviation of a formula are taken."""


@dataclass(frozen=True)
class Oracle:
    """A space whose scores are known.

    Attributes:
        name: for titles and file names.
        space: the space that is searched.
        metrics: key of a network's normal form to its metrics; an empty mapping stands for a failed training.
        feasible: confines searches to the networks of a partial table.
    """

    name: str
    space: SearchSpace
    metrics: Mapping[str, Mapping[str, float]]
    feasible: "Listed | None" = None

    @property
    def best(self) -> float:
        """The highest score in the space."""
        return self.ranked[0]

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Returns the metrics of architectures in normal form; an empty mapping stands for a failed training."""
        return [self.metrics[arch.key] for arch in archs]

    @functools.cached_property
    def ranked(self) -> list[float]:
        """The scores in descending order."""
        return sorted((m["accuracy"] for m in self.metrics.values() if m), reverse=True)

    @property
    def goals(self) -> dict[str, float]:
        """Goal to the score that reaches it: the best network (or one as good), the top ten, the top 1 %."""
        hundredth = math.ceil(len(self.ranked) / 100)
        ranks = {"the best": 1, "the top ten": min(10, len(self.ranked)), "the top 1 %": hundredth}
        return {name: self.ranked[rank - 1] for name, rank in ranks.items()}


@dataclass(frozen=True)
class Listed:
    """Confines a search to the networks of a table, as `Feasible` confines it to limits."""

    space: SearchSpace
    archs: tuple[Arch, ...]  # normal forms

    @property
    def limits(self) -> dict[str, float]:
        """What the study records as the limits of a search."""
        return {"networks": float(len(self.archs))}

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(arch.key for arch in self.archs)

    def __call__(self, arch: Arch) -> bool:
        """Returns whether the network is in the table."""
        return self.space.normal_form(arch).key in self._keys

    def sample(self, rng: Random) -> Arch:
        """Draws a network of the table uniformly."""
        return rng.choice(self.archs)

    def count(self) -> int:
        """Returns the number of networks in the table."""
        return len(self.archs)

    def explain(self) -> str:
        """Returns the reason why nothing else can be proposed, for error messages."""
        return "the table has no other network"


@dataclass(frozen=True)
class Formula:
    """A space too large to list, whose scores are a function with mean 0 and deviation 1 over random networks."""

    name: str
    space: SearchSpace
    raw: Callable[[Arch], float]  # of a normal form
    feasible: None = None
    best: float = math.inf  # not known

    @functools.cached_property
    def _moments(self) -> tuple[float, float]:
        rng = generator("formula", self.name)
        scores = [self.raw(self.space.normal_form(self.space.sample(rng))) for _ in range(MOMENTS)]
        return statistics.fmean(scores), statistics.pstdev(scores)

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Returns the scores of architectures in normal form."""
        mean, deviation = self._moments
        return [{"accuracy": (self.raw(arch) - mean) / deviation} for arch in archs]


# -- oracles -----------------------------------------------------------------------------------------------------------


def nasbench_macro() -> Oracle:
    """Returns the 3,969 networks of NAS-Bench-Macro, each with the row of its normal form."""
    from supernet.spaces.nasbench_macro import nasbench_macro as chain
    from supernet.spaces.nasbench_macro import table

    space, rows = chain().space, table()
    forms = {space.normal_form(arch) for arch in rows}
    return Oracle("nasbench-macro", space, {form.key: rows[form] for form in forms})


def synthetic(kind: str, seed: int) -> Oracle:
    """Returns a space of about 20,000 networks with synthetic scores and costs, a pure function of kind and seed.

    Noise has a twentieth of the standard deviation of the rest. Inactive decisions
    add nothing.

    Args:
        kind: `additive`: each of seven decisions adds a value. `interactions`: tables over pairs of decisions add as
            much variance again. `conditional`: one to four layers, each with an operation and an ordered width, also
            with interactions.
        seed: the seed of the values.
    """
    import numpy as np

    if kind == "conditional":
        choices = [Choice("depth", (1, 2, 3, 4), ordered=True)]
        for i in range(1, 5):
            when = None if i == 1 else ("depth", tuple(range(i, 5)))
            choices += [Choice(f"layer{i}.op", OPS, when), Choice(f"layer{i}.width", (16, 32, 64), when, ordered=True)]
    else:
        choices = [Choice(f"layer{i}", OPS) for i in range(7)]
    space = SearchSpace(f"{kind}-{seed}", choices)
    archs = list(space.enumerate())
    rows = np.array([space.to_indices(arch) for arch in archs])
    active = np.array([[c in on for c in choices] for on in map(space.active, archs)], dtype=float)
    rng = np.random.default_rng(derive_seed("oracle", kind, seed))
    options = [len(choice.options) for choice in choices]
    single = sum(active[:, j] * rng.standard_normal(n)[rows[:, j]] for j, n in enumerate(options))
    costs = sum(active[:, j] * rng.random(n)[rows[:, j]] for j, n in enumerate(options))
    scores = single / single.std()
    if kind != "additive":
        pairs = np.zeros(len(archs))
        for _ in choices:
            a, b = rng.permutation(len(choices))[:2]
            tables = rng.standard_normal((options[a], options[b]))
            pairs += active[:, a] * active[:, b] * tables[rows[:, a], rows[:, b]]
        scores = scores + pairs / pairs.std()
    scores = scores / scores.std() + 0.05 * rng.standard_normal(len(archs))
    metrics = {
        arch.key: {"accuracy": float(score), "macs": float(cost)}
        for arch, score, cost in zip(archs, scores, costs, strict=True)
    }
    return Oracle(space.name, space, metrics)


def from_csv(path: Path, space_name: str) -> Oracle:
    """Returns the networks of a CSV file, to which searches are then confined.

    Args:
        path: the path of the file; `supernet.ranking.truth.read_truth` describes its columns.
        space_name: the space of the networks.

    Raises:
        InputError: the file cannot be read, or has fewer than two networks with an accuracy.
    """
    import torch

    from supernet.ranking.truth import read_truth
    from supernet.spaces import builder

    with torch.device("meta"):
        space = builder(space_name)().space
    values = read_truth(path, space).values
    if sum(value is not None for value in values.values()) < 2:
        raise InputError(f"{path} has fewer than two networks with an accuracy; a search needs at least two")
    metrics = {form.key: {} if value is None else {"accuracy": value} for form, value in values.items()}
    return Oracle(path.stem, space, metrics, Listed(space, tuple(values)))


def pyramid(seed: int) -> Formula:
    """Returns the pyramids of NAS-FPN, seven cells on P3 to P7, scored by a sum over their decisions.

    Every option of every decision adds a normal value. The sum is taken over the normal form.

    Args:
        seed: the seed of the values.
    """
    import numpy as np

    from detection.nasfpn.space import pyramid_space

    space = pyramid_space()
    rng = np.random.default_rng(derive_seed("oracle", "pyramid", seed))
    values = [rng.standard_normal(len(choice.options)) for choice in space.choices]

    def raw(arch: Arch) -> float:
        return float(sum(column[i] for column, i in zip(values, space.to_indices(arch), strict=True)))

    return Formula(f"pyramid-{seed}", space, raw)


def ladder(seed: int) -> Formula:
    """Returns the cells of PNASNet with one to three blocks, in which operations interact.

    The value of a block is the sum of the values of its two operations and of a value of their pair, and grows with
    the values of the blocks that it reads; the score of a cell is the mean over its blocks, to which each block adds.

    Args:
        seed: the seed of the values.
    """
    import numpy as np

    from supernet.blocks.cells.graph import cell_space
    from supernet.blocks.cells.ops import PNASNET_OPS

    space = cell_space(PNASNET_OPS, blocks=3, fewer=True, chosen=False)
    rng = np.random.default_rng(derive_seed("oracle", "ladder", seed))
    n = len(PNASNET_OPS)
    single, pairs = rng.standard_normal(n), rng.standard_normal((n, n))
    pairs = (pairs + pairs.T) / 2

    def raw(arch: Arch) -> float:
        outputs = [0.0, 0.5]  # an advantage of the older input
        for block in range(int(arch["blocks"])):
            names = [f"block{block}.{part}" for part in ("left", "right", "left_op", "right_op")]
            left, right = (int(arch[name]) for name in names[:2])
            first, second = (PNASNET_OPS.index(str(arch[name])) for name in names[2:])
            apart = 0.5 * (left != right)
            own = single[first] + single[second] + pairs[first, second] + apart
            outputs.append(own + 0.5 * (outputs[left] + outputs[right]))
        return sum(outputs[2:]) / (len(outputs) - 2) + 0.3 * len(outputs)

    return Formula(f"ladder-{seed}", space, raw)


FORMULAS = {"pyramid": pyramid, "ladder": ladder}
TABLES = ("additive", "interactions", "conditional")


def oracles_of(name: str, seeds: Sequence[int]) -> "list[Oracle | Formula]":
    """Returns an oracle for each seed: the same one, or, for a kind without a number, that of the seed."""
    if name in FORMULAS or name in TABLES:
        return [oracle_of(f"{name}-{seed}") for seed in seeds]
    return [oracle_of(name)] * len(seeds)


def oracle_of(name: str) -> "Oracle | Formula":
    """Returns an oracle by name: `nasbench-macro`, or a synthetic kind with its seed, such as `interactions-3`.

    Raises:
        InputError: there is no such oracle.
    """
    kind, _, seed = name.rpartition("-")
    if name == "nasbench-macro":
        return nasbench_macro()
    if seed.isdigit() and kind in FORMULAS:
        return FORMULAS[kind](int(seed))
    if kind not in TABLES or not seed.isdigit():
        known = ("nasbench-macro", *(f"{kind}-0" for kind in (*TABLES, *FORMULAS)))
        raise InputError(f"there is no oracle {name!r}; {nearest(name, known)}")
    return synthetic(kind, int(seed))
