"""Search spaces and architectures as plain data.

An `Arch` is one value per decision, a `Choice` is one decision, and a `SearchSpace` is a list of choices with a normal
form that picks one architecture per network. Everything here is immutable and hashable. It imports the standard
library and ground modules of `supernet` only, so that searchers and `--help` load no torch.
"""

from supernet.space.arch import Arch, ArchReader, Value
from supernet.space.choice import Choice
from supernet.space.space import SearchSpace, compose

__all__ = ["Arch", "ArchReader", "Choice", "SearchSpace", "Value", "compose"]
