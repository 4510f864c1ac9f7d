"""Materialised steps of a chain, shared by all paths that they lie on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.chain import Chain, Layouts, materialize
from supernet.convolutions import use_matrix_products
from supernet.scoring.batch_norm import norms_of
from supernet.scoring.merging import Form
from supernet.scoring.trie import Node
from supernet.space import Arch
from supernet.training.distributed import revert_sync_bn

Phase = Literal["materialize", "trunk", "calibrate", "evaluate", "metric"]
"""A part of scoring: copying weights into steps, reading batches and running the steps that all architectures share,
re-estimating batch-norm statistics, running the validation batches, and computing the metric."""

Watch = Callable[[Phase], AbstractContextManager[object]]
"""Makes a context that is entered for each phase, for instance to time it. Phases nest: steps are copied
while a trie is calibrated or evaluated, for example."""


Adapt = Callable[[str, nn.Module], None]
"""Changes a step's own copy of the weights in place."""


@dataclass(eq=False)
class MaterializedStep:
    """A step with its own copy of the weights.

    Attributes:
        module: the step as an ordinary module, in eval mode.
        norms: its batch norms.
        writes_input: whether it changes its input in place, by kind of pass (`calibrate`); a kind is missing until it
            was seen.
        together: the kinds of pass, numbers of batches and their forms for which it was seen to return the same bits
            for the batches at once as for each alone.
        alone: the kinds of pass in which it has to take every batch by itself.
    """

    module: nn.Module
    norms: list[_BatchNorm]
    writes_input: dict[bool, bool] = field(default_factory=dict)
    together: set[tuple[bool, int, Form]] = field(default_factory=set)
    alone: set[bool] = field(default_factory=set)


class StepCache:
    """Materialises each step once for all paths it lies on; the least recently used copies are dropped first.

    A step occurs once on a path, so one copy serves all nodes; what differs between nodes is in `Node.statistics`.

    Args:
        supernet: the chain, which is only read.
        memory_format: the memory format of the copied weights.
        memory: bytes of copied weights to keep.
        watch: entered around every copy.
        adapt: called with the path of a step in a network and every new copy of it, which it may change.
        bf16: whether the copies, except for batch norms, are in bfloat16.
    """

    def __init__(
        self,
        supernet: Chain,
        *,
        memory_format: torch.memory_format,
        memory: int,
        watch: Watch,
        adapt: Adapt | None,
        bf16: bool = False,
    ) -> None:
        self._supernet, self._memory_format, self._memory, self._watch = supernet, memory_format, memory, watch
        self._adapt, self._bf16 = adapt, bf16
        self._steps: dict[tuple[int, Arch, Layouts], tuple[MaterializedStep, int]] = {}
        self._bytes = 0

    def of(self, node: Node) -> MaterializedStep:
        """Returns the step of a node."""
        key = (node.position, node.sub, node.layout)
        if key in self._steps:
            step, size = self._steps.pop(key)
        else:
            with self._watch("materialize"):
                step, size = self._materialize(node)
            self._bytes += size
        self._steps[key] = step, size  # moves it to the end
        while self._bytes > self._memory and len(self._steps) > 1:
            oldest = next(iter(self._steps))
            self._bytes -= self._steps.pop(oldest)[1]
        return step

    def clear(self) -> None:
        """Drops all copies."""
        self._steps.clear()
        self._bytes = 0

    def _materialize(self, node: Node) -> tuple[MaterializedStep, int]:
        """Returns a new copy and its bytes."""
        module = materialize(self._supernet.step_module(node.position), node.sub, node.layout).eval()
        module = revert_sync_bn(nn.Sequential(module))[0].to(memory_format=self._memory_format)
        if self._adapt is not None:
            self._adapt(self._supernet.step_paths[node.position], module)
        if self._bf16:
            to_bf16(module)
        use_matrix_products(module)
        size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        return MaterializedStep(module, norms_of(module)), size


def to_bf16(module: nn.Module) -> None:
    """Converts a module to bfloat16 in place, except for its batch norms.

    Their scale, shift and statistics stay in float32; they read and return bfloat16.
    """
    for part in module.modules():
        if not isinstance(part, _BatchNorm):
            part._apply(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, recurse=False)
