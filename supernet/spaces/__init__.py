"""Published search spaces by name, and the functions that build networks from them.

Each module holds the tables of one paper and the builder of its supernet; `create` finds them by name. It imports
`supernet.blocks`, `supernet.chain`, `supernet.cost`, `supernet.space` and ground modules of `supernet`; torch, timm and
torchvision only when a network is built.
"""

from supernet.spaces.create import (
    GENOTYPES,
    NETWORKS,
    SPACES,
    build,
    builder,
    create_network,
    create_supernet,
    list_networks,
    list_spaces,
)

__all__ = [
    "GENOTYPES",
    "NETWORKS",
    "SPACES",
    "build",
    "builder",
    "create_network",
    "create_supernet",
    "list_networks",
    "list_spaces",
]
