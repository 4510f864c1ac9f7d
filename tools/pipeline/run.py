"""A run that opens lazily: reading its settings costs nothing, images and weights come when they are asked for."""

import contextlib
import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from supernet.chain import Chain
from supernet.checked import shown
from supernet.config import DataSummary, from_dict
from supernet.cost import CostTable, Feasible, LatencyTable
from supernet.cost.latency import warn_under_load
from supernet.errors import InputError
from supernet.paths import inside
from supernet.scoring.cache import ScoreCache
from supernet.scoring.racing import Race
from supernet.scoring.shared_weights import SharedWeights
from supernet.seeding import derive_seed
from supernet.space import SearchSpace
from supernet.training.checkpoint import load_weights
from supernet.training.distributed import check_device, current
from supernet_tools.pipeline.changed_data import FLAG, earlier_digests
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.folder import IMAGES, RUN, read_run

if TYPE_CHECKING:
    from supernet_tools.pipeline.kinds import Kind, RunData

WEIGHTS, NETWORK, SCORES = "supernet.safetensors", "network.safetensors", "scores.db"


class Run:
    """The folder of a run with everything that belongs to it.

    Only what is asked for is opened: `space` and `cost` build the supernet without memory, `supernet` loads its
    weights, `data` reads the images. Each happens once.

    Args:
        folder: the run's folder.
        kind: what a classifier's and a detector's run do differently.
        summary: facts about the data, from `run.json`.
        data: the images, where they are already in memory.
        cost: what architectures cost; `kind.costs` by default.
        space: the search space, where it has been built already.
        bn: the batch-norm policy of shared weights; that of the recipe by default.

    Attributes:
        bn: the batch-norm policy of shared weights.

    Raises:
        InputError: a policy that networks of this run cannot be scored under.
    """

    def __init__(
        self,
        folder: Path,
        kind: "Kind[Any]",
        summary: DataSummary,
        *,
        data: "RunData | None" = None,
        cost: CostTable | None = None,
        space: SearchSpace | None = None,
        bn: BatchNorm | None = None,
    ) -> None:
        self.folder, self.kind, self.summary = folder, kind, summary
        if bn is not None:
            kind.check_batch_norm(bn)
        self.bn: BatchNorm = bn or kind.batch_norm
        self._given_data, self._given_cost, self._given_space = data, cost, space

    @property
    def config(self) -> Any:
        """The recipe."""
        return self.kind.config

    @cached_property
    def _skeleton(self) -> Chain:
        skeleton = self.kind.skeleton(self.summary)
        check_space(self.folder, skeleton.space)
        return skeleton

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self._skeleton.space if self._given_space is None else self._given_space

    @cached_property
    def cost(self) -> CostTable:
        """What architectures cost."""
        return self.kind.costs(self._skeleton) if self._given_cost is None else self._given_cost

    @cached_property
    def data(self) -> Any:
        """The images.

        Raises:
            InputError: they are not those that the run was made with, or cannot be read.
        """
        images = inside(self.folder, IMAGES)
        kept = set(images.glob("*"))
        with warnings.catch_warnings(record=True) as caught:  # about other images they would be beside the point
            warnings.simplefilter("always")
            data = self.kind.load(images) if self._given_data is None else self._given_data
        if data.digest != self.summary.digest:
            for file in set(images.glob("*")) - kept:  # other images, decoded for nothing
                file.unlink()
            if not kept:
                with contextlib.suppress(OSError):
                    images.rmdir()
            raise InputError(
                f"{self.folder} was made with another set of images (digest {self.summary.digest}, now {data.digest}); "
                f"restore it, repeat the training command with {FLAG}, or train again"
            )
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return data

    @cached_property
    def earlier_digests(self) -> tuple[str, ...]:
        """The digests of the images that the run was made with before accepted changes.

        A run of networks beside another run, which has no `run.json` of its own, has none.
        """
        return earlier_digests(read_run(self.folder)) if (self.folder / RUN).exists() else ()

    @cached_property
    def supernet(self) -> Chain:
        """The supernet in eval mode with its trained weights, on the device of the recipe.

        Raises:
            InputError: it was never trained, its training has not finished, or the files belong to another run.
        """
        if not self.kind.has_weights:
            raise InputError(f"the supernet of {self.folder} has train.epochs=0 and so no weights to share; train it")
        supernet = self.kind.supernet(self.summary)
        metadata = load_weights(self.folder / WEIGHTS, supernet)
        for name, what, expected, others in (
            ("space_digest", "space", supernet.space.digest(), ()),
            ("data_digest", "set of images", self.summary.digest, self.earlier_digests),
        ):
            if metadata.get(name) not in (expected, *others):
                raise InputError(
                    f"{self.folder / WEIGHTS} was made with another {what} (digest {metadata.get(name)}, now "
                    f"{expected}); restore it or train again"
                )
        return supernet.eval().to(self.config.train.device)

    def check_trained(self) -> None:
        """Checks that there are weights to share, without loading them. Raises `InputError` if there are none."""
        if not self.kind.has_weights:
            raise InputError(f"the supernet of {self.folder} has train.epochs=0 and so no weights to share; train it")
        if not (self.folder / WEIGHTS).exists():
            raise InputError(f"{self.folder / WEIGHTS} does not exist; has the training finished?")
        check_device(current().device(self.config.train.device))

    def shared_weights(
        self,
        *,
        bn_batches: int = 10,
        costs: bool = True,
        supernet: Chain | None = None,
        bf16: bool = False,
        race: Race | None = None,
        settle: float = 0.0,
    ) -> SharedWeights:
        """The evaluator of this run, which scores on the search-validation split and keeps each score in `scores.db`.

        In a folder that cannot be written to it keeps none.

        Args:
            bn_batches: calibration batches per candidate.
            costs: whether metrics include costs.
            supernet: other weights of the same supernet; by default those of the run.
            bf16: score in bfloat16; classifiers only.
            race: stop candidates that are unlikely to be among the best of a request; classifiers only.
            settle: see `Recalibrate.settle`; classifiers only.
        """
        options: dict[str, Any] = {}
        if bf16 or race is not None or settle:
            if self.kind.metric != "accuracy":
                raise InputError(
                    "detectors are always scored exactly; leave out bfloat16, the race and the early end of calibration"
                )
            options = {"bf16": bf16, "race": race, "settle": settle}
        return self.kind.shared_weights(
            self.supernet if supernet is None else supernet,
            self.data,
            cache=ScoreCache(self.folder / SCORES) if os.access(self.folder, os.W_OK) else None,
            bn_batches=bn_batches,
            bn=self.bn,
            cost=self.cost if costs else None,
            **options,
        )

    def with_latency(self, batch: int = 1) -> "Run":
        """The run with measured latency among its costs; measurements are kept in its folder.

        A new table is corrected by timing a few networks as a whole. A table that an earlier search has used
        is not changed.

        Args:
            batch: images per timed forward pass.
        """
        file = inside(self.folder, f"latency-{batch}.jsonl")
        table = LatencyTable(self.supernet, batch=batch, device=self.config.train.device, file=file)
        if table.is_new:
            warn_under_load()
            table.correct()
        other = Run(self.folder, self.kind, self.summary, data=self.data, cost=table, bn=self.bn)
        other.__dict__["supernet"] = self.supernet  # loaded once
        return other

    def limits(self, limits: Mapping[str, float | None]) -> Feasible:
        """Upper limits on this run's costs by name; None is no limit.

        Raises:
            InputError: a cost that this run does not have, or a limit that no architecture meets.
        """
        for name, value in limits.items():
            if value is not None and name not in self.cost.costs:
                raise InputError(
                    f"{self.space.name} has no cost {name!r} to limit; it has {', '.join(self.cost.costs)}"
                )
        return Feasible(self.cost, {name: value for name, value in limits.items() if value is not None})


def read_summary(folder: Path) -> DataSummary:
    """The facts about the data of a run, from `run.json`. Raises `InputError` if it has none."""
    document = read_run(folder)
    if not isinstance(document.get("data"), Mapping):
        raise InputError(f"{folder / 'run.json'} is damaged: it says nothing about the data; restore it")
    return from_dict(DataSummary, document["data"], owner=f"{folder / RUN}, data")


def check_space(folder: Path, space: SearchSpace) -> None:
    """Checks that a run was made with the space that its settings give now.

    Runs of earlier releases did not record their space, and networks beside a run have no `run.json`: they pass.

    Raises:
        InputError: `run.json` records another space, since it was edited or the space has changed.
    """
    document = read_run(folder) if (folder / RUN).exists() else {}
    if "space_digest" in document and document["space_digest"] != space.digest():
        raise InputError(
            f"{folder / RUN} was made with another space {space.name!r} (digest {shown(document['space_digest'])}, now "
            f"{space.digest()}); restore it or train again"
        )


def torch_generator(*parts: object) -> torch.Generator:
    """A generator for initial weights, seeded by what it is for."""
    return torch.Generator().manual_seed(derive_seed(*parts))
