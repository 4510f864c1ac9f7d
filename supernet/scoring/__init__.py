"""Scores of architectures with shared weights.

`batch_norm` recalibrates statistics, `trie` and `prefix` run common prefixes once, `cache` keeps every score, and
`shared_weights` joins them. It imports `supernet.chain`, `supernet.data` and `supernet.training.distributed`.
"""
