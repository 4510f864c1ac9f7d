"""Whether a ranking can be trusted: its agreement with true accuracies, with intervals, and how labels correct it.

`statistics` holds correlations, intervals and tests, `report` compares rankers, `calibrate` corrects shared scores,
`truth` reads true accuracies from tables, and `paired` compares networks on the same images. `race` lets stand-alone
trainings decide between the networks of a search and those that `rivals` names; `trainings` records them. The package
imports numpy, scipy, `supernet.space` and ground modules of `supernet`, and no torch.
"""
