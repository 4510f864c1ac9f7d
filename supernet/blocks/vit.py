"""Blocks of the vision transformer (Dosovitskiy et al., 2021; DeiT, DINOv2): ordinary modules and an elastic block.

The state is that of `supernet.blocks.transformer`: class token and map of patches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.slicing import Cut, leading, sliced
from supernet.blocks.transformer import State, state_of, tokens_of
from supernet.chain import Layouts, Part, Searchable
from supernet.space import Arch, Choice, SearchSpace, Value


class FusedAttention(nn.Module):
    """Self-attention with one layer for queries, keys and values.

    Args:
        dim: channels of a token.
        heads: attention heads.
        head: channels of each.
        bias: whether that layer has a bias.
    """

    def __init__(self, dim: int, *, heads: int, head: int, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.heads, self.head, self.bias = dim, heads, head, bias
        self.weight = nn.Parameter(torch.zeros(3, heads * head, dim))  # of queries, keys and values
        if bias:
            self.shift = nn.Parameter(torch.zeros(3, heads * head))
        self.project = nn.Linear(heads * head, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to the same shape."""
        out: Tensor = self.project(attend(x, self.weight, self.shift if self.bias else None, head=self.head))
        return out


def attend(x: Tensor, weight: Tensor, shift: Tensor | None, *, head: int) -> Tensor:
    """Scaled dot-product attention before its last layer.

    Args:
        x: (N, L, dim).
        weight: (3, heads · head, dim).
        shift: (3, heads · head).
        head: channels of a head.

    Returns:
        (N, L, heads · head).
    """
    mixed = functional.linear(x, weight.flatten(0, 1), None if shift is None else shift.flatten())
    query, key, value = mixed.unflatten(2, (3, -1, head)).permute(2, 0, 3, 1, 4).unbind(0)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class ViTBlock(nn.Module):
    """Attention and a two-layer perceptron with GELU, each behind a layer norm and beside a shortcut.

    Args:
        dim: channels of a token.
        heads, head: attention heads and the channels of each.
        hidden: channels between the layers of the perceptron.
        bias: whether queries, keys and values have one.
        scaled: whether both branches are scaled per channel (layer scale, Touvron et al., 2021).
        eps: the epsilon of layer norm.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head: int,
        hidden: int,
        bias: bool = True,
        scaled: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.head, self.hidden = dim, heads, head, hidden
        self.bias, self.scaled, self.eps = bias, scaled, eps
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention = FusedAttention(dim, heads=heads, head=head, bias=bias)
        self.expand, self.reduce = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        if scaled:
            self.scales = nn.Parameter(torch.ones(2, dim))  # of attention and perceptron

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A state to a state of the same shapes."""
        x = tokens_of(state)
        y = self.attention(self.norm1(x))
        x = x + (y * self.scales[0] if self.scaled else y)
        y = self.reduce(functional.gelu(self.expand(self.norm2(x))))
        x = x + (y * self.scales[1] if self.scaled else y)
        return state_of(x, state[1].shape[2], state[1].shape[3])


class ViTHead(nn.Module):
    """The class token or the mean of the patches, a layer norm, dropout, a linear layer.

    Shapes: a state of `dim` channels to logits (N, classes).

    Args:
        dim: channels of a token.
        mean: whether the patches are averaged, and the mean is normed; otherwise the class token is.
        norm: whether there is a layer norm, of this `eps`.
        dropout: before the linear layer.
    """

    stride = 0

    def __init__(
        self, dim: int, classes: int, *, mean: bool = False, norm: bool = True, eps: float = 1e-6, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.out_channels = dim, classes, classes
        self.mean, self.norm, self.eps, self.dropout = mean, norm, eps, dropout
        self.scale: nn.Module = nn.LayerNorm(dim, eps) if norm else nn.Identity()
        self.drop, self.fc = nn.Dropout(dropout), nn.Linear(dim, classes)

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the logits, (N, classes)."""
        pooled = tokens_of(state)[:, 1:].mean(dim=1) if self.mean else state[0]
        logits: Tensor = self.fc(self.drop(self.scale(pooled)))
        return logits


class ElasticViTBlock(Searchable):
    """A `ViTBlock` that uses its leading heads and the leading middle channels of its perceptron.

    Decisions: `heads`, and `ratio` of middle to outer channels of the perceptron; only those with several options.

    Args:
        full: the block at its largest.
        heads: options, ascending; the last is the block's own.
        hiddens: option of `ratio` to middle channels, ascending.
    """

    def __init__(self, full: ViTBlock, *, heads: Sequence[int], hiddens: dict[Value, int]) -> None:
        super().__init__()
        self.full, self.hiddens = full, dict(hiddens)
        options = {"heads": tuple(heads), "ratio": tuple(hiddens)}
        choices = [Choice(name, values, ordered=True) for name, values in options.items() if len(values) > 1]
        self.space = SearchSpace("elastic-vit-block", choices)

    def _widths(self, arch: Arch) -> tuple[int, int]:
        """Returns heads and middle channels."""
        heads, ratio = int(arch.get("heads", self.full.heads)), arch.get("ratio")
        return heads, self.full.hidden if ratio is None else self.hiddens[ratio]

    def _cuts(self, arch: Arch) -> dict[str, Cut]:
        """Returns the slices of the parameters that are cut, by name."""
        heads, hidden = self._widths(arch)
        inner, dim = heads * self.full.head, self.full.dim
        every = slice(None)
        return {
            "attention.weight": (every, slice(inner), every),
            "attention.shift": (every, slice(inner)),
            "attention.project.weight": leading(dim, inner),
            "expand.weight": leading(hidden, dim),
            "expand.bias": (slice(hidden),),
            "reduce.weight": leading(dim, hidden),
        }

    def _tensor(self, name: str, cuts: dict[str, Cut]) -> Tensor:
        """Returns a parameter in use; matrices as copies, since products of slices may round differently."""
        tensor = sliced(self.full.get_parameter(name), cuts[name])
        return tensor.contiguous() if tensor.ndim > 1 else tensor

    def forward(self, state: State, arch: Arch) -> State:
        """A state to a state of the same shapes."""
        full, cuts, x = self.full, self._cuts(arch), tokens_of(state)
        shift = self._tensor("attention.shift", cuts) if full.bias else None
        y = attend(full.norm1(x), self._tensor("attention.weight", cuts), shift, head=full.head)
        y = functional.linear(y, self._tensor("attention.project.weight", cuts), full.attention.project.bias)
        x = x + (y * full.scales[0] if full.scaled else y)
        hidden = functional.linear(
            full.norm2(x), self._tensor("expand.weight", cuts), self._tensor("expand.bias", cuts)
        )
        y = functional.linear(functional.gelu(hidden), self._tensor("reduce.weight", cuts), full.reduce.bias)
        x = x + (y * full.scales[1] if full.scaled else y)
        return state_of(x, state[1].shape[2], state[1].shape[3])

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout that it receives."""
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `ViTBlock`."""
        full, (heads, hidden), cuts = self.full, self._widths(arch), self._cuts(arch)
        with torch.device("meta"):
            block = ViTBlock(
                full.dim,
                heads=heads,
                head=full.head,
                hidden=hidden,
                bias=full.bias,
                scaled=full.scaled,
                eps=full.eps,
            )
        state = {name: sliced(tensor, cuts.get(name, ())).clone() for name, tensor in full.state_dict().items()}
        block.load_state_dict(state, assign=True)
        return block

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading heads and middle channels, and everything else whole."""
        cuts = self._cuts(arch)
        for name, parameter in self.full.named_parameters():
            cut = cuts.get(name, ())
            yield parameter, () if sliced(parameter, cut).shape == parameter.shape else cut[: parameter.ndim]

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Sorts heads and middle channels by the sum of the absolute weights that read them, the largest first."""
        full = self.full
        order = full.reduce.weight.abs().sum(dim=0).argsort(descending=True, stable=True)
        full.expand.weight.copy_(full.expand.weight[order])
        full.expand.bias.copy_(full.expand.bias[order])
        full.reduce.weight.copy_(full.reduce.weight[:, order])
        project = full.attention.project.weight
        importance = project.abs().sum(dim=0).view(full.heads, full.head).sum(dim=1)
        places = torch.arange(full.heads * full.head, device=project.device).view(full.heads, full.head)
        order = places[importance.argsort(descending=True, stable=True)].flatten()
        full.attention.weight.copy_(full.attention.weight[:, order])
        if full.bias:
            full.attention.shift.copy_(full.attention.shift[:, order])
        project.copy_(project[:, order])
