"""Scoring with shared weights as one import; the parts are in `supernet.scoring`."""

from supernet.scoring.batch_norm import BatchStatistics, Inherit, Matched, Recalibrate, recalibrate_bn
from supernet.scoring.metrics import BatchMetric, accuracy, classification
from supernet.scoring.shared_weights import SharedWeights

__all__ = [
    "BatchMetric",
    "BatchStatistics",
    "Inherit",
    "Matched",
    "Recalibrate",
    "SharedWeights",
    "accuracy",
    "classification",
    "recalibrate_bn",
]
