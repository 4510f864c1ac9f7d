"""Opens run folders of either kind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.config import from_dict
from supernet.errors import InputError
from supernet_tools.pipeline.config import DetectorRun, SupernetRun
from supernet_tools.pipeline.folder import RUN, read_run
from supernet_tools.pipeline.located import NOT_MOVED, MovedData, with_located_data
from supernet_tools.pipeline.trust import from_file

if TYPE_CHECKING:
    from supernet_tools.pipeline.config import BatchNorm, Recipe
    from supernet_tools.pipeline.kinds import Kind
    from supernet_tools.pipeline.run import Run

CONFIGS: dict[str, "type[SupernetRun | DetectorRun]"] = {"supernet": SupernetRun, "detector": DetectorRun}
"""Kind of a run to the class of its recipe."""


def kind_of(config: "Recipe") -> "Kind[Any]":
    """The data, networks and scores of a recipe."""
    if isinstance(config, DetectorRun):
        from supernet_tools.pipeline.detector import DetectorKind  # torchvision's detectors take seconds to import

        return DetectorKind(config)
    from supernet_tools.pipeline.classifier import ClassifierKind

    return ClassifierKind(config)


def config_of(folder: Path, moved: MovedData = NOT_MOVED) -> "Recipe":
    """The recipe of a run, which has imported nothing; its images are looked for where they may have been moved to.

    Args:
        folder: the run's folder.
        moved: where the images are now, if the user says so.

    Raises:
        InputError: the folder does not hold a supernet's run, or the run names code that is not trusted.
    """
    document = read_run(folder)
    if document["kind"] not in CONFIGS:
        raise InputError(f"{folder} holds a {document['kind']} run; give the folder of a trained supernet")
    recipe = from_dict(CONFIGS[document["kind"]], document["config"], owner=str(folder / RUN))
    return with_located_data(from_file(recipe, folder / RUN), document, folder, moved)


def open_run(
    folder: Path, *, trained: bool = True, bn: "BatchNorm | None" = None, moved: MovedData = NOT_MOVED
) -> "Run":
    """Opens a run; nothing of it is loaded yet.

    Args:
        folder: the run's folder.
        trained: whether weights to share are needed.
        bn: the batch-norm policy of shared weights; that of the recipe by default.
        moved: where the images are now, if the user says so.

    Raises:
        InputError: no run is there, another release wrote it, or it has no weights to share although they are needed.
    """
    from supernet_tools.pipeline.run import Run, read_summary

    run = Run(folder, kind_of(config_of(folder, moved)), read_summary(folder), bn=bn)
    if trained:
        run.check_trained()
    return run
