"""What a detector search found against known and random networks: python tools/benchmarks/detectors.py runs/x"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from supernet.errors import InputError, RunError
from supernet_tools.benchmarks.curves import plotly_objects, save_plot
from supernet_tools.pipeline.command_line import main, mean_and_deviation, parse, print_differences, print_table

if TYPE_CHECKING:
    from supernet.config import Train
    from supernet.space import Arch
    from supernet_tools.pipeline.stages import Run


AP, AP50 = "test_map", "test_map50"


@dataclass(frozen=True)
class Compare:
    """Retrain detectors by the recipe of the run with the same seeds, and compare their AP on the test split in pairs.

    Trainings are kept; the same command goes on where it ended.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained detector supernet, with the search."""
    search: str = "detnas"
    """Name of the search; its best network is one arm, and random networks obey its limits."""
    random: int = 3
    """Random networks within the limits of the search."""
    seeds: int = 3
    """Trainings of every network, from --seed on."""
    seed: int = 0
    """The first of these, and of the random networks."""
    plain: str | None = None
    """An arm whose backbone takes this option in every block, e.g. shuffle3 …"""
    plain_widths: tuple[int, ...] = ()
    """… with stages of these widths; its backbone must cost as many MACs as the found one at least."""
    wiring: str | None = None
    """An arm with this published pyramid, e.g. nasfpn-7 …"""
    wiring_shift: int = 0
    """… moved by so many levels: -1 reads P3 to P7 as P2 to P6."""
    fpn: bool = False
    """An arm with a feature pyramid that decides nothing on the fixed backbone of the run."""
    name: str = "detectors"
    """Of the result, RUN/compared/NAME.json, and of the histogram of the search's scores beside it."""


Arms = dict[str, list[tuple[str, "Run", "Arch"]]]
"""Name of an arm to its networks: name, the run whose space they are of, architecture."""


def run() -> None:
    args = parse(Compare, __doc__)
    if args.random < 1 or args.seeds < 2:
        raise InputError(f"a comparison takes --random 1 and --seeds 2 at least, not {args.random} and {args.seeds}")
    if args.plain_widths and args.plain is None:
        raise InputError("--plain-widths are those of an arm; name its option with --plain")

    from detection.config import DetectorRun
    from supernet_tools.pipeline import stages

    plotly_objects()
    opened = stages.open_stage(args.run)
    if not isinstance(opened.config, DetectorRun):
        raise InputError(
            f"{args.run} is no run of a detector; tools/retrain.py --top 1 --random 3 compares classifiers"
        )
    arms = networks(args, opened)
    train = opened.config.retrain
    stages.check_training(train, opened.data, task=opened.kind.task)
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
    (args.run / "compared").mkdir(exist_ok=True)
    stages.write_json(args.run / "compared" / f"{args.name}.json", document)
    save_plot(histogram(scores), args.run / "compared" / args.name)
    show(document)


# -- arms -------------------------------------------------------------------------------------------------------------


def networks(args: Compare, opened: "Run") -> Arms:
    """Every arm; wrong names and a plain backbone that is cheaper than the found one are refused."""
    from supernet_tools.pipeline import search as searching
    from supernet_tools.pipeline import stages

    (best,), feasible = searching.searched_top(opened, args.search, 1)
    arms: Arms = {"found": [("found", opened, best)]}
    drawn = stages.random_feasible(opened, feasible, args.random + 1, args.seed)
    others = [arch for arch in drawn if arch != best][: args.random]
    arms["random"] = [(f"random {number}", opened, arch) for number, arch in enumerate(others)]
    if args.plain is not None:
        arms["plain"] = [plain(args, opened, args.plain, best)]
    if args.wiring is not None:
        arms["wiring"] = [(args.wiring, opened, wired(opened, args.wiring, args.wiring_shift))]
    if args.fpn:
        arms["fpn"] = [with_fpn(opened)]
    return arms


def plain(args: Compare, opened: "Run", option: str, best: "Arch") -> "tuple[str, Run, Arch]":
    """One option in every block of the backbone, at its own widths or others."""
    other = opened
    if args.plain_widths:
        kept = [setting for setting in opened.config.backbone_settings if not setting.startswith("widths=")]
        widths = f"widths={list(args.plain_widths)}"
        other = beside(opened, f"plain-{'-'.join(map(str, args.plain_widths))}", backbone_settings=(*kept, widths))
    choices = other.supernet.space.choices
    if not choices or any(not c.name.startswith("backbone.") for c in choices):
        raise InputError(f"--plain {option!r} needs a run that searches the backbone alone")
    if lacking := [c.name for c in choices if option not in c.options]:
        raise InputError(f"--plain {option!r} is no option of the choice {lacking[0]!r}")
    arch = other.supernet.space.canonical({c.name: option for c in choices})
    ours, theirs = (at.cost(which)["backbone_macs"] for at, which in ((other, arch), (opened, best)))
    if ours < theirs:
        raise InputError(
            f"the backbone of {option!r} alone has {ours:,.0f} MACs, less than the found one's "
            f"{theirs:,.0f}; give larger --plain-widths"
        )
    return f"all {option}", other, other.supernet.space.normal_form(arch)


def wired(opened: "Run", name: str, shift: int) -> "Arch":
    """A published pyramid on a fixed backbone."""
    from detection.nasfpn.space import wiring_arch
    from detection.nasfpn.supernet import NECK

    space = opened.supernet.space
    if opened.config.neck != "nasfpn" or not opened.config.backbone_arch:
        raise InputError(f"--wiring {name!r} needs a run that searches the pyramid alone, --neck nasfpn")
    return space.normal_form(space.canonical(wiring_arch(name, space, prefix=NECK, shift=shift)))


def with_fpn(opened: "Run") -> "tuple[str, Run, Arch]":
    """The fixed backbone of a run with torchvision's feature pyramid, everything else as it is."""
    from detection.detector import PREFIX
    from supernet.space import Arch

    if not opened.config.backbone_arch:
        raise InputError("--fpn keeps a fixed backbone, and this run searches its own")
    kept = [s for s in opened.config.settings if s.partition("=")[0] not in ("repeats", "cells", "pooled_levels")]
    other = beside(opened, "fpn", neck="fpn", backbone_arch="", settings=tuple(kept))
    fixed = Arch.from_json(opened.config.backbone_arch)
    return "fpn", other, other.supernet.space.canonical({f"{PREFIX}.{name}": value for name, value in fixed.items()})


def beside(opened: "Run", name: str, **changed: Any) -> "Run":
    """A run like the given one but for some fields of its recipe, for networks that its space does not hold."""
    from supernet_tools.pipeline import stages

    if opened.config.start != "scratch":
        raise InputError(f"the run's start={opened.config.start!r} names a pre-training that the arm {name!r} lacks")
    config = dataclasses.replace(opened.config, **changed)
    kind = stages.kind_of(config)
    supernet = kind.supernet(opened.data)
    return stages.Run(opened.folder / "compared" / name, config, opened.data, supernet, kind.costs(supernet))


# -- results ----------------------------------------------------------------------------------------------------------


def retrained(args: Compare, arms: Arms, train: "Train") -> list[dict[str, Any]]:
    """A row per network with its figures per seed, None for a training that failed; a seed after the other."""
    from supernet.progress import progress
    from supernet_tools.pipeline import stages

    members = [(arm, *member) for arm, found in arms.items() for member in found]
    rows: list[dict[str, Any]] = [
        {"arm": arm, "name": name, "arch": dict(arch), "key": arch.key, **opened.cost(arch), AP: [], AP50: []}
        for arm, name, opened, arch in members
    ]
    with progress("retraining", len(members) * args.seeds) as update:
        for number in range(args.seeds):
            config = dataclasses.replace(train, seed=args.seed + number)
            for index, (row, (_, name, opened, arch)) in enumerate(zip(rows, members, strict=True)):
                try:
                    result = stages.retrain_stage(opened, arch, config, verbose=False)
                except RunError:
                    result = dict.fromkeys((AP, AP50))
                for figure in (AP, AP50):
                    row[figure].append(result[figure])
                update(number * len(members) + index + 1, name)
    return rows


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """AP of the found network less that of the other arms, in pairs of seeds; those of several networks by their mean.

    Raises:
        RunError: every network of an arm has a training that failed.
    """
    from supernet.ranking.statistics import paired

    by_seed = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        kept = [row[AP] for row in rows if row["arm"] == arm and None not in row[AP]]
        if not kept:
            raise RunError(
                f"every network of the arm {arm!r} has a training that failed; a lower --retrain.lr may help"
            )
        by_seed[arm] = [statistics.fmean(values) for values in zip(*kept, strict=True)]
    return {
        f"found less {arm}": dataclasses.asdict(paired(by_seed["found"], values))
        for arm, values in by_seed.items()
        if arm != "found"
    }


def searched_scores(opened: "Run", name: str) -> list[float]:
    """mAP with shared weights of every distinct network that a search scored, in its order."""
    from searchers import Study

    with Study(opened.folder / "search" / name / "study.db", opened.supernet.space) as study:
        return list({t.key: float(t.metrics["map"]) for t in study.trials() if not t.failed}.values())


def histogram(scores: Sequence[float]) -> Any:
    """How many candidates have which mAP."""
    figure = plotly_objects().Figure()
    figure.add_histogram(x=list(scores), nbinsx=30)
    title = f"mAP of {len(scores)} candidates with shared weights, search-validation split"
    figure.update_layout(title=title, xaxis_title="mAP", yaxis_title="candidates")
    return figure


def show(document: dict[str, Any]) -> None:
    """Scores of the search, networks and differences."""
    scores = sorted(document["scores"])
    tenths = [scores[round(q / 10 * (len(scores) - 1))] for q in range(0, 11, 2)]
    zero = sum(score < 0.001 for score in scores)
    print_table(
        f"shared-weight mAP of {len(scores)} candidates, {zero} below 0.001",
        ("least", "20 %", "40 %", "60 %", "80 %", "best"),
        [[f"{t:.4f}" for t in tenths]],
    )
    rows = []
    for row in document["networks"]:
        known = {figure: [value for value in row[figure] if value is not None] for figure in (AP, AP50)}
        each = ", ".join("failed" if value is None else f"{value:.3f}" for value in row[AP])
        means = [mean_and_deviation(known[figure]) for figure in (AP, AP50)]
        rows.append((row["name"], row["backbone_macs"], row["macs"], row["params"], each, *means))
    title = f"{document['images']:,} test images; a column per seed"
    print_table(title, ("network", "backbone MACs", "MACs", "params", "AP", "AP, mean ± s.d.", "AP50"), rows)
    print_differences(document["differences"])


if __name__ == "__main__":
    main(run)
