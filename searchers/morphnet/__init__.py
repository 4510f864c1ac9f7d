"""MorphNet (Gordon et al., 2018): regularised shrinking of widths and uniform widening into a budget.

`resources` computes costs and the regulariser, `search` alternates both steps. The only searcher that sees a model: it
imports torch, the searchers' ground modules, `supernet.space` and the width spaces of `supernet.spaces`.
"""

from searchers.morphnet.search import MorphNet

__all__ = ["MorphNet"]
