"""Progressive search of PNASNet (Liu et al., 2018): cells grow block by block, guided by a surrogate.

`ladder` finds the levels of a space, `surrogate` predicts, `search` proposes. It imports torch, the searchers' ground
modules and `supernet.space`.
"""

from searchers.pnas.search import PNAS

__all__ = ["PNAS"]
