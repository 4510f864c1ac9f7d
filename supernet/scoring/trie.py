"""Architectures as a trie over the steps of a chain."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from supernet.chain import Chain, Layouts
from supernet.space import Arch


def fixed_steps(supernet: Chain) -> int:
    """How many leading steps no decision reaches; the last step is not counted."""
    deciding = [choice.name for choice in supernet.space.choices if len(choice.options) > 1]
    count = 0
    for name in supernet.step_names[:-1]:
        if any(own.startswith(f"{name}.") for own in deciding):
            break
        count += 1
    return count


# -- the trie ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """One step after one particular prefix.

    Attributes:
        position: of the step in the chain; -1 for the root, which is the input.
        sub: the step's own decisions.
        layout: of what the step is given.
        children: by the next step's decisions.
        leaf: position of the architecture that ends here, None inside.
        statistics: of every batch norm in the step, its buffers; empty until calibrated.
    """

    position: int
    sub: Arch
    layout: Layouts
    children: dict[Arch, "Node"] = field(default_factory=dict)
    leaf: int | None = None
    statistics: list[dict[str, Tensor]] = field(default_factory=list)
    _normed: bool | None = None


class Trie:
    """The architectures merged from the input on.

    Args:
        archs: canonical and distinct.

    Attributes:
        paths: per architecture its nodes in the order of the steps.
        size: the number of nodes, which is how many steps are run.
        trunk: the first nodes of every path, of the steps that no decision reaches.
    """

    def __init__(self, supernet: Chain, archs: Sequence[Arch]) -> None:
        self.root = Node(-1, Arch(), supernet.input_layout)
        self.paths: list[list[Node]] = []
        self.size = 0
        for number, arch in enumerate(archs):
            node, path = self.root, []
            for position, (_, sub, layout) in enumerate(supernet.walk(arch)):
                if sub not in node.children:
                    node.children[sub] = Node(position, sub, layout)
                    self.size += 1
                node = node.children[sub]
                path.append(node)
            assert node.leaf is None, f"{arch} is in the batch twice"
            node.leaf = number
            self.paths.append(path)
        self.trunk = self.paths[0][: fixed_steps(supernet)]
