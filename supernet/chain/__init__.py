"""The weight-sharing contract: what a searchable module offers, and the chain that folds such modules into a supernet.

`Searchable` takes the architecture as an argument of `forward`; `Layout` says what a step hands to the next; `Chain` is
the supernet. It imports torch, `supernet.space`, and the ground modules
`supernet.seeding`, `supernet.checked` and `supernet.errors`.
"""

from supernet.chain.chain import Chain, PartsMemo
from supernet.chain.initial import Init, initialize, realize
from supernet.chain.layout import Hidden, Layout, Layouts, announce, plain_layout
from supernet.chain.naming import has_numbered_steps
from supernet.chain.searchable import Bound, Part, Searchable, materialize, parameters_of, step_layout, weightless_among
from supernet.chain.start import initialize_alike, initialize_copying, largest, unit_scales

__all__ = [
    "Bound",
    "Chain",
    "Hidden",
    "Init",
    "Layout",
    "Layouts",
    "Part",
    "PartsMemo",
    "Searchable",
    "announce",
    "has_numbered_steps",
    "initialize",
    "initialize_alike",
    "initialize_copying",
    "largest",
    "materialize",
    "parameters_of",
    "plain_layout",
    "realize",
    "step_layout",
    "unit_scales",
    "weightless_among",
]
