"""Training as one import; the parts are in `supernet.training`."""

from supernet.training.check import check_training
from supernet.training.loop import train_standalone, train_supernet
from supernet.training.plan import plan_training
from supernet.training.rates import compare_rates

__all__ = ["check_training", "compare_rates", "plan_training", "train_standalone", "train_supernet"]
