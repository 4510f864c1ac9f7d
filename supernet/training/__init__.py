"""Training of supernets and of single networks: one loop, one step.

`sampling` says which architectures a step trains, `task` what they learn, `checkpoint` and `distributed` how a run
survives a kill and spreads over processes. It imports `supernet.data`, `supernet.cost`, `supernet.chain` and timm.
"""
