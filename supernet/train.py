"""Training as one import; the parts are in `supernet.training`."""

from supernet.training.loop import check_training, plan_training, train_standalone, train_supernet

__all__ = ["check_training", "plan_training", "train_standalone", "train_supernet"]
