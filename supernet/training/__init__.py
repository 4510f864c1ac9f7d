"""Training of supernets and of single networks: one loop, one step.

`loop` trains, `state` holds what a training reads and writes, `check` and `plan` come before it. `sampling` chooses the
architectures of a step, `task` says what they learn, `optim` and `sparse_step` update the weights, `monitor` watches
them, and `checkpoint` and `distributed` let a run survive a kill and spread over processes. `opening` lets options
open while a training runs, and `rates` compares learning rates. The package imports torch, timm, `supernet.blocks`,
`supernet.chain`, `supernet.config`, `supernet.cost`, `supernet.data`, `supernet.ranking`, `supernet.space` and ground
modules of `supernet`.
"""
