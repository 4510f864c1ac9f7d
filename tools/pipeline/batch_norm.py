"""The batch-norm policies of runs by name."""

from supernet.errors import InputError
from supernet.scoring.batch_norm import BatchNormPolicy, Inherit, Matched, Recalibrate
from supernet_tools.pipeline.config import BatchNorm


def policy(name: BatchNorm, batches: int, size: int = 64, *, settle: float = 0.0) -> BatchNormPolicy:
    """Returns a policy by name.

    Args:
        name: "plain" recalibrates, "matched" also follows the full network, "keep" uses the statistics in the weights.
        batches, size: calibration batches, and images of each.
        settle: see `Recalibrate.settle`.

    Raises:
        InputError: no such policy.
    """
    policies: dict[str, BatchNormPolicy] = {
        "plain": Recalibrate(batches, size, settle),
        "matched": Matched(batches, size, settle),
        "keep": Inherit(),
    }
    if name not in policies:
        raise InputError(f"there is no batch-norm policy {name!r}; take one of {', '.join(policies)}")
    return policies[name]
