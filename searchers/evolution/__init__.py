"""Evolution: aging (AmoebaNet), top-k (SPOS, DetNAS) and NSGA-II.

It imports the searchers' ground modules (`study`, `loop`, `proposals`, `pareto`) and `supernet.space`.
"""

from searchers.evolution.aging import AgingEvolution
from searchers.evolution.nsga2 import NSGA2
from searchers.evolution.topk import TopKEvolution

__all__ = ["NSGA2", "AgingEvolution", "TopKEvolution"]
