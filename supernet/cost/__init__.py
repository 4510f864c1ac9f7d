"""What architectures cost: MACs, parameters, activations and measured latency.

`count` traces a module, `table` adds up steps, `window` counts and samples the architectures within limits, `feasible`
is what searchers ask, `latency` measures. It imports `supernet.chain` and `supernet.files`.
"""

from supernet.cost.count import count, meta_copy
from supernet.cost.feasible import Feasible
from supernet.cost.latency import LatencyTable
from supernet.cost.table import CostTable
from supernet.cost.window import CostWindow

__all__ = ["CostTable", "CostWindow", "Feasible", "LatencyTable", "count", "meta_copy"]
