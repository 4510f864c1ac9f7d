"""Do supernets rank better if conflicting options are split, paths are compared in training, or drawn by gradients?

    python tools/benchmarks/conflicts.py --source CIFAR10/test --seeds 0 1 2

Trains the supernet of a recipe in several ways, each with equally many passes of a path, and ranks networks of a table:

- `once`: the recipe.
- `twice`: the recipe for half of the epochs, and again from its weights with a new schedule. The control of `split`.
- `split`: after the first half the supernet becomes two (Zhao et al., 2021), each with a part of the options of one
  choice: those whose gradients for the other weights disagree most (Hu et al., 2022). Each is trained for a quarter.
- `pairs`: two paths in every step, for half of the steps. The control of `ranked`.
- `ranked`: the same, where the path of more MACs, if its loss is higher, also learns from the difference: a pairwise
  ranking loss by a prior. Its gradient is that of the larger path alone.
- `gradients`: options are drawn half uniformly and half in proportion to the mean norm of the gradients of the paths
  that have them (Lu et al., 2023, for paths, without their part for the data).

The last table has the mean τ of each with its 95 % interval, and the differences to its control with the same seed.
Results are kept in --out, and an interrupted comparison goes on with the trainings that are missing.
"""

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import tyro
from annotated_types import Ge
from torch import Tensor, nn

from supernet.checked import Checked, Count, FilePath, Pixels, Seed, Threads
from supernet.errors import InputError, nearest
from supernet.paths import inside
from supernet.seeding import generator
from supernet.training.monitor import Monitor
from supernet.training.task import Classification, LossMetrics, PathLoss
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.benchmarks.ranking import check_table, drawn, reduced
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet.chain import Chain
    from supernet.ranking.truth import Truth
    from supernet.space import Arch, Choice, Value
    from supernet.training.sampling import ArchSampler
    from supernet_tools.pipeline.train import Prepared

CONTROLS = {"once": "once", "twice": "once", "split": "twice", "pairs": "once", "ranked": "pairs", "gradients": "once"}
"""The ways to train, with the one that each is compared to."""

DRAWS = 12
"""Batches, each with other options elsewhere, over which the gradients of the options of a choice are compared."""


class Trained(NamedTuple):
    """The supernets of a training: one, or two that have the options of `choice` between them."""

    supernets: "tuple[Chain, ...]"
    choice: "Choice | None" = None
    groups: "tuple[tuple[Value, ...], ...]" = ()

    def supernet(self, arch: "Arch") -> "Chain":
        """Returns the supernet that has an architecture."""
        if self.choice is None:
            return self.supernets[0]
        place = next(i for i, group in enumerate(self.groups) if arch[self.choice.name] in group)
        return self.supernets[place]


# -- splitting --------------------------------------------------------------------------------------------------------


def agreements(parts: "Prepared", choice: "Choice", seed: int) -> Tensor:
    """Returns how far the options of a choice agree on the gradients of all other weights: (options, options) cosines.

    The mean over `DRAWS` batches; with each, all options see the same images and the same options elsewhere.
    """
    supernet, train = parts.supernet, parts.kind.config.train
    own = {id(parameter) for parameter in _parameters_of(supernet, choice)}
    shared = [parameter for parameter in supernet.parameters() if id(parameter) not in own]
    batches = parts.kind.task.batches(parts.data, train, start=0, rank=0, world=1)
    total = torch.zeros(len(choice.options), len(choice.options))
    for draw in range(DRAWS):
        images, labels = next(batches)
        elsewhere = supernet.space.sample(generator(seed, "gradients", draw))
        rows = []
        for option in choice.options:
            arch = supernet.space.canonical({**elsewhere, choice.name: option})
            loss = nn.functional.cross_entropy(supernet(images, arch), labels)
            gradients = torch.autograd.grad(loss, shared, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for p, g in zip(shared, gradients, strict=True)
                    ]
                )
            )
        unit = nn.functional.normalize(torch.stack(rows), dim=1)
        total += unit @ unit.T
    batches.close()  # type: ignore[attr-defined]  # a generator
    return total / DRAWS


def _parameters_of(supernet: "Chain", choice: "Choice") -> list[nn.Parameter]:
    """The parameters whose use depends on a choice: those of its options."""
    rng = generator(0, "parameters")
    elsewhere = supernet.space.sample(rng)
    used = [
        {id(p): p for p, _ in supernet.active_parts(supernet.space.canonical({**elsewhere, choice.name: option}))}
        for option in choice.options
    ]
    everywhere = set.intersection(*(set(part) for part in used))
    return [parameter for part in used for key, parameter in part.items() if key not in everywhere]


def worst_split(agreement: Tensor) -> tuple[float, tuple[int, ...]]:
    """Returns the mean agreement between the two groups of options that agree least, and the first of the groups."""
    n = len(agreement)
    splits = []
    for size in range(1, n // 2 + 1):
        for group in itertools.combinations(range(n), size):
            rest = [i for i in range(n) if i not in group]
            splits.append((float(agreement[list(group)][:, rest].mean()), group))
    return min(splits)


def confined(sampler: "ArchSampler", choice: "Choice", group: "Sequence[Value]", supernet: "Chain") -> "ArchSampler":
    """Returns a sampler whose architectures have only some options of a choice."""

    def sample(step: int) -> "tuple[Arch, ...]":
        rng = generator(0, "group", step)
        return tuple(
            arch if arch[choice.name] in group else supernet.space.canonical({**arch, choice.name: rng.choice(group)})
            for arch in sampler(step)
        )

    return sample


# -- pairs ------------------------------------------------------------------------------------------------------------


class Ranked(Classification):
    """Expects pairs, the path of fewer MACs first; the other also learns from how much higher its loss is."""

    def paths(self, network: nn.Module, batch: Any, data: Any, config: Any, *, step: int, rank: int) -> PathLoss:
        """Returns the loss of the two paths of a step, called in turn."""
        plain = super().paths(network, batch, data, config, step=step, rank=rank)
        smaller: list[Tensor] = []

        def loss_of(arch: "Arch") -> tuple[Tensor, LossMetrics]:
            loss, metrics = plain(arch)
            if not smaller:
                smaller.append(loss.detach())
                return loss, metrics
            return loss + (loss - smaller.pop()).clamp(min=0), metrics

        return loss_of


def pairs(sampler: "ArchSampler", macs: "Callable[[Arch], float]") -> "ArchSampler":
    """Returns a sampler of two paths per step, that of fewer MACs first."""
    return lambda step: tuple(sorted((*sampler(2 * step), *sampler(2 * step + 1)), key=macs))


# -- by gradients -----------------------------------------------------------------------------------------------------


class ByGradients(Monitor):
    """Draws options by the norms of gradients, which it reads from the training that it watches.

    Args:
        supernet: the supernet in training.
        sampler: gives the paths that do not follow gradients.
        seed: the seed of all draws.
    """

    def __init__(self, supernet: "Chain", sampler: "ArchSampler", seed: int) -> None:
        super().__init__(supernet)
        self._sampler, self._seed = sampler, seed
        self._norms = {choice.name: [1.0] * len(choice.options) for choice in supernet.space.choices}

    def gradients(self, step: int, archs: "Sequence[Arch]") -> None:
        """Credits the norm of a step's gradients to the options of its path."""
        norms = [parameter.grad.norm() for parameter in self.chain.parameters() if parameter.grad is not None]
        norm = float(torch.stack(norms).norm())
        for choice in self.chain.space.choices:
            place = list(choice.options).index(archs[0][choice.name])
            means = self._norms[choice.name]
            means[place] += 0.1 * (norm - means[place])

    def __call__(self, step: int) -> "tuple[Arch, ...]":
        """Returns the path of a step."""
        rng, space = generator(self._seed, "by gradients", step), self.chain.space
        if step < 50 or rng.random() < 0.5:  # the means of norms begin as 1
            return self._sampler(step)
        drawn = {c.name: rng.choices(c.options, self._norms[c.name])[0] for c in space.choices}
        return (space.canonical(drawn),)


# -- trainings --------------------------------------------------------------------------------------------------------


def train_in(way: str, config: SupernetRun) -> Trained:
    """Trains the supernet of a recipe in one of the ways."""
    from supernet.train import train_supernet
    from supernet_tools.pipeline.runs import kind_of
    from supernet_tools.pipeline.train import prepare

    halves = way in ("twice", "split")
    epochs = config.train.epochs
    first = _for_epochs(config, epochs // 2 if halves or way in ("pairs", "ranked") else epochs)
    parts = prepare(kind_of(kind_of(first).resolved()))
    supernet, task, monitor, sampler = parts.supernet, parts.kind.task, None, parts.sampler
    if way in ("pairs", "ranked"):
        sampler = pairs(sampler, lambda arch: float(parts.costs(arch)["macs"]))
    if way == "ranked":
        assert isinstance(task, Classification)
        task = Ranked(task.augment)
    if way == "gradients":
        sampler = monitor = ByGradients(supernet, sampler, config.train.seed)

    def train(network: "Chain", run: SupernetRun, **options: Any) -> None:
        train_supernet(network, parts.data, run.train, task=task, verbose=False, **options)

    train(supernet, first, sampler=sampler, lead=parts.lead, monitor=monitor)
    if way == "twice":
        train(supernet, _for_epochs(config, epochs - epochs // 2, again=True), sampler=sampler)
    if way != "split":
        return Trained((supernet.eval(),))
    supernet.train()
    found = {
        c.name: worst_split(agreements(parts, c, config.train.seed)) for c in supernet.space.choices if c.when is None
    }
    name = min(found, key=lambda key: found[key][0])
    choice = supernet.space[name]
    groups = (
        tuple(choice.options[i] for i in found[name][1]),
        tuple(o for i, o in enumerate(choice.options) if i not in found[name][1]),
    )
    print(f"split: {name} into {groups}; cosine between them {found[name][0]:.3f}")
    copies = (supernet, copy.deepcopy(supernet))
    for network, group in zip(copies, groups, strict=True):
        run = _for_epochs(config, (epochs - epochs // 2) // 2, again=True)
        train(network, run, sampler=confined(sampler, choice, group, network))
    return Trained(tuple(network.eval() for network in copies), choice, groups)


def _for_epochs(config: SupernetRun, epochs: int, *, again: bool = False) -> SupernetRun:
    """The recipe for fewer epochs; another time, it sees other batches."""
    seed = config.train.seed + 1000 if again else config.train.seed
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs, seed=seed))


def tau_of(trained: Trained, parts: "Prepared", truth: "Truth", args: "Conflicts") -> float:
    """Returns Kendall's τ-b of the held-out losses of random networks to their true accuracies."""
    from scipy.stats import kendalltau

    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    archs = drawn(truth, args.n)
    part = parts.data.validation.subset(torch.arange(min(args.images, len(parts.data.validation))))
    losses: dict[Arch, float] = {}
    for supernet in trained.supernets:
        evaluate = SharedWeights(supernet, parts.data.calibration, part, bn=Recalibrate(args.bn_batches))
        own = [arch for arch in archs if trained.supernet(arch) is supernet]
        losses |= {arch: scores["loss"] for arch, scores in zip(own, evaluate(own), strict=True)}
    return float(kendalltau([-losses[arch] for arch in archs], [truth.values[arch] for arch in archs]).statistic)


def finished(way: str, seed: int, args: "Conflicts") -> dict[str, Any]:
    """Returns τ and the minutes of processor time of a training, which is only made if its result is not there yet.

    Raises:
        InputError: the result in the folder has other settings.
    """
    from supernet.files import read_json, write_json
    from supernet.ranking.truth import read_truth
    from supernet_tools.fidelity import shipped
    from supernet_tools.pipeline.runs import kind_of
    from supernet_tools.pipeline.train import prepare

    config = reduced(
        args.recipe,
        source=args.source,
        size=args.size,
        space_settings=args.space_settings,
        epochs=args.epochs,
        batch=args.batch,
        seed=seed,
    )
    parts = prepare(kind_of(kind_of(config).resolved()))
    table = shipped()[0] if args.truth is None else read_truth(args.truth, parts.supernet.space)
    names = ("recipe", "space_settings", "size", "epochs", "batch", "n", "images", "bn_batches", "threads")
    settings = {name: str(getattr(args, name)) for name in names} | {"data": parts.data.digest}
    file = inside(args.out, f"{way}-{seed}.json")
    if file.exists():
        known: dict[str, Any] = read_json(file)
        if known.get("settings") != settings:
            raise InputError(f"{file} has the result of other settings or images; give another --out")
        return known
    began = time.process_time()
    trained = train_in(way, config)
    minutes = (time.process_time() - began) / 60
    document = {"settings": settings, "minutes": minutes, "tau": tau_of(trained, parts, table, args)}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(file, document)
    return document


@dataclass(frozen=True)
class Conflicts(Checked):
    """Train a recipe in several ways, and rank networks of its table by each."""

    ways: tyro.conf.Positional[tuple[str, ...]] = tuple(CONTROLS)
    """Names of the ways above; all by default."""
    source: str = "cifar10"
    """Folder of CIFAR-10's images, or "cifar10"."""
    size: Pixels = 16
    """Image side in pixels."""
    epochs: Annotated[int, Ge(4)] = 8
    """Epochs of a training of one path per step."""
    batch: Count = 64
    """Images per step."""
    n: Annotated[int, Ge(2)] = 150
    """Random distinct networks of the table that are ranked, or all if it has fewer."""
    images: Count = 1000
    """Held-out images that score a network."""
    bn_batches: Count = 4
    """Calibration batches, of 64 images each."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of the supernets; at least two."""
    recipe: Literal["macro-cifar10", "nasbench201-cifar10"] = "macro-cifar10"
    """The recipe."""
    truth: FilePath | None = None
    """A table of accuracies (see tools/fidelity.py); needed for nasbench201-cifar10, whose table is not shipped."""
    space_settings: tuple[str, ...] = ()
    """Further settings of the space, such as channels=8 cells=2; the networks of the table are larger."""
    threads: Threads = 1
    """Threads of torch."""
    out: FilePath = Path("runs/conflicts")
    """Folder of the results."""


def run() -> None:
    """Trains in all ways and compares them."""
    args = parse(Conflicts, __doc__)
    check_table(args.recipe, args.truth)
    if unknown := [way for way in args.ways if way not in CONTROLS]:
        raise InputError(f"there is no way {unknown[0]!r}; {nearest(unknown[0], CONTROLS)}")
    if len(args.seeds) < 2:
        raise InputError("an interval needs at least two --seeds")
    torch.set_num_threads(args.threads)
    rows, taus = [], dict[str, list[float]]()
    for way in args.ways:
        for seed in args.seeds:
            result = finished(way, seed, args)
            taus.setdefault(way, []).append(result["tau"])
            rows.append((way, seed, f"{result['minutes']:.1f}", f"{result['tau']:.3f}"))
            print(f"{way}, seed {seed}: τ {result['tau']:.3f} after {result['minutes']:.1f} minutes", flush=True)
    print_table(f"agreement of the loss with the table, n = {args.n} networks", ("way", "seed", "minutes", "τ-b"), rows)
    means = []
    for way, own in taus.items():
        control = taus.get(CONTROLS[way])
        less = (
            "-"
            if control is None or way == CONTROLS[way]
            else format_mean([a - b for a, b in zip(own, control, strict=True)], 3)
        )
        means.append((way, format_mean(own, 3), CONTROLS[way], less))
    print_table(f"over {len(args.seeds)} seeds", ("way", "τ-b", "control", "less that of the control"), means)


if __name__ == "__main__":
    main(run)
