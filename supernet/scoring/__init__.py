"""Scores of architectures with shared weights.

`batch_norm` recalibrates statistics; `trie`, `steps`, `memory` and `prefix` run shared prefixes once within a memory
budget; `metrics` turns outputs into scores; `cache` keeps every score; `shared_weights` joins them, and `parallel`
shares them out among processes. It imports torch, `supernet.chain`, `supernet.data`, `supernet.ranking.paired`,
`supernet.space`, `supernet.training.distributed` and ground modules of `supernet`.
"""
