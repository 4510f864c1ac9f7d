"""Spaces whose scores are known, for tools/benchmarks/search.py."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed
from supernet.space import Arch, Choice, SearchSpace

OPS = ("skip", "k3", "k5", "k7")


@dataclass(frozen=True)
class Oracle:
    """A space with the metrics of its networks by the key of their normal form; empty ones are failed trainings."""

    name: str
    space: SearchSpace
    metrics: Mapping[str, Mapping[str, float]]
    feasible: "Listed | None" = None

    @property
    def best(self) -> float:
        """The highest score there is."""
        return self.ranked[0]

    def score(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """The metrics of architectures in their normal form, none of a failed training."""
        return [self.metrics[arch.key] for arch in archs]

    @functools.cached_property
    def ranked(self) -> list[float]:
        """The scores, the best first."""
        return sorted((m["accuracy"] for m in self.metrics.values() if m), reverse=True)

    @property
    def goals(self) -> dict[str, float]:
        """What a score must reach: the best network (or one as good), one of the top ten, one of the top 1 %."""
        hundredth = math.ceil(len(self.ranked) / 100)
        ranks = {"the best": 1, "the top ten": min(10, len(self.ranked)), "the top 1 %": hundredth}
        return {name: self.ranked[rank - 1] for name, rank in ranks.items()}


@dataclass(frozen=True)
class Listed:
    """Confines a search to the networks of a table."""

    space: SearchSpace
    archs: tuple[Arch, ...]  # normal forms

    @property
    def limits(self) -> dict[str, float]:
        return {"networks": float(len(self.archs))}

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(arch.key for arch in self.archs)

    def __call__(self, arch: Arch) -> bool:
        return self.space.normal_form(arch).key in self._keys

    def sample(self, rng: Random) -> Arch:
        return rng.choice(self.archs)

    def count(self) -> int:
        return len(self.archs)

    def explain(self) -> str:
        return "the table has none"


# -- oracles -----------------------------------------------------------------------------------------------------------


def nasbench_macro() -> Oracle:
    """The 3,969 networks of NAS-Bench-Macro, each by the row of its normal form."""
    from supernet.spaces.nasbench_macro import nasbench_macro as chain
    from supernet.spaces.nasbench_macro import table

    space, rows = chain().space, table()
    forms = {space.normal_form(arch) for arch in rows}
    return Oracle("nasbench-macro", space, {form.key: rows[form] for form in forms})


def synthetic(kind: str, seed: int) -> Oracle:
    """A space of about 20,000 networks with made-up scores and costs, both a pure function of kind and seed.

    `additive`: every decision of seven adds its part. `interactions`: as much variance comes from tables over pairs of
    decisions. `conditional`: one to four layers, each with an operation and a width on a scale, with interactions; what
    is inactive adds nothing. A twentieth of the deviation is noise.
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
    parts = sum(active[:, j] * rng.standard_normal(n)[rows[:, j]] for j, n in enumerate(options))
    cost = sum(active[:, j] * rng.random(n)[rows[:, j]] for j, n in enumerate(options))
    total = parts / parts.std()
    if kind != "additive":
        pairs = np.zeros(len(archs))
        for _ in choices:
            a, b = rng.permutation(len(choices))[:2]
            tables = rng.standard_normal((options[a], options[b]))
            pairs += active[:, a] * active[:, b] * tables[rows[:, a], rows[:, b]]
        total = total + pairs / pairs.std()
    total = total / total.std() + 0.05 * rng.standard_normal(len(archs))
    pairs_of = zip(archs, total, cost, strict=True)
    return Oracle(space.name, space, {a.key: {"accuracy": float(s), "macs": float(c)} for a, s, c in pairs_of})


def from_csv(path: Path, space_name: str) -> Oracle:
    """The networks of a CSV file (see `supernet.ranking.truth.read_truth`); searches are confined to them."""
    import torch

    from supernet.ranking.truth import read_truth
    from supernet.spaces import builder

    with torch.device("meta"):
        space = builder(space_name)().space
    values = read_truth(path, space).values
    if sum(value is not None for value in values.values()) < 2:
        raise InputError(f"{path} has fewer than two networks with an accuracy; nothing can be searched")
    metrics = {form.key: {} if value is None else {"accuracy": value} for form, value in values.items()}
    return Oracle(path.stem, space, metrics, Listed(space, tuple(values)))


def oracle_of(name: str) -> Oracle:
    """`nasbench-macro`, or a kind of synthetic space and its seed (`interactions-3`)."""
    kind, _, seed = name.rpartition("-")
    if name == "nasbench-macro":
        return nasbench_macro()
    if kind not in ("additive", "interactions", "conditional") or not seed.isdigit():
        known = ("nasbench-macro", "additive-0", "interactions-0", "conditional-0")
        raise InputError(f"there is no oracle {name!r}; {nearest(name, known)}")
    return synthetic(kind, int(seed))
