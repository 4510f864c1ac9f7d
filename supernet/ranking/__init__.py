"""Whether a ranking can be trusted: agreement with true accuracies, its intervals, and rankings corrected by labels.

`statistics` holds correlations and tests, `report` the comparison of rankers, `truth` true accuracies from tables,
`paired` tests on the same images. It imports numpy, scipy and `supernet.space`, and no torch.
"""
