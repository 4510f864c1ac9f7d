"""NAS-FPN (Ghiasi et al., 2019): feature pyramids made of merging cells.

`space` holds the search space and its wirings, `plain` the ordinary modules, `supernet` the searchable pyramid and
RetinaNet on it, `published` the networks of the paper, `drawing` pictures. It may import the modules of `detection`
except `build`, `supernet.chain`, `supernet.space` and `supernet.drawing`.
"""

from detection.nasfpn.published import create_nasfpn
from detection.nasfpn.space import pyramid_space, wiring_arch
from detection.nasfpn.supernet import read_out

__all__ = ["create_nasfpn", "pyramid_space", "read_out", "wiring_arch"]
