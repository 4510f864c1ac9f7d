"""The policy of a search by reinforcement learning: an LSTM that samples an architecture decision by decision."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from supernet.errors import InputError
from supernet.space import SearchSpace

NEVER = -1e9  # a logit with probability exactly zero in float32; unlike with -inf, p · log p stays a number
FORMAT = 1  # of snapshots
_STATE = "state"  # the tensor with the JSON of everything that is not a tensor


class Controller:
    """A distribution over the index vectors of a space, p(a) = Π p(aₖ | a₁ … aₖ₋₁), and its optimiser.

    One LSTM layer reads the last decision, and every decision has its own softmax, as in NASNet (Zoph et al., 2018,
    appendix A). Softmaxes are stored at one width; outcomes beyond the options of a decision have probability zero.
    Inactive decisions and those with one option are skipped: the LSTM does not read them, and their factor is 1.
    Options are read through one embedding per kind of decision. Two choices are of one kind if the options of one are
    the first options of the other, as with the inputs of successive blocks.

    All weights start uniform in [-0.1, 0.1].

    Args:
        space: the space of the index vectors.
        seed: the seed of the weights and of all samples.
        hidden: the number of units of the LSTM.
        temperature: a divisor of the logits; None for no division.
        tanh_constant: c of c · tanh(logits), which bounds how certain the policy can become; None for no bound.
        learning_rate: the learning rate of Adam.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        hidden: int,
        temperature: float | None,
        tanh_constant: float | None,
        learning_rate: float,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._temperature = temperature
        self._tanh_constant = tanh_constant
        counts = [len(choice.options) for choice in space.choices]
        positions = {choice.name: position for position, choice in enumerate(space.choices)}
        self._free = [position for position, count in enumerate(counts) if count > 1]
        self._choices = len(space)
        starts, rows = embedding_rows(space)
        self._rows = torch.tensor([starts[position] for position in self._free], dtype=torch.long)
        self._parents = {
            positions[choice.name]: (
                positions[choice.when[0]],
                torch.tensor([option in choice.when[1] for option in space[choice.when[0]].options]),
            )
            for choice in space.choices
            if choice.when is not None
        }
        width = max([counts[position] for position in self._free], default=1)
        legal = torch.tensor([counts[position] for position in self._free], dtype=torch.long)[:, None]
        self._barred = torch.arange(width)[None] >= legal  # (free, width)
        self.weights: dict[str, Tensor] = {
            "embedding": torch.empty(rows + 1, hidden),  # the last row is read before the first decision
            "input": torch.empty(4 * hidden, hidden),
            "recurrent": torch.empty(4 * hidden, hidden),
            "input_bias": torch.empty(4 * hidden),
            "recurrent_bias": torch.empty(4 * hidden),
            "head": torch.empty(len(self._free), hidden, width),
            "head_bias": torch.empty(len(self._free), 1, width),
        }
        with torch.no_grad():
            for weight in self.weights.values():
                weight.uniform_(-0.1, 0.1, generator=self._generator).requires_grad_()
        self._adam = torch.optim.Adam(self.weights.values(), lr=learning_rate)

    @torch.no_grad()
    def sample(self, n: int) -> list[tuple[int, ...]]:
        """Samples `n` index vectors, with inactive decisions at zero."""
        w = self.weights
        indices = torch.zeros(n, self._choices, dtype=torch.long)
        active = torch.ones(n, self._choices, dtype=torch.bool)
        token = torch.full((n,), len(w["embedding"]) - 1)
        state = self._initial_state(n)
        for row, position in enumerate(self._decided(indices, active)):
            on = active[:, position]
            after = torch.lstm_cell(w["embedding"][token], state, *self._lstm)
            state = (torch.where(on[:, None], after[0], state[0]), torch.where(on[:, None], after[1], state[1]))
            logits = self._limited(state[0] @ w["head"][row] + w["head_bias"][row])
            chances = torch.softmax(logits.masked_fill(self._barred[row], NEVER), dim=-1)
            drawn = torch.multinomial(chances, 1, generator=self._generator)[:, 0]
            indices[:, position] = torch.where(on, drawn, 0)
            token = torch.where(on, drawn + self._rows[row], token)
        return [tuple(vector) for vector in indices.tolist()]

    def log_prob(self, vectors: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The log probability of each vector and the summed entropy of the softmaxes along it, both (n,)."""
        n, free = len(vectors), len(self._free)
        if not free or not n:
            return torch.zeros(n), torch.zeros(n)
        indices = torch.tensor(vectors, dtype=torch.long)
        active = torch.ones(indices.shape, dtype=torch.bool)
        for _ in self._decided(indices, active):
            pass
        on, taken = active[:, self._free], indices[:, self._free]  # (n, free)
        place = on.cumsum(dim=1)  # the k-th active decision is the (k + 1)-th input; the others go to an unused place
        read = torch.full((n, free + 1), len(self.weights["embedding"]) - 1)
        read.scatter_(1, torch.where(on, place, free), taken + self._rows)
        inputs, state = self.weights["embedding"][read[:, :free]], tuple(part[None] for part in self._initial_state(n))
        states = torch.lstm(inputs, state, self._lstm, True, 1, 0.0, True, False, True)[0]  # in reading order
        states = states.gather(1, (place - 1).clamp(min=0)[:, :, None].expand(states.shape))  # by decision
        logits = self._limited(states.transpose(0, 1) @ self.weights["head"] + self.weights["head_bias"])
        log_chances = torch.log_softmax(logits.masked_fill(self._barred[:, None], NEVER), dim=-1)  # (free, n, width)
        chosen = log_chances.gather(-1, taken.T[:, :, None])[:, :, 0]
        entropy = -(log_chances.exp() * log_chances).sum(dim=-1)
        return (chosen * on.T).sum(dim=0), (entropy * on.T).sum(dim=0)

    def step(self, loss: Tensor) -> None:
        """Takes one step of Adam on a loss computed from `log_prob`."""
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self._adam.step()

    @property
    def _lstm(self) -> list[Tensor]:
        return [self.weights[name] for name in ("input", "recurrent", "input_bias", "recurrent_bias")]

    def _initial_state(self, n: int) -> tuple[Tensor, Tensor]:
        """The output and the cell of the LSTM before the first input, (n, hidden) each."""
        zeros = torch.zeros(n, self.weights["embedding"].shape[1])
        return zeros, zeros

    def _decided(self, indices: Tensor, active: Tensor) -> Iterator[int]:
        """Yields the positions to decide, in order, after writing to `active` which rows are active there."""
        free = set(self._free)
        for position in range(self._choices):
            if position in self._parents:
                parent, activates = self._parents[position]
                active[:, position] = active[:, parent] & activates[indices[:, parent]]
            if position in free:
                yield position

    def _limited(self, logits: Tensor) -> Tensor:
        """The logits after temperature and tanh."""
        if self._temperature is not None:
            logits = logits / self._temperature
        return logits if self._tanh_constant is None else self._tanh_constant * torch.tanh(logits)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def to_bytes(self, state: Mapping[str, Any]) -> bytes:
        """Returns weights, optimiser, generator and a further state, which JSON can hold, as a safetensors file."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for part, value in self._adam.state.get(weight, {}).items():
                tensors[f"adam.{part}.{name}"] = value
        tensors["generator"] = self._generator.get_state()
        text = json.dumps({"format": FORMAT, **state})
        tensors[_STATE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})

    def from_bytes(self, data: bytes) -> dict[str, Any]:
        """Restores what `to_bytes` wrote and returns the further state.

        Raises:
            InputError: the data is not a snapshot, or one of another format or controller; nothing has changed then.
        """
        try:
            tensors = safetensors.torch.load(data)
            state: dict[str, Any] = json.loads(bytes(tensors.pop(_STATE).tolist()))
            generator = tensors.pop("generator")
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"this cannot be read as a snapshot of a controller ({error})") from error
        if state.get("format") != FORMAT:
            raise InputError(f"the snapshot has format {state.get('format')}, and this release reads {FORMAT}")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("weight.")}
        own = {f"weight.{name}": tuple(weight.shape) for name, weight in self.weights.items()}
        if shapes != own:
            raise InputError(f"the snapshot is of another controller, with weights {shapes} instead of {own}")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weight.{name}"])
        for name, weight in self.weights.items():
            parts = {key.split(".")[1]: value for key, value in tensors.items() if _is_part(key, name)}
            if parts:
                self._adam.state[weight] = parts
        self._generator.set_state(generator)
        return state


def ppo_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """The negative clipped surrogate objective of PPO (Schulman et al., 2017, equation 7).

    It is the mean of -min(rA, clip(r, 1 ± `clip`)A) with r = p/p_old; all arguments are (n,).
    """
    ratio = torch.exp(log_prob - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def reinforce_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """The mean of -A · log p, whose gradient is minus the policy gradient (Williams, 1992); arguments are (n,)."""
    return -(advantage * log_prob).mean()


def _is_part(key: str, name: str) -> bool:
    """Whether a tensor of a snapshot belongs to the optimiser's state of a weight."""
    return key.startswith("adam.") and key.split(".", 2)[2] == name


def embedding_rows(space: SearchSpace) -> tuple[list[int], int]:
    """Per choice, the row of its first option in the embedding of its kind; and the number of rows."""
    kinds: list[tuple[str, ...]] = []  # options of the longest choice of each kind
    texts = [tuple(f"{type(option).__name__} {option}" for option in choice.options) for choice in space.choices]
    for text in sorted(texts, key=len, reverse=True):
        if not any(kind[: len(text)] == text for kind in kinds):
            kinds.append(text)
    starts = [sum(len(kind) for kind in kinds[:number]) for number in range(len(kinds))]
    rows = [next(s for kind, s in zip(kinds, starts, strict=True) if kind[: len(t)] == t) for t in texts]
    return rows, sum(map(len, kinds))
