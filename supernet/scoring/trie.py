"""Architectures as a trie over the steps of a chain."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from supernet.chain import Chain, Layouts
from supernet.space import Arch


def fixed_steps(supernet: Chain) -> int:
    """Returns the number of leading steps without a decision; the last step of the chain is never counted."""
    undecided = [choice.name for choice in supernet.space.choices if len(choice.options) > 1]
    count = 0
    for name in supernet.step_names[:-1]:
        if any(choice.startswith(f"{name}.") for choice in undecided):
            break
        count += 1
    return count


@dataclass(eq=False)
class Node:
    """One step of the chain after one particular prefix.

    Attributes:
        position: index of the step in the chain; -1 for the root, which is the input.
        sub: the step's own decisions.
        layout: the layout of the step's input.
        children: the nodes of the next step, by that step's decisions.
        leaf: position of the architecture that ends here; None for inner nodes.
        statistics: the buffers of every batch norm in the step; empty until calibrated.
        needs_calibration: whether this step or one below has a batch norm; None until asked.
        settled: positions of the batch norms whose calibration has ended early.
    """

    position: int
    sub: Arch
    layout: Layouts
    children: dict[Arch, "Node"] = field(default_factory=dict)
    leaf: int | None = None
    statistics: list[dict[str, Tensor]] = field(default_factory=list)
    needs_calibration: bool | None = None
    settled: set[int] = field(default_factory=set)


class Trie:
    """Architectures merged from the input on.

    Args:
        supernet: the chain whose steps are walked.
        archs: canonical and distinct architectures.

    Attributes:
        paths: for each architecture its nodes in the order of the steps.
        size: the number of nodes, i.e. of steps that are run.
        trunk: the first nodes of every path, whose steps have no decision.
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

    def inherit(self, other: "Trie", numbers: Sequence[int]) -> None:
        """Takes over the statistics of another trie of the same supernet.

        Args:
            other: a calibrated trie.
            numbers: the positions of this trie's architectures in the other one.
        """
        for path, number in zip(self.paths, numbers, strict=True):
            for node, calibrated in zip(path, other.paths[number], strict=True):
                node.statistics = calibrated.statistics
