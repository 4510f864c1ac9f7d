"""What a kind of run, a classifier's or a detector's, must offer to the stages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from supernet.chain import Chain
    from supernet.config import DataSummary, Preprocess
    from supernet.cost import CostTable
    from supernet.scoring.cache import ScoreCache
    from supernet.scoring.shared_weights import SharedWeights
    from supernet.space import Arch
    from supernet.training.task import Task, TrainingData
    from supernet_tools.pipeline.config import BatchNorm


class RunData(Protocol):
    """The splits of a data set, as the stages see them."""

    train: Any
    calibration: Any
    validation: Any
    test: Any

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def digest(self) -> str:
        """Identifies the images and their labels."""

    def summary(self) -> "DataSummary":
        """What is known of the data without reading an image."""

    def to(self, device: "torch.device | str") -> "TrainingData":
        """The same splits on a device."""


Data = TypeVar("Data", bound=RunData)


Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]
"""Title, columns and rows."""


class Kind(Protocol[Data]):
    """A recipe's data, networks and scores."""

    @property
    def name(self) -> str:
        """What `run.json` calls this kind."""

    @property
    def metric(self) -> str:
        """What searches maximise."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Everything that scoring returns, costs aside."""

    @property
    def curves(self) -> tuple[str, ...]:
        """The metrics that are recorded on the search-validation split while a supernet trains."""

    @property
    def curve_batches(self) -> int:
        """Calibration batches for them."""

    @property
    def truth(self) -> str:
        """The entry of a retraining's result that rankings are compared with."""

    @property
    def probes(self) -> int:
        """Number of random networks that are scored after a training."""

    @property
    def config(self) -> Any:
        """The recipe."""

    @property
    def space(self) -> str:
        """The name of the space that exports and files of weights record."""

    @property
    def start(self) -> str:
        """What the weights of a retraining start from."""

    @property
    def task(self) -> "Task":
        """What trainings optimise."""

    @property
    def retrain_task(self) -> "Task":
        """What trainings of standalone networks optimise."""

    def resolved(self) -> Any:
        """The recipe with files replaced by what they hold, everything checked that can be without reading images."""

    def load(self, cache: Path | None) -> Data:
        """The images; decoded ones are kept in the folder `cache` and read from there the next time."""

    def skeleton(self, summary: "DataSummary") -> "Chain":
        """The supernet without weights, on the meta device: its space, its costs, the shapes of its tensors."""

    def supernet(self, summary: "DataSummary", generator: "torch.Generator | None" = None) -> "Chain":
        """The supernet with fresh weights."""

    @property
    def has_weights(self) -> bool:
        """Whether the supernet of a finished run has weights to share."""

    @property
    def batch_norm(self) -> "BatchNorm":
        """The batch-norm policy of the recipe."""

    def check_batch_norm(self, policy: "BatchNorm") -> None:
        """Raises `InputError` if networks of this run cannot be scored under a policy."""

    def begin(self, supernet: "Chain", data: Data) -> None:
        """Called once before the first step of a supernet's training, for instance to load pre-trained weights."""

    def taught(self, supernet: "Chain") -> "Task":
        """What the training of a supernet optimises, given the weights that it begins with."""

    def end(self, supernet: "Chain", data: Data) -> None:
        """Called once after the last step of a supernet's training."""

    def network(self, summary: "DataSummary", arch: "Arch", generator: "torch.Generator") -> "nn.Module":
        """The standalone network of an architecture with fresh weights."""

    def prepare(self, network: "nn.Module", arch: "Arch", seed: int) -> None:
        """Called once before the first step of a retraining from scratch."""

    def costs(self, supernet: "Chain") -> "CostTable":
        """What architectures cost."""

    def tables(self, supernet: "Chain", data: Data) -> list[Table]:
        """What is printed before a training, about the images and about how the networks fit them."""

    def shared_weights(
        self,
        supernet: "Chain",
        data: Data,
        *,
        cache: "ScoreCache | None",
        bn_batches: int,
        bn: "BatchNorm" = "plain",
        cost: "CostTable | None" = None,
        hold: int = 2**29,
    ) -> "SharedWeights":
        """The evaluator on the search-validation split."""

    def figures(self, network: "nn.Module", data: Data, device: str) -> dict[str, float]:
        """What a retraining reports: metrics named by their split."""

    def validation(self, data: Data, device: str) -> "Callable[[nn.Module], Mapping[str, float]] | None":
        """What scores a retraining on the validation split after every epoch; None where nothing does."""

    def scores(self, network: "nn.Module", images: Any) -> Mapping[str, float]:
        """All metrics of a network in eval mode."""

    def preprocess(self, summary: "DataSummary") -> "Preprocess":
        """What an export records of its input and its outputs."""
