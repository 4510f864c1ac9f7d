"""Activations in memory while prefixes are shared: what is counted, and which trunk features are kept."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

Place = tuple[torch.device, int]
"""A storage: its device and address."""


class BudgetExceeded(Exception):
    """The activations of a single batch along one path exceed the budget."""


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Yields the tensors of a state: itself, or those in its tuples, mappings and objects at any depth."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for part in state.values():
            yield from tensors_in(part)
    elif isinstance(state, tuple | list):
        for part in state:
            yield from tensors_in(part)
    elif hasattr(state, "__dict__"):
        yield from tensors_in(vars(state))


def version(tensor: Tensor) -> int:
    """Returns a number that grows with every write to the tensor.

    It is 0 for inference tensors, which keep no count; they cannot be written to from outside inference mode either.
    """
    return 0 if tensor.is_inference() else tensor._version


def storages(state: Any) -> Iterator[tuple[Place, torch.UntypedStorage]]:
    """Yields the storage behind every tensor of a state, with its place."""
    for tensor in tensors_in(state):
        storage = tensor.untyped_storage()
        yield (tensor.device, storage.data_ptr()), storage


class TrunkCache:
    """Trunk features (the outputs of the fixed leading steps), kept between tries as far as they fit.

    Features that came first stay: every pass reads all batches in order, and replacing one by another would lose both.

    Args:
        limit: bytes.

    Attributes:
        size: bytes of the features kept.
        places: the places of their storages.
        statistics: the batch-norm statistics of every fixed step; None until a whole calibration has passed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.places: set[Place] = set()
        self._features: dict[tuple[bool, int], Any] = {}
        self.clear()

    def clear(self) -> None:
        """Drops everything, including the statistics."""
        self.size = 0
        self.statistics: list[list[dict[str, Tensor]]] | None = None
        self.places.clear()
        self._features.clear()

    def get(self, number: int, *, calibrate: bool) -> Any:
        """Returns the features of a batch of this kind of pass, or None if they were not kept."""
        return self._features.get((calibrate, number))

    def keep(self, number: int, features: Any, *, calibrate: bool) -> bool:
        """Keeps the features of a batch if there is room, and returns whether there was."""
        new = dict(storages(features))
        size = sum(storage.nbytes() for storage in new.values())
        if self.size + size > self.limit:
            return False
        self._features[calibrate, number] = features
        self.places |= new.keys()
        self.size += size
        return True


class ActivationMeter:
    """Counts the bytes of activations that are alive; a storage that several states share counts once.

    Args:
        limit: bytes.
        ignored: places of storages that are not counted, because they stay in memory anyway.
    """

    def __init__(self, limit: int, ignored: Set[Place] = frozenset()) -> None:
        self.limit, self.now, self.peak = limit, 0, 0
        self._ignored = ignored
        self._users: Counter[Place] = Counter()

    def add(self, state: Any) -> None:
        """Counts a state. Raises `BudgetExceeded` if the limit is passed."""
        for place, storage in storages(state):
            if place not in self._ignored:
                self.now += 0 if self._users[place] else storage.nbytes()
                self._users[place] += 1
        self.peak = max(self.peak, self.now)
        if self.now > self.limit:
            raise BudgetExceeded

    def drop(self, state: Any) -> None:
        """Discounts a state that was added before."""
        for place, storage in storages(state):
            if place in self._ignored:
                continue
            self._users[place] -= 1
            if not self._users[place]:
                del self._users[place]
                self.now -= storage.nbytes()
