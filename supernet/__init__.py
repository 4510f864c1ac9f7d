"""Supernets for neural architecture search: spaces as data, architectures as values, weights shared by all subnets.

Its packages stand on floors (CONTRIBUTING.md has the map), and each says what it may import; none imports `searchers`,
`detection` or `tools`. The public names below are loaded on first use, so importing this package loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supernet.chain import Bound, Chain, Layout, Searchable
    from supernet.space import Arch, Choice, SearchSpace, compose
    from supernet.spaces import GENOTYPES, SPACES, create_network, create_supernet, list_networks, list_spaces

__version__ = "0.1.0"

_HOME = {
    "Arch": "supernet.space",
    "Choice": "supernet.space",
    "SearchSpace": "supernet.space",
    "compose": "supernet.space",
    "Searchable": "supernet.chain",
    "Chain": "supernet.chain",
    "Layout": "supernet.chain",
    "Bound": "supernet.chain",
    "SPACES": "supernet.spaces",
    "GENOTYPES": "supernet.spaces",
    "create_supernet": "supernet.spaces",
    "create_network": "supernet.spaces",
    "list_networks": "supernet.spaces",
    "list_spaces": "supernet.spaces",
}

__all__ = [
    "GENOTYPES",
    "SPACES",
    "Arch",
    "Bound",
    "Chain",
    "Choice",
    "Layout",
    "SearchSpace",
    "Searchable",
    "compose",
    "create_network",
    "create_supernet",
    "list_networks",
    "list_spaces",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'supernet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)  # PEP 562: torch loads only when a network is asked for
