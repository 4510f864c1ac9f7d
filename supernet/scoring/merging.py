"""Several batches that a step takes at once: far fewer calls, and larger products, on maps of few pixels."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.scoring.memory import tensors_in

MERGED_BYTES = 3 * 2**19
"""The most bytes that several batches may have in all to pass at once. With larger inputs, what a block computes no
longer fits the processor's cache: 1.25 to 2.5 MiB are fastest for `spos` at 32 pixels, and 0.5 to 1 MiB for
`nasbench-macro`, whose blocks are wider inside."""

Form = tuple[int, tuple[torch.Size, ...]]
"""The images of a batch, and the shapes of its tensors without the first dimension."""


class CannotMergeError(Exception):
    """A state whose tensors are not all of one number of images, or a module that does not treat each on its own."""


@dataclass(eq=False)
class Held:
    """The state of a batch, or of several in one.

    Attributes:
        state: what a step read or returned.
        images: the images of a batch.
        batches: their number.
    """

    state: Any
    images: int
    batches: int = 1

    @property
    def bytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.nbytes for tensor in tensors_in(self.state))

    @property
    def form(self) -> Form:
        """What batches have in common that can be merged."""
        return self.images, tuple(tensor.shape[1:] for tensor in tensors_in(self.state))

    def apart(self) -> "list[Held]":
        """Returns the batches, which are views.

        Raises:
            CannotMergeError: some tensor has another number of images.
        """
        if self.batches == 1:
            return [self]
        return [Held(part, self.images) for part in _parts(self.state, self.images, self.batches)]


def held(state: Any) -> Held:
    """Returns the state of a batch, whose first tensor says how many images it has."""
    return Held(state, next((len(tensor) for tensor in tensors_in(state) if tensor.ndim), 0))


def merged(several: Sequence[Held]) -> Held:
    """Returns the states of consecutive batches as one.

    Args:
        several: each a tensor (N, ...), or tuples, lists and dictionaries of such tensors, alike in structure and
            shapes.

    Raises:
        CannotMergeError: other states, or batches of different sizes.
    """
    images = several[0].images
    if not images or any(one.images != images for one in several):
        raise CannotMergeError
    batches = [one.batches for one in several]
    return Held(_merged([one.state for one in several], [n * images for n in batches]), images, sum(batches))


def _merged(states: Sequence[Any], images: Sequence[int]) -> Any:
    first = states[0]
    if any(type(state) is not type(first) for state in states):
        raise CannotMergeError
    if first is None:
        return None
    if isinstance(first, Tensor):
        for tensor, number in zip(states, images, strict=True):
            if not tensor.ndim or len(tensor) != number or tensor.shape[1:] != first.shape[1:]:
                raise CannotMergeError
        return torch.cat(list(states))
    if type(first) is dict:
        if any(state.keys() != first.keys() for state in states):
            raise CannotMergeError
        return {name: _merged([state[name] for state in states], images) for name in first}
    if not isinstance(first, tuple | list) or any(len(state) != len(first) for state in states):
        raise CannotMergeError
    return _like(first, [_merged(parts, images) for parts in zip(*states, strict=True)])


def _parts(state: Any, images: int, batches: int) -> list[Any]:
    if state is None:
        return [None] * batches
    if isinstance(state, Tensor):
        if not state.ndim or len(state) != images * batches:
            raise CannotMergeError
        return list(state.split(images))
    if type(state) is dict:
        columns = {name: _parts(part, images, batches) for name, part in state.items()}
        return [{name: column[row] for name, column in columns.items()} for row in range(batches)]
    if not isinstance(state, tuple | list) or not state:
        raise CannotMergeError
    return [_like(state, parts) for parts in zip(*(_parts(part, images, batches) for part in state), strict=True)]


def _like(state: Any, parts: Sequence[Any]) -> Any:
    """Returns the parts in a tuple, named tuple or list of the type of a state."""
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def same_bits(one: Any, other: Any) -> bool:
    """Returns whether two states have equal tensors, in order."""
    tensors, others = list(tensors_in(one)), list(tensors_in(other))
    return len(tensors) == len(others) and all(map(torch.equal, tensors, others))


@contextmanager
def batch_by_batch(norms: Sequence[_BatchNorm], batches: int) -> Iterator[None]:
    """Makes batch norms take their input as so many batches in order, each with its own statistics.

    They raise `CannotMergeError` for an input that cannot be divided into so many, and if they are called twice: a
    batch would then pass twice before the next one does, which averages the running statistics in another order.
    """
    calls = Counter[_BatchNorm]()

    def divided(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
        forward = norm.forward

        def divided_forward(input: Tensor) -> Tensor:
            calls[norm] += 1
            if calls[norm] > 1 or not len(input) or len(input) % batches:
                raise CannotMergeError
            return torch.cat([forward(part) for part in input.chunk(batches)])

        return divided_forward

    if any("forward" in vars(norm) for norm in norms):
        raise CannotMergeError
    for norm in norms:
        vars(norm)["forward"] = divided(norm)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]
