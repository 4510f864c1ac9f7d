"""Searchable detectors: parts of torchvision's, arranged as steps of a chain."""
