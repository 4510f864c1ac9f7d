"""Is the detector that a search found better than plain, published and random ones?

    python tools/benchmarks/detectors.py runs/x

Retrains each network with several seeds. Ends with tables of the search's scores, of the AP of every network, and of
the differences to the network that was found, with 95 % intervals.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from supernet.checked import Count, FilePath, Name, Natural, Seed
from supernet.errors import InputError, RunError
from supernet_tools.benchmarks.curves import new_figure, save_plot
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import mean_and_deviation, print_differences, print_table

if TYPE_CHECKING:
    import plotly.graph_objects

    from supernet.config import Train
    from supernet.space import Arch
    from supernet_tools.pipeline.run import Run


AP, AP50 = "test_map", "test_map50"


@dataclass(frozen=True)
class Compare:
    """Retrain detectors by the recipe of the run with the same seeds, and compare their test AP in pairs.

    Finished trainings are kept, so the same command resumes.
    """

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of a trained detector supernet and its search."""
    search: Name = "detnas"
    """Name of the search. Its best network is one arm; random networks keep to its limits."""
    random: Natural = 3
    """Number of random networks within the limits of the search."""
    seeds: Count = 3
    """Trainings per network, with seeds that count up from --seed."""
    seed: Seed = 0
    """The first of these seeds; it also draws the random networks."""
    plain: str | None = None
    """An arm whose backbone takes this option in every block, e.g. shuffle3 …"""
    plain_widths: tuple[Count, ...] = ()
    """… with stages of these widths. The backbone must cost at least as many MACs as the one that was found."""
    wiring: str | None = None
    """An arm with this published pyramid, e.g. nasfpn-7 …"""
    wiring_shift: int = 0
    """… shifted by this many levels: -1 reads P3 to P7 as P2 to P6."""
    fpn: bool = False
    """An arm with an ordinary feature pyramid on the fixed backbone of the run."""
    name: Name = "detectors"
    """Name of the result, RUN/compared/NAME.json, and of the histogram of the search's scores."""


Arms = dict[str, list[tuple[str, "Run", "Arch"]]]
"""Name of an arm to its networks: name, run with the space of the network, architecture."""


def run() -> None:
    """Retrains and compares the networks of all arms, writes the result and prints it."""
    args = parse(Compare, __doc__)
    if args.random < 1 or args.seeds < 2:
        raise InputError(f"a comparison needs at least --random 1 and --seeds 2, not {args.random} and {args.seeds}")
    if args.plain_widths and args.plain is None:
        raise InputError("--plain-widths needs --plain, the option of that arm")

    from supernet.files import write_json
    from supernet.paths import inside
    from supernet.train import check_training
    from supernet_tools.pipeline.config import DetectorRun
    from supernet_tools.pipeline.runs import open_run

    new_figure()  # fails before the trainings, not after them, if plotly is missing
    file = inside(args.run, "compared", f"{args.name}.json")
    opened = open_run(args.run)
    if not isinstance(opened.config, DetectorRun):
        raise InputError(
            f"{args.run} is not the run of a detector; tools/retrain.py --top 1 --random 3 compares classifiers"
        )
    arms = networks(args, opened)
    train = opened.config.retrain
    check_training(train, opened.data, task=opened.kind.task)
    rows = retrained(args, arms, train)
    scores = searched_scores(opened, args.search)
    document = {
        "format": 1,
        "command": {name: str(value) for name, value in dataclasses.asdict(args).items()},
        "recipe": dataclasses.asdict(train),
        "images": len(opened.data.test),
        "scores": scores,
        "networks": rows,
        "differences": differences(rows),
    }
    write_json(file, document)
    save_plot(histogram(scores), file.with_suffix(""))
    show(document)


# -- arms -------------------------------------------------------------------------------------------------------------


def networks(args: Compare, opened: "Run") -> Arms:
    """Returns every arm. Raises `InputError` for unknown names and for a plain backbone cheaper than the one found."""
    from supernet_tools.pipeline.architectures import random_feasible
    from supernet_tools.pipeline.search import searched_top

    (best,), feasible = searched_top(opened, args.search, 1)
    arms: Arms = {"found": [("found", opened, best)]}
    draws = random_feasible(opened, feasible, args.random + 1, args.seed)
    others = [arch for arch in draws if arch != best][: args.random]
    arms["random"] = [(f"random {number}", opened, arch) for number, arch in enumerate(others)]
    if args.plain is not None:
        arms["plain"] = [plain(args, opened, args.plain, best)]
    if args.wiring is not None:
        arms["wiring"] = [(args.wiring, opened, wired(opened, args.wiring, args.wiring_shift))]
    if args.fpn:
        arms["fpn"] = [with_fpn(opened)]
    return arms


def plain(args: Compare, opened: "Run", option: str, best: "Arch") -> "tuple[str, Run, Arch]":
    """Returns the arm whose backbone has one option in every block, at the widths of the run or at `plain_widths`."""
    other = opened
    if args.plain_widths:
        kept = [setting for setting in opened.config.backbone_settings if not setting.startswith("widths=")]
        widths = f"widths={list(args.plain_widths)}"
        other = beside(opened, f"plain-{'-'.join(map(str, args.plain_widths))}", backbone_settings=(*kept, widths))
    choices = other.space.choices
    if not choices or any(not c.name.startswith("backbone.") for c in choices):
        raise InputError(f"--plain {option!r} needs a run that searches the backbone alone")
    if lacking := [c.name for c in choices if option not in c.options]:
        raise InputError(f"--plain {option!r} is not an option of the choice {lacking[0]!r}")
    arch = other.space.canonical({c.name: option for c in choices})
    ours, theirs = other.cost(arch)["backbone_macs"], opened.cost(best)["backbone_macs"]
    if ours < theirs:
        raise InputError(
            f"the backbone of {option!r} alone has {ours:,.0f} MACs, fewer than the {theirs:,.0f} of "
            "the one that was found; give larger --plain-widths"
        )
    return f"all {option}", other, other.space.normal_form(arch)


def wired(opened: "Run", name: str, shift: int) -> "Arch":
    """Returns a published pyramid on the fixed backbone of the run."""
    from detection.nasfpn.space import wiring_arch
    from detection.nasfpn.supernet import NECK

    space = opened.space
    if opened.config.neck != "nasfpn" or not opened.config.backbone_arch:
        raise InputError(f"--wiring {name!r} needs a run that searches the pyramid alone, --neck nasfpn")
    return space.normal_form(space.canonical(wiring_arch(name, space, prefix=NECK, shift=shift)))


def with_fpn(opened: "Run") -> "tuple[str, Run, Arch]":
    """Returns the arm with torchvision's feature pyramid on the fixed backbone; everything else is as in the run."""
    from detection.detector import PREFIX
    from supernet.space import Arch

    if not opened.config.backbone_arch:
        raise InputError("--fpn needs a run with a fixed backbone; this one searches its backbone")
    kept = [s for s in opened.config.settings if s.partition("=")[0] not in ("repeats", "cells", "pooled_levels")]
    other = beside(opened, "fpn", neck="fpn", backbone_arch="", settings=tuple(kept))
    fixed = Arch.from_json(opened.config.backbone_arch)
    return "fpn", other, other.space.canonical({f"{PREFIX}.{name}": value for name, value in fixed.items()})


def beside(opened: "Run", name: str, **changed: Any) -> "Run":
    """Returns a run that differs in some fields of its recipe, for networks outside the space of the given run."""
    from supernet_tools.pipeline.run import Run
    from supernet_tools.pipeline.runs import kind_of

    if opened.config.start != "scratch":
        raise InputError(
            f"the run has start={opened.config.start!r}, but there is no such pre-training for the arm {name!r}"
        )
    kind = kind_of(dataclasses.replace(opened.config, **changed))
    return Run(opened.folder / "compared" / name, kind, opened.summary, data=opened.data)


# -- results ----------------------------------------------------------------------------------------------------------


def retrained(args: Compare, arms: Arms, train: "Train") -> list[dict[str, Any]]:
    """Returns a row per network with its metrics per seed, None for a failed training."""
    from supernet.progress import progress
    from supernet_tools.pipeline.retrain import retrain_stage

    members = [(arm, *network) for arm, networks_of in arms.items() for network in networks_of]
    rows: list[dict[str, Any]] = [
        {"arm": arm, "name": name, "arch": dict(arch), "key": arch.key, **opened.cost(arch), AP: [], AP50: []}
        for arm, name, opened, arch in members
    ]
    with progress("retraining", len(members) * args.seeds) as update:
        for number in range(args.seeds):
            config = dataclasses.replace(train, seed=args.seed + number)
            for index, (row, (_, name, opened, arch)) in enumerate(zip(rows, members, strict=True)):
                try:
                    result = retrain_stage(opened, arch, config, verbose=False)
                except RunError:
                    result = dict.fromkeys((AP, AP50))
                for metric in (AP, AP50):
                    row[metric].append(result[metric])
                update(number * len(members) + index + 1, name)
    return rows


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the AP of the network that was found minus that of each other arm, paired by seed.

    An arm of several networks counts with their mean per seed; networks with a failed training are left out.

    Raises:
        RunError: every network of an arm has a failed training.
    """
    from supernet.ranking.statistics import paired

    by_seed = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        kept = [row[AP] for row in rows if row["arm"] == arm and None not in row[AP]]
        if not kept:
            raise RunError(
                f"every network of the arm {arm!r} has a failed training; a recipe with a lower retrain.lr may help"
            )
        by_seed[arm] = [statistics.fmean(values) for values in zip(*kept, strict=True)]
    return {
        f"found less {arm}": dataclasses.asdict(paired(by_seed["found"], values))
        for arm, values in by_seed.items()
        if arm != "found"
    }


def searched_scores(opened: "Run", name: str) -> list[float]:
    """Returns the shared-weight mAP of every distinct network that a search scored, in its order."""
    from searchers import Study

    with Study(opened.folder / "search" / name / "study.db", opened.space) as study:
        return list({t.key: float(t.metrics["map"]) for t in study.trials() if not t.failed}.values())


def histogram(scores: Sequence[float]) -> "plotly.graph_objects.Figure":
    """Draws the distribution of the candidates' mAP."""
    figure = new_figure()
    figure.add_histogram(x=list(scores), nbinsx=30)
    title = f"mAP of {len(scores)} candidates with shared weights, search-validation split"
    figure.update_layout(title=title, xaxis_title="mAP", yaxis_title="candidates")
    return figure


def show(document: dict[str, Any]) -> None:
    """Prints the scores of the search, the networks and the differences."""
    scores = sorted(document["scores"])
    quantiles = [scores[round(q / 10 * (len(scores) - 1))] for q in range(0, 11, 2)]
    zero = sum(score < 0.001 for score in scores)
    print_table(
        f"shared-weight mAP of {len(scores)} candidates, {zero} below 0.001",
        ("worst", "20 %", "40 %", "60 %", "80 %", "best"),
        [[f"{quantile:.4f}" for quantile in quantiles]],
    )
    rows = []
    for row in document["networks"]:
        by_seed = ", ".join("failed" if value is None else f"{value:.3f}" for value in row[AP])
        means = [mean_and_deviation([value for value in row[metric] if value is not None]) for metric in (AP, AP50)]
        rows.append((row["name"], row["backbone_macs"], row["macs"], row["params"], by_seed, *means))
    title = f"{document['images']:,} test images; a column per seed"
    print_table(title, ("network", "backbone MACs", "MACs", "params", "AP", "AP, mean ± s.d.", "AP50"), rows)
    print_differences(document["differences"])


if __name__ == "__main__":
    main(run)
