"""One page about a run, written at any time: data, training, searches, race, trust, exports, predictions, commands."""

import base64
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from searchers import Study, Trial
from searchers.study import score
from supernet.errors import InputError, RunError, UnwritableError
from supernet.files import flatten, read_json, replacing
from supernet.paths import inside
from supernet.space import Arch
from supernet.training.checkpoint import load_state
from supernet_tools.pipeline.architectures import named_arch
from supernet_tools.pipeline.folder import FIT, FIT_RESULT, RUN, read_run
from supernet_tools.pipeline.learned import SCORES
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.page import COLOURS, Section, category_axis, curve, jpeg, markers, plain
from supernet_tools.pipeline.per_class import ClassFigures, class_figures
from supernet_tools.pipeline.pictures import decided, recipe_of
from supernet_tools.pipeline.report_network import busy, example_of, stages
from supernet_tools.pipeline.retrain import read_result, trained_network
from supernet_tools.pipeline.run import NETWORK, WEIGHTS, Run
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.search import BEST, searched_front, searches_of
from supernet_tools.pipeline.units import cost_in_units, in_units

PAGE = "report.html"
TEMPLATE = "report.html.j2"
SHEET = 40
"""Images of the contact sheet."""
EXAMPLES = 12
"""Predictions that are shown of each kind, right and wrong."""
SHOWN_CLASSES = 60
"""Classes of a confusion matrix or a table; more would not be legible."""
PATHS = {"large": "large path", "random": "random paths", "small": "small path", "network": "the network"}
"""The networks that are scored on held-out images during training, by their names in the history."""
HOVER_LINES, HOVER_WIDTH = 16, 3


def report_stage(folder: Path, out: Path | None = None, *, moved: MovedData = NOT_MOVED) -> Path:
    """Writes the report of a run, as far as the run has come.

    Args:
        folder: the run's folder.
        out: the file; `report.html` in the run by default.
        moved: where the images are now, if the user says so.

    Returns:
        the file.

    Raises:
        InputError: the folder holds no run.
    """
    run = open_run(folder, trained=False, moved=moved)
    page = inside(folder, PAGE) if out is None else out
    text = rendered(run)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def rendered(run: Run) -> str:
    """The page of a run as text."""
    import jinja2
    from markupsafe import Markup

    sections = [_guarded(title, build, run) for title, build in SECTIONS]
    missing = _missing(run)
    templates = resources.files("supernet_tools.pipeline").joinpath("templates")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(templates.joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=f"{run.folder.resolve().name}: {run.kind.space}",
        folder=str(run.folder),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        missing=missing,
        sections=sections,
        plots=[plot for section in sections for plot in section.plots],
        plotly=Markup(resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")),
    )


def _guarded(title: str, build: Callable[[Run, Section], None], run: Run) -> Section:
    """A section; what cannot be read is said in it, and the others are written all the same."""
    section = Section(title)
    _guarded_into(section, lambda: build(run, section))
    return section


def _guarded_into(section: Section, build: Callable[[], None]) -> None:
    """Builds something; the reason why it cannot be shown is a line of the section."""
    try:
        build()
    except UnwritableError:  # a full disk is not damage
        raise
    except (InputError, RunError) as error:
        section.lines.append(f"Not shown: {error}")
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:  # an edited file
        section.lines.append(f"Not shown: a file of the run is damaged ({type(error).__name__}: {error}).")


def _missing(run: Run) -> list[str]:
    """What a complete run has and this one lacks."""
    parts = []
    if not (run.folder / WEIGHTS).exists() and run.config.train.epochs:
        done = Section("")
        _guarded_into(done, lambda: done.lines.append(f"epoch {len(_history(run))} of {run.config.train.epochs}"))
        parts.append(f"the training of the supernet has not ended ({done.lines[0]})")
    if not searches_of(run.folder):
        parts.append("there is no search yet")
    if not [*run.folder.glob("select/*.json"), *run.folder.glob("retrain/*/result.json")]:
        parts.append("no network was trained to the end yet")
    if not [
        *run.folder.glob("export/*/parity.json"),
        *run.folder.glob("export/*/*/parity.json"),
    ]:  # alone, or of a front
        parts.append("nothing is exported yet")
    return parts


# -- data -------------------------------------------------------------------------------------------------------------


def _data(run: Run, section: Section) -> None:
    summary = run.summary
    facts = [
        ("source", run.config.data.source),
        ("classes", len(summary.classes)),
        ("training images", summary.n_train),
        ("of these calibration images", summary.n_calibration),
        ("images that score architectures", summary.n_validation),
        ("test images", summary.n_test),
        ("pixels", f"{summary.size} × {summary.size}, {summary.in_channels} channels"),
        ("digest", summary.digest),
    ]
    source = read_json(run.folder / FIT).get("source", {}) if (run.folder / FIT).exists() else {}
    facts += [("passed over", text) for text in source.get("passed", ())]
    section.table("", ("what", "value"), facts)
    if run.kind.metric != "accuracy":
        from supernet_tools.pipeline.report_objects import objects

        objects(run, section)
        return
    images = run.data.calibration
    labels = getattr(run.data.train, "labels", images.labels)
    counts = labels.bincount(minlength=len(summary.classes)).tolist()
    bar = {"type": "bar", "x": [plain(name) for name in summary.classes], "y": counts, "marker": {"color": COLOURS[0]}}
    section.plot("classes", [bar], x="class", y="training images", xaxis=category_axis("class"))
    per_class = max(1, SHEET // max(len(summary.classes), 1))
    for label, name in list(enumerate(summary.classes))[:SHEET]:
        for index in (images.labels == label).nonzero().flatten().tolist()[:per_class]:
            section.images.append({"source": jpeg(images.pixels[index]), "caption": name, "kind": ""})


# -- training ---------------------------------------------------------------------------------------------------------


def _history(run: Run) -> list[Mapping[str, float]]:
    """Rows of the supernet's epochs, also of a training that goes on."""
    file, state = run.folder / "history.json", run.folder / "state.pt"
    if file.exists():
        return list(read_json(file).get("epochs", ()))
    return list(load_state(state).get("history", ())) if state.exists() else []


def _training(run: Run, section: Section) -> None:
    history = _history(run)
    if not history:
        section.lines.append("No epoch has ended yet, or the run trains no supernet.")
        return
    epochs = [row["epoch"] for row in history]
    losses = [name for name in ("loss", "penalty") if name in history[0]]
    traces = [curve(epochs, [row.get(name) for row in history], name, i) for i, name in enumerate(losses)]
    epoch_axis = _epoch_axis(len(history))
    section.plot("loss", traces, x="epoch", y="loss of the sampled paths", xaxis=epoch_axis)
    for number, metric in enumerate(run.kind.curves):
        rows = [row for row in history if any(f"{path}_{metric}" in row for path in PATHS)]
        if not rows:
            continue
        epochs = [row["epoch"] for row in rows]
        curves = [
            curve(epochs, [row.get(f"{path}_{metric}") for row in rows], name, colour)
            for colour, (path, name) in enumerate(PATHS.items())
            if any(f"{path}_{metric}" in row for row in rows)
        ]
        if metric == "accuracy":
            guess = read_run(run.folder).get(SCORES, {}).get("guessing", 1 / max(len(run.summary.classes), 1))
            curves.append(curve([epochs[0], epochs[-1]], [guess, guess], "chance", 6, dash="dot"))
        section.plot(
            "held-out" if not number else f"held-out-{metric}",
            curves,
            x="epoch",
            y=f"held-out {metric}",
            xaxis=epoch_axis,
        )
    _health(run, section)
    record = read_run(run.folder).get(SCORES)
    if isinstance(record, dict) and "mean" in record:
        section.lines.append(
            f"{record['n']} random architectures with the shared weights: {record['metric']} {record['mean']:.4f} ± "
            f"{record['deviation']:.4f}, the best {record['best']:.4f}"
            + (f"; naming the most frequent class: {record['guessing']:.4f}." if "guessing" in record else ".")
        )


def _epoch_axis(count: int) -> dict[str, Any]:
    """An axis of epochs, with ticks at whole numbers."""
    return {"title": {"text": "epoch"}, "dtick": max(1, count // 8), "automargin": True}


def _health(run: Run, section: Section) -> None:
    """Adds how evenly the options were trained, and how much the losses of paths differ."""
    file = run.folder / "history.json"
    health = read_json(file).get("health", {}) if file.exists() else {}
    rows = [row for row in health.get("epochs", ()) if {"step", "loss_spread", "visits_least"} <= row.keys()]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    names = {"loss_spread": "spread of the losses of paths", "visits_least": "visits of the rarest option (1: fair)"}
    traces = [curve(steps, [row[key] for row in rows], name, place) for place, (key, name) in enumerate(names.items())]
    section.plot("health", traces, x="step", y="health of the training")


# -- searches ---------------------------------------------------------------------------------------------------------


def _races(run: Run) -> list[dict[str, Any]]:
    """The documents of finished races."""
    return [read_json(file) for file in sorted(run.folder.glob("select/*.json"))]


def hover(arch: Arch) -> str:
    """An architecture as lines of a tooltip."""
    words = [plain(f"{name}={value}") for name, value in arch.items()]
    lines = [", ".join(words[i : i + HOVER_WIDTH]) for i in range(0, len(words), HOVER_WIDTH)]
    more = [f"and {len(lines) - HOVER_LINES} lines more"] if len(lines) > HOVER_LINES else []
    return "<br>".join([plain(arch.key), *lines[:HOVER_LINES], *more])


def _search(run: Run, section: Section) -> None:
    names = searches_of(run.folder)
    if not names:
        section.lines.append("There is no search yet.")
    for number, name in enumerate(names):
        try:
            with Study(run.folder / "search" / name / "study.db", run.space, read=True) as study:
                settings, trials, ended = study.settings or {}, list(study.trials()), study.ended
        except InputError as error:  # MorphNet searches a wider space
            section.lines.append(f"{name} is not shown: {error}")
            continue
        metric = settings.get("metric", run.kind.metric)
        scored = [trial for trial in trials if not trial.failed and metric.removeprefix("-") in trial.metrics]
        if not scored:
            section.lines.append(f"The search {name} has scored nothing yet.")
            continue
        finished, limits = (run.folder / "search" / name / BEST).exists(), settings.get("feasible") or {}
        within = ", ".join(f"{cost} ≤ {cost_in_units(cost, limit)}" for cost, limit in limits.items()) or "no limits"
        failed, networks = sum(bool(trial.failed) for trial in trials), len({trial.key for trial in scored})
        section.lines.append(
            f"{name}: {len(trials)} trials, {networks} networks, {failed} failed; {within}; "
            + (f"ended: {ended}." if ended else "it has ended." if finished else "it goes on.")
        )
        _over_time(section, f"time-{number}", name, scored, metric)
        _over_cost(run, section, f"cost-{number}", name, scored, metric)


def _over_time(section: Section, plot: str, name: str, trials: Sequence[Trial], metric: str) -> None:
    values, best = [score(trial, metric) for trial in trials], list[float]()
    for value in values:
        best.append(max(value, best[-1]) if best else value)
    sign = -1 if metric.startswith("-") else 1
    x = [trial.number for trial in trials]
    dots = markers(x, [sign * value for value in values], "candidates", 4, [hover(trial.arch) for trial in trials])
    line = {"type": "scatter", "mode": "lines", "x": x, "y": [sign * value for value in best], "name": "best so far"}
    shown = metric.removeprefix("-")
    section.plot(
        plot,
        [dots, {**line, "line": {"color": COLOURS[0], "shape": "hv"}}],
        x=f"trial of {name}",
        y=f"shared-weight {shown}",
    )


def _over_cost(run: Run, section: Section, plot: str, name: str, trials: Sequence[Trial], metric: str) -> None:
    front, objectives = searched_front(run, name)
    costs = [o.removeprefix("-") for o in objectives if o.removeprefix("-") in ("macs", "params", "latency_ms")]
    cost, shown = costs[0] if costs else "macs", metric.removeprefix("-")
    distinct = list({trial.key: trial for trial in trials if cost in trial.metrics}.values())
    if not distinct:
        return
    arms = {row["key"]: row["name"] or row["arm"] for race in _races(run) for row in race.get("networks", ())}
    dots = _of_trials(distinct, "all candidates", 4, cost, shown)
    along = sorted(front, key=lambda trial: trial.metrics[cost])
    line = {**_of_trials(along, "Pareto front", 0, cost, shown), "mode": "lines+markers"}
    traces = [dots, line]
    finalists = [trial for trial in distinct if arms.get(trial.key) == "search"]
    if finalists:
        traces.append(_of_trials(finalists, "finalists", 5, cost, shown, symbol="star", size=12))
    rivals = [trial for trial in distinct if trial.key in arms and arms[trial.key] != "search"]
    if rivals:
        traces.append(_of_trials(rivals, "simple and random rivals", 2, cost, shown, symbol="diamond-open", size=12))
    unit = "latency, ms" if cost == "latency_ms" else {"macs": "MACs", "params": "parameters"}[cost]
    section.plot(plot, traces, x=unit, y=f"shared-weight {shown}")
    rows = [
        (f"front:{place}", trial.key, trial.metrics[shown], cost_in_units(cost, trial.metrics[cost]))
        for place, trial in enumerate(front, start=1)
    ]
    section.table(f"Pareto front of {name}", ("--arch", "network", shown, unit), rows[:40])


def _of_trials(
    trials: Sequence[Trial], name: str, colour: int, cost: str, metric: str, **marker: Any
) -> dict[str, Any]:
    x, y = ([trial.metrics[what] for trial in trials] for what in (cost, metric))
    return markers(x, y, name, colour, [hover(trial.arch) for trial in trials], **marker)


# -- the winner -------------------------------------------------------------------------------------------------------


def winner_of(run: Run) -> tuple[Arch, str]:
    """The network that the page is about, and why it is that one.

    Raises:
        InputError: there is neither a race nor a search with a result.
    """
    result = run.folder / FIT_RESULT
    races = [read_json(result)] if result.exists() else _races(run)
    if races:
        arch = run.space.normal_form(run.space.canonical(races[0]["winner"]["arch"]))
        return arch, "the best by its shared weights" if races[0].get("init") == "inherit" else "the winner of the race"
    for file in sorted(run.folder.glob("search/*/best.json")):
        return named_arch(run, None, file.parent.name), f"the best of the search {file.parent.name}"
    raise InputError("there is no race and no finished search yet")


def _costs(run: Run, arch: Arch) -> str:
    """MACs and parameters of a network in words."""
    costs = run.cost(arch)
    return f"{in_units(costs['macs'])} MACs, {in_units(costs['params'])} parameters"


def _result(run: Run, section: Section) -> None:
    """The winner in a few lines, or what there is so far."""
    arch, why = winner_of(run)
    facts = [("network", f"{arch.key}, {why}"), ("costs", _costs(run, arch))]
    result = run.folder / FIT_RESULT
    documents = [read_json(result)] if result.exists() else _races(run)
    for document in documents[:1]:
        test = f"test_{run.kind.metric}"
        facts.append((test.replace("_", " "), ", ".join(f"{value:.4f}" for value in document[test])))
        section.lines.append(f"{document['verdict']}.")
        if "export" in document:
            facts.append(("export", document["export"]))
    section.table("", ("what", "value"), facts)


def _winner(run: Run, section: Section) -> None:
    arch, why = winner_of(run)
    section.lines.append(f"{arch.key}, {why}: {_costs(run, arch)}.")
    name, settings = recipe_of(run.folder)
    drawing = decided(name, arch, settings).svg()
    section.picture = "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()
    stages(run, arch, section)


# -- race and trust ---------------------------------------------------------------------------------------------------


def _race(run: Run, section: Section) -> None:
    races = _races(run)
    if not races:
        section.lines.append(
            "No race was run: the command select lets the best of searches race against simple networks."
        )
    for number, race in enumerate(races):
        spent = f" ({race['trainings']:g} trainings, from {race['init']}.)" if race["trainings"] else "."
        section.lines.append(f"{race['verdict']}{spent}")
        networks = [row for row in race["networks"] if row["scores"]]
        arms = list(dict.fromkeys(row["arm"] for row in networks))
        traces = []
        for colour, arm in enumerate(arms):
            rows = [row for row in networks if row["arm"] == arm]
            points = [(row["macs"], value, row) for row in rows for value in row["scores"]]
            text = [f"{plain(row['name'] or row['arm'])}<br>{hover(Arch(row['arch']))}" for *_, row in points]
            traces.append(markers([p[0] for p in points], [p[1] for p in points], arm, colour, text, size=10))
        section.plot(f"race-{number}", traces, x="MACs", y=race["metric"].replace("_", " "))
        rows = [
            (
                row["name"] or row["arm"],
                row["key"],
                in_units(row["macs"]),
                ", ".join(f"{value:.4f}" for value in row["scores"])
                or ("failed" if row["failed"] else ", ".join(f"{v:.4f} at {s}" for s, v in row["curve"].items())),
            )
            for row in race["networks"]
        ]
        section.table("networks, the winner first", ("from", "network", "MACs", "score per seed"), rows)


def _trust(run: Run, section: Section) -> None:
    reports = [(file, read_json(file)) for file in sorted(run.folder.glob("fidelity/*.json"))]
    reports = [(file, document) for file, document in reports if document.get("rankers")]
    if not reports:
        section.lines.append(
            "How well the shared weights rank was not measured: the command fidelity compares them with trainings."
        )
    for number, (file, document) in enumerate(reports):
        section.lines.append(f"{file.stem}: {document.get('verdict', '')}")
        rankers = [row for row in document["rankers"] if row["tau"]["value"] is not None]
        if not rankers:
            continue
        values = [row["tau"] for row in rankers]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [(v["high"] if v["high"] is not None else v["value"]) - v["value"] for v in values],
            "arrayminus": [v["value"] - (v["low"] if v["low"] is not None else v["value"]) for v in values],
        }
        names = [plain(row["name"]) for row in rankers]
        trace_ = {"type": "scatter", "mode": "markers", "x": names, "y": [v["value"] for v in values], "error_y": error}
        section.plot(f"trust-{number}", [trace_], x="ranker", y="Kendall's τ, 95 %", xaxis=category_axis("ranker"))
        bands = [
            (row["name"], f"{band['low']:.0%} to {band['high']:.0%}", band["n"], _interval(band["tau"]))
            for row in rankers
            for band in row.get("bands") or ()
        ]
        section.table("τ in bands of MACs", ("ranker", "share of the largest", "n", "τ"), bands)


def _interval(tau: Mapping[str, Any]) -> str:
    if tau["value"] is None:
        return "undefined"
    low, high = ("?" if tau[side] is None else f"{tau[side]:.2f}" for side in ("low", "high"))
    return f"{tau['value']:.2f} ({low} to {high})"


# -- exports and predictions ------------------------------------------------------------------------------------------


def _exports(run: Run, section: Section) -> None:
    folders = sorted(file.parent for file in run.folder.glob("export/*/parity.json"))
    if not folders:
        section.lines.append("Nothing is exported yet.")
    rows = []
    for folder in folders:
        parity = read_json(folder / "parity.json")
        weights = folder / "model.safetensors"
        size = f"{weights.stat().st_size / 2**20:.2f} MiB" if weights.exists() else ""
        worst = max(parity.get("differences", {"": math.nan}).values())
        rows.append(
            (folder.name, ", ".join(parity.get("differences", {})), f"{worst:.1e}", parity.get("parameters"), size)
        )
    if rows:
        section.table("", ("export", "files", "largest difference", "parameters", "weights"), rows)
    _fronts(run, section)
    trained = _trained(run)
    if trained is None:
        return
    arch, network = trained
    section.lines.append(
        f"Latency of {arch.key}: {_latency(network, example_of(run)):.2f} ms for one image, on the CPU{busy()}"
    )
    if run.kind.metric != "accuracy":
        from supernet_tools.pipeline.report_objects import detection_results

        detection_results(run, network, arch.key, section)
        return
    figures = class_figures(network, run.data.test, len(run.summary.classes))
    section.lines.append(
        f"{arch.key} on {len(figures.labels):,} test images: accuracy {figures.accuracy:.4f}, expected calibration "
        f"error {figures.calibration_error:.4f}, {figures.images_per_second:,.0f} images/s."
    )
    _confusion(run, section, figures)
    _examples(run, section, figures)


def _fronts(run: Run, section: Section) -> None:
    """Adds the networks of exported fronts: test score over MACs, and a table."""
    for number, file in enumerate(sorted(run.folder.glob("export/front-*/front.json"))):
        document = read_json(file)
        rows, test = document["points"], f"test_{run.kind.metric}"
        text = [hover(Arch(row["arch"])) for row in rows]
        shown = markers([row["macs"] for row in rows], [row[test] for row in rows], "exported front", 0, text, size=10)
        section.plot(
            f"front-{number}",
            [{**shown, "mode": "lines+markers"}],
            x="MACs",
            y=f"{test.replace('_', ' ')}, shared weights",
        )
        section.table(
            f"exported front of {document['search']}, with the shared weights",
            ("network", "MACs", "parameters", test.replace("_", " "), "ms", "largest difference"),
            [
                (
                    row["key"],
                    row["macs"],
                    row["params"],
                    row[test],
                    row["artefact_ms"]["torch"],
                    f"{max(row['parity'].values(), default=math.nan):.1e}",
                )
                for row in rows
            ],
            bars={
                "MACs": in_units,
                "parameters": in_units,
                test.replace("_", " "): "{:.4f}".format,
                "ms": "{:.2f}".format,
            },
        )


def _trained(run: Run) -> tuple[Arch, torch.nn.Module] | None:
    """The network whose predictions are shown: the winner, or any network that was trained."""
    result = run.folder / FIT_RESULT
    if result.exists() and read_json(result).get("init") == "inherit":
        arch, _ = winner_of(run)
        return arch, trained_network(run, arch, 0, inherit=True)
    results = [file for file in sorted(run.folder.glob("retrain/*/result.json")) if (file.parent / NETWORK).exists()]
    documents = [read_result(file, run.kind.truth) for file in results]
    try:
        key = winner_of(run)[0].key
    except InputError:
        key = ""
    documents.sort(key=lambda document: (document["key"] != key, document["seed"]))
    if not documents:
        return None
    first = documents[0]
    arch = run.space.normal_form(run.space.canonical(first["arch"]))
    return arch, trained_network(run, arch, int(first["seed"]), shared=first.get("init") == "shared")


def _latency(network: torch.nn.Module, example: Tensor, repeats: int = 15) -> float:
    """Median milliseconds of a forward pass."""
    seconds = []
    with torch.no_grad():
        for _ in range(repeats):
            began = time.perf_counter()
            network(example)
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[3:])


def _confusion(run: Run, section: Section, figures: ClassFigures) -> None:
    classes = run.summary.classes
    rows = [
        (name, int(figures.confusion[i].sum()), *(float(v[i]) for v in (figures.precision, figures.recall, figures.f1)))
        for i, name in enumerate(classes)
    ]
    section.table("test images by class", ("class", "images", "precision", "recall", "F1"), rows[:SHOWN_CLASSES])
    if len(classes) > SHOWN_CLASSES:
        section.lines.append(f"The confusion matrix of {len(classes)} classes is left out.")
        return
    names = [plain(name) for name in classes]
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": figures.confusion.tolist(),
        "colorscale": [[0, "#ffffff"], [1, COLOURS[0]]],
        "texttemplate": "%{z}" if len(classes) <= 15 else "",
        "hovertemplate": "true %{y}, predicted %{x}: %{z}<extra></extra>",
    }
    axes = {"xaxis": category_axis("predicted"), "yaxis": {**category_axis("true"), "autorange": "reversed"}}
    section.plot("confusion", [heat], x="predicted", y="true", **axes)


def _examples(run: Run, section: Section, figures: ClassFigures) -> None:
    """Wrong predictions, the most certain first, and right ones."""
    confidence, predicted = figures.probabilities.max(dim=1)
    right = predicted == figures.labels
    order = confidence.argsort(descending=True, stable=True).tolist()
    wrong = [i for i in order if not right[i]][:EXAMPLES]
    for kind, chosen in (("wrong", wrong), ("right", [i for i in range(len(order)) if right[i]][:EXAMPLES])):
        for i in chosen:
            name, truth = (run.summary.classes[int(label)] for label in (predicted[i], figures.labels[i]))
            text = f"{name} {confidence[i]:.0%}" if kind == "right" else f"{name} {confidence[i]:.0%}, in truth {truth}"
            section.images.append({"source": jpeg(run.data.test.pixels[i]), "caption": text, "kind": kind})


# -- commands ---------------------------------------------------------------------------------------------------------


def _commands(run: Run, section: Section) -> None:
    result = run.folder / FIT_RESULT
    if result.exists():
        section.code += [str(line) for line in read_json(result).get("commands", {}).values()]
    if (run.folder / FIT).exists():
        rows = [
            (row["name"], _text(row["value"]), row["reason"], row["flag"])
            for row in read_json(run.folder / FIT)["settings"]
        ]
        section.table("chosen by fit", ("what", "value", "because", "change with"), rows)
    document = read_run(run.folder)
    section.lines.append(
        f"Seeds: {run.config.train.seed} of the supernet, {run.config.retrain.seed} of single networks, "
        f"{run.config.data.seed} of the splits. Commit {document.get('commit') or 'unknown'}."
    )
    settings = flatten(dataclasses.asdict(run.config))
    section.table(f"all settings of {RUN}", ("setting", "value"), [(name, _text(v)) for name, v in settings.items()])


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value, ensure_ascii=False)


SECTIONS: tuple[tuple[str, Callable[[Run, Section], None]], ...] = (
    ("Result", _result),
    ("Data", _data),
    ("Training of the supernet", _training),
    ("Search", _search),
    ("The network", _winner),
    ("Race", _race),
    ("Can the ranking be trusted?", _trust),
    ("Exports and predictions", _exports),
    ("Commands and settings", _commands),
)
