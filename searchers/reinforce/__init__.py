"""Search by a recurrent controller (NASNet, NAS-FPN, ENAS), trained by PPO or REINFORCE.

`controller` holds the network, `search` the searcher. It imports torch, the searchers' ground modules and
`supernet.space`.
"""

from searchers.reinforce.search import Reinforce

__all__ = ["Reinforce"]
