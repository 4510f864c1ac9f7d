"""The surrogate of progressive search: small networks that read a cell of any size block by block."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu

from searchers.pnas.ladder import Kind

Row = Sequence[Sequence[int]]
"""A cell: per block, the option number of each decision."""

AT_ONCE = 4096  # cells that are predicted together, in some tens of MB


class LadderSurrogate:
    """An ensemble of predictors of a score between 0 and 1 for cells with any number of blocks.

    - "mlp": the embeddings of a block's decisions, concatenated and averaged over the blocks, then two layers of
      `hidden` units. The order of the blocks is lost.
    - "lstm": one layer of `hidden` units that reads decision after decision, block after block.

    The last output passes through a linear layer and a sigmoid (Liu et al., ECCV 2018, § 3.4). The weights of all
    members are stacked along a first dimension, so that one batched product serves the whole ensemble.

    Args:
        kind: "mlp" or "lstm".
        decisions: per decision of a block, in order, the number of its embedding table and of that table's options.
        seed: the seed of the initial weights and of the choice of what each member leaves out.
        members: the size of the ensemble; each member is trained without every `members`-th cell.
        embedding: the width of an embedding, initially uniform in [-0.1, 0.1].
        hidden: the number of hidden units.
        bias: the initial bias of the last layer; the sigmoid of 1.8 is 0.86.
    """

    def __init__(
        self,
        kind: Kind,
        decisions: Sequence[tuple[int, int]],
        *,
        seed: int,
        members: int = 5,
        embedding: int = 100,
        hidden: int = 100,
        bias: float = 1.8,
    ) -> None:
        self.kind: Kind = kind
        self.members = members
        self._generator = torch.Generator().manual_seed(seed)
        self._tables = [table for table, _ in decisions]
        self._width = max(options for _, options in decisions)
        tables, inputs = 1 + max(self._tables), len(decisions) * embedding
        layers = {  # bound of the initial uniform distribution, shape
            "embedding": (0.1, (tables, self._width, embedding)),
            "output": (1 / math.sqrt(hidden), (hidden, 1)),
            "output_bias": (0.0, (1, 1)),
        }
        if kind == "mlp":
            layers |= {
                "first": (1 / math.sqrt(inputs), (inputs, hidden)),
                "first_bias": (1 / math.sqrt(inputs), (1, hidden)),
                "second": (1 / math.sqrt(hidden), (hidden, hidden)),
                "second_bias": (1 / math.sqrt(hidden), (1, hidden)),
            }
        else:
            layers |= {
                "input": (1 / math.sqrt(hidden), (embedding, 4 * hidden)),
                "recurrent": (1 / math.sqrt(hidden), (hidden, 4 * hidden)),
                "gate_bias": (1 / math.sqrt(hidden), (1, 4 * hidden)),
            }
        self.weights = {
            name: torch.empty(members, *shape).uniform_(-bound, bound, generator=self._generator)
            for name, (bound, shape) in layers.items()
        }
        self.weights["output_bias"] += bias
        for weight in self.weights.values():
            weight.requires_grad_()

    def fit(
        self, cells: Sequence[Row], targets: Sequence[float], *, learning_rate: float, epochs: int
    ) -> list[list[int]]:
        """Trains the current weights on these cells alone by full-batch Adam on the mean absolute error.

        Returns:
            per member the positions of the cells that it was trained on: all if there are fewer cells than members.
        """
        shown = self._shares(len(cells))
        share = shown / shown.sum(dim=1, keepdim=True)  # (members, n)
        sizes = sorted({len(cell) for cell in cells})
        groups = [[n for n, cell in enumerate(cells) if len(cell) == size] for size in sizes]
        parts = [(torch.tensor([cells[n] for n in group]), torch.tensor(group)) for group in groups]
        target = torch.tensor(targets, dtype=torch.float32)
        adam = torch.optim.Adam(self.weights.values(), lr=learning_rate)
        for _ in range(epochs):
            adam.zero_grad(set_to_none=True)
            losses = [(share[:, at] * (self._forward(rows) - target[at]).abs()).sum() for rows, at in parts]
            torch.stack(losses).sum().backward()
            adam.step()
        return [row.nonzero()[:, 0].tolist() for row in shown]

    @torch.no_grad()
    def predict(self, cells: Sequence[Row]) -> list[float]:
        """The mean prediction of the members for each cell; the cells may differ in size."""
        predictions = [0.0] * len(cells)
        for size in sorted({len(cell) for cell in cells}):
            group = [n for n, cell in enumerate(cells) if len(cell) == size]
            for start in range(0, len(group), AT_ONCE):
                part = group[start : start + AT_ONCE]
                means = self._forward(torch.tensor([cells[n] for n in part])).mean(dim=0)
                for n, mean in zip(part, means.tolist(), strict=True):
                    predictions[n] = mean
        return predictions

    @torch.no_grad()
    def expanded(self, parents: Sequence[Row], options: Sequence[int]) -> Tensor:
        """Predicts every parent with every possible block appended.

        The computation that expansions share is done once.

        Args:
            parents: cells of one size.
            options: the number of options of each decision of the new block; the last decision varies fastest.

        Returns:
            (parents · Π options,)
        """
        chunk = max(1, AT_ONCE // math.prod(options))
        rows = [torch.tensor(parents[start : start + chunk]) for start in range(0, len(parents), chunk)]
        expand = self._expanded_mlp if self.kind == "mlp" else self._expanded_lstm
        return torch.cat([expand(part, options).mean(dim=0) for part in rows])

    def _shares(self, n: int) -> Tensor:
        """(members, n), 1 where a member is trained on a cell and 0 elsewhere."""
        if n < self.members or self.members == 1:
            return torch.ones(self.members, n)
        place = torch.empty(n, dtype=torch.long)
        place[torch.randperm(n, generator=self._generator)] = torch.arange(n)
        return (place[None] % self.members != torch.arange(self.members)[:, None]).float()

    def _forward(self, rows: Tensor) -> Tensor:
        """Predicts (n, blocks, decisions) cells of one size: (members, n)."""
        if self.kind == "mlp":
            return self._from_mean(one_hot(rows, self._width).float().mean(dim=1))
        state = self._initial_state(len(rows))
        gates = self._gates()
        for block in rows.unbind(dim=1):
            for decision, taken in enumerate(block.unbind(dim=1)):
                state = self._advance(gates[decision][:, taken], state)
        return self._score(state[0])

    # -- mlp -----------------------------------------------------------------------------------------------------------

    def _from_mean(self, shares: Tensor) -> Tensor:
        """Predicts from the share of blocks that take each option, (n, decisions, options): (members, n)."""
        w = self.weights
        tables = w["embedding"][:, self._tables]  # (members, decisions, options, embedding)
        inputs = torch.einsum("ntk,mtkd->mntd", shares, tables).flatten(start_dim=2)
        first = relu(torch.baddbmm(w["first_bias"], inputs, w["first"]))
        return self._score(relu(torch.baddbmm(w["second_bias"], first, w["second"])))

    def _expanded_mlp(self, rows: Tensor, options: Sequence[int]) -> Tensor:
        blocks = torch.cartesian_prod(*(torch.arange(count) for count in options)).reshape(-1, len(options))
        counts = one_hot(rows, self._width).sum(dim=1)[:, None] + one_hot(blocks, self._width)[None]
        return self._from_mean(counts.flatten(end_dim=1).float() / (rows.shape[1] + 1))

    # -- lstm ----------------------------------------------------------------------------------------------------------

    def _initial_state(self, n: int) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(self.members, n, self.weights["recurrent"].shape[1])
        return zeros, zeros

    def _gates(self) -> list[Tensor]:
        """Per decision, the contribution of each option to the gates: (members, options, 4 hidden)."""
        w = self.weights
        added = [torch.baddbmm(w["gate_bias"], table, w["input"]) for table in w["embedding"].unbind(dim=1)]
        return [added[table] for table in self._tables]

    def _advance(self, gates: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step of the LSTM, given what the decision contributes to the gates."""
        hidden, cell = state
        preactivations = torch.baddbmm(gates, hidden, self.weights["recurrent"])
        input_gate, forget_gate, output_gate, new = preactivations.chunk(4, dim=-1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * new.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell

    def _expanded_lstm(self, rows: Tensor, options: Sequence[int]) -> Tensor:
        gates, state = self._gates(), self._initial_state(len(rows))
        for block in rows.unbind(dim=1):
            for decision, taken in enumerate(block.unbind(dim=1)):
                state = self._advance(gates[decision][:, taken], state)
        for decision, count in enumerate(options):
            n = state[0].shape[1]
            added = gates[decision][:, :count].repeat(1, n, 1)
            state = self._advance(added, tuple(part.repeat_interleave(count, dim=1) for part in state))  # type: ignore[arg-type]
        return self._score(state[0])

    def _score(self, hidden: Tensor) -> Tensor:
        w = self.weights
        return torch.baddbmm(w["output_bias"], hidden, w["output"])[:, :, 0].sigmoid()


def ranking(scores: Tensor, *, seed: int) -> list[int]:
    """The positions of the scores, highest first; scores that agree to seven decimals come in random order."""
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    rounded = torch.round(scores.double(), decimals=7)[order]
    best: list[int] = order[torch.argsort(-rounded, stable=True)].tolist()
    return best
