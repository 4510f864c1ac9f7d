"""What architectures cost: MACs, parameters, activations and measured latency.

`count` traces a module, `table` adds up the costs of a chain's steps, `window` counts and samples the architectures
between two bounds, `feasible` is the constraint that searchers take, and `latency` measures time. The package imports
torch, numpy, scipy, `supernet.chain`, `supernet.space` and ground modules of `supernet`.
"""

from supernet.cost.count import count, meta_copy
from supernet.cost.feasible import Feasible
from supernet.cost.latency import LatencyTable
from supernet.cost.table import CostTable
from supernet.cost.window import CostWindow

__all__ = ["CostTable", "CostWindow", "Feasible", "LatencyTable", "count", "meta_copy"]
