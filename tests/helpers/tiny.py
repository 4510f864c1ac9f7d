"""A run so small that training it takes a second, and the flags that make other runs so small."""

TINY_SPACE = ("--space-settings", "depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
"""ShuffleNet with three choices of four options; at 8 pixels and one channel 17,000 to 25,980 MACs."""

TINY_DATA = ("--data.size", 8, "--data.calibration", 64)
"""The digits at their own size."""

TINY_TRAINING = ("--train.batch", 256, "--retrain.epochs", 1, "--retrain.batch", 256)
"""Epochs of four steps."""

TINY = (*TINY_DATA, "--train.epochs", 1, *TINY_TRAINING)
