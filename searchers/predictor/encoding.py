"""Index vectors as feature vectors for surrogates."""

import math

import numpy as np
from numpy.typing import NDArray

from searchers.predictor.prediction import Floats, Indices
from supernet.space import SearchSpace


class Encoding:
    """Maps index vectors to feature vectors whose squared distances count differing decisions.

    Each decision is a group of columns. An unordered one has a column per option, so that two different options are at
    squared distance 1; an ordered one has its position from 0 to 1; an inactive one is zero. Each set of decisions with
    the same options forms a further group: the share of its decisions that take each option, or their mean position.
    It says how often a network has an operation, wherever it is.

    Args:
        space: the space of the index vectors.

    Attributes:
        group: (columns,), the number of each column's group.
        groups: the number of groups.
    """

    def __init__(self, space: SearchSpace) -> None:
        choices = space.choices
        positions = {choice.name: position for position, choice in enumerate(choices)}
        self._parents = [  # per conditional choice: its position, its parent's, and which parent options activate it
            (j, positions[c.when[0]], np.array([value in c.when[1] for value in space[c.when[0]].options]))
            for j, c in enumerate(choices)
            if c.when is not None
        ]
        self._options = [1 if choice.ordered else len(choice.options) for choice in choices]
        self._steps = np.array([max(1, len(c.options) - 1) if c.ordered else 0 for c in choices])
        self._starts = np.cumsum([0, *self._options])
        by_options: dict[tuple[object, bool], list[int]] = {}
        for position, choice in enumerate(choices):
            by_options.setdefault((choice.options, choice.ordered), []).append(position)
        self._same_options = [np.array(members) for members in by_options.values() if len(members) > 1]
        widths = [*self._options, *(self._options[members[0]] for members in self._same_options)]
        self.groups = len(widths)
        self.group = np.repeat(np.arange(self.groups), widths)

    def active(self, indices: Indices) -> NDArray[np.bool_]:
        """Returns which choices are active: (architectures, choices), bool."""
        on = np.ones(indices.shape, dtype=bool)
        for position, parent, activates in self._parents:
            on[:, position] = on[:, parent] & activates[indices[:, parent]]
        return on

    def canonical(self, indices: Indices) -> Indices:
        """Returns the index vectors with inactive choices at their first option."""
        return np.where(self.active(indices), indices, 0)

    def __call__(self, indices: Indices) -> Floats:
        """Returns the feature vectors: (architectures, columns)."""
        rows, on = np.arange(len(indices)), self.active(indices)
        columns = np.zeros((len(indices), int(self._starts[-1])))
        for j, steps in enumerate(self._steps):
            start = self._starts[j]
            if steps:
                columns[:, start] = on[:, j] * indices[:, j] / steps
            else:
                columns[rows, start + indices[:, j]] = on[:, j] * math.sqrt(0.5)
        shares = [
            sum(columns[:, self._starts[j] : self._starts[j + 1]] for j in members) / len(members)
            for members in self._same_options
        ]
        return np.hstack([columns, *shares])
