"""NAS-FPN (Ghiasi et al., 2019): pyramids of merging cells.

`space` holds the decisions and wirings, `plain` the ordinary modules, `supernet` the searchable pyramid, `published`
the networks of the paper, `drawing` pictures. It imports the rest of `detection` below it, `supernet.chain` and
`supernet.space`.
"""

from detection.nasfpn.published import create_nasfpn
from detection.nasfpn.space import pyramid_space, wiring_arch
from detection.nasfpn.supernet import read_out

__all__ = ["create_nasfpn", "pyramid_space", "read_out", "wiring_arch"]
