"""Where the backbone of a detector takes its weights from: a run of a classifier, one of its retrainings, or a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from supernet.config import from_dict
from supernet.errors import InputError
from supernet.space import Arch
from supernet.spaces import GENOTYPES, create_network
from supernet_tools.pipeline.classifier import ClassifierKind
from supernet_tools.pipeline.config import DetectorRun, SupernetRun
from supernet_tools.pipeline.folder import RUN, read_run
from supernet_tools.pipeline.located import with_located_data
from supernet_tools.pipeline.retrain import retrain_folder, retrain_stage
from supernet_tools.pipeline.run import NETWORK, WEIGHTS, Run, read_summary
from supernet_tools.pipeline.trust import from_file


def check_pretrained(config: DetectorRun, backbone_settings: Mapping[str, Any]) -> None:
    """Checks before anything is built that a folder of weights fits a recipe; a file is compared when it is loaded.

    Args:
        config: the recipe.
        backbone_settings: arguments of its backbone's builder.

    Raises:
        InputError: there is no such folder, its training has not finished, or it is over another space.
    """
    folder = Path(config.pretrained)
    if (folder / NETWORK).exists() or folder.is_file():
        return
    if not folder.is_dir() or not (folder / WEIGHTS).exists():
        raise InputError(
            f"pretrained={config.pretrained!r} holds no {WEIGHTS}; name the folder of a finished "
            "tools/train_supernet.py over the backbone's space, or for a fixed backbone a file of weights"
        )
    kind = _classifier(folder)
    space = GENOTYPES[config.backbone].space if config.backbone in GENOTYPES else config.backbone
    theirs, own = kind.space_settings(), dict(backbone_settings)
    if kind.config.space != space or own != theirs:
        raise InputError(
            f"pretrained={config.pretrained!r} was trained over {kind.config.space!r} with {theirs or 'no settings'}, "
            f"and the backbone is of {space!r} with {own or 'no settings'}; both must be the same"
        )


def _classifier(folder: Path) -> ClassifierKind:
    """The recipe of a pre-training. Raises `InputError` if it is not a classifier's run, or names untrusted code."""
    document = read_run(folder)
    if document["kind"] != ClassifierKind.name:
        raise InputError(f"pretrained={str(folder)!r} does not hold a classifier's run; name that of the pre-training")
    recipe = from_dict(SupernetRun, document["config"], owner=str(folder / RUN))
    return ClassifierKind(with_located_data(from_file(recipe, folder / RUN), document, folder))


def classified(folder: Path, arch: Arch, seed: int) -> Path:
    """Weights of an architecture trained on classification by the recipe of its run; trains it if needed."""
    run = Run(folder, _classifier(folder), read_summary(folder))
    form = run.space.normal_form(run.space.canonical(arch))
    weights = retrain_folder(run, form, seed) / NETWORK
    if not weights.exists():
        retrain_stage(run, form, dataclasses.replace(run.config.retrain, seed=seed))
    return weights


def inherited(folder: Path, arch: Arch) -> Mapping[str, torch.Tensor]:
    """The state dict of an architecture in a pre-trained supernet, with recalibrated batch norm."""
    kind, summary = _classifier(folder), read_summary(folder)
    shared = Run(folder, kind, summary).shared_weights().subnet(arch)
    network = create_network(kind.space, arch=arch, **kind.builder_arguments(summary))
    extra = network.load_state_dict(shared.state_dict(), strict=False).unexpected_keys
    assert not extra, f"the standalone network lacks {extra}"
    return network.state_dict()
