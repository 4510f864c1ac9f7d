"""Transformer blocks of AutoFormer (Chen et al., 2021): ordinary modules and their elastic counterparts.

The state between blocks is a pair: the class token, (N, C), and the map of patches, (N, C, H, W).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.slicing import Cut, leading, sliced, sliced_parts, sliced_state
from supernet.chain import Layout, Layouts, Part, Searchable
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

HEAD = 64
"""Channels of an attention head, the same for every width."""

State = tuple[Tensor, Tensor]


# -- ordinary modules -------------------------------------------------------------------------------------------------


def tokens_of(state: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the tokens of a state, (N, 1 + H·W, C), the class token first."""
    token, patches = state
    return torch.cat([token.unsqueeze(1), patches.flatten(2).transpose(1, 2)], dim=1)


def state_of(tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns class token and map, the inverse of `tokens_of`."""
    return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))


def relative_positions(
    height: int, width: int, *, reach: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Returns for every pair of tokens the entry of the tables of rows and of columns, (1 + H·W, 1 + H·W) each.

    Entry 0 is for pairs with the class token; the others are distances, clipped to ±reach, plus reach + 1.
    """
    places = torch.arange(height * width, device=device)
    distances = []
    for place in (places // width, places % width):
        distance = (place[None, :] - place[:, None]).clamp(-reach, reach) + reach + 1
        distances.append(functional.pad(distance, (1, 0, 1, 0)))
    return distances[0], distances[1]


def attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, *, head: int) -> Tensor:
    """Attention with relative positions on keys and values (Shaw et al., 2018).

    Args:
        query, key, value: (N, L, heads · head).
        keys, values: what is added to key and value for every pair of tokens, (L, L, head).
        head: channels of a head.

    Returns:
        (N, L, heads · head).
    """
    query, key, value = (x.unflatten(2, (-1, head)).transpose(1, 2) for x in (query, key, value))  # (N, heads, L, head)
    weights = query @ key.transpose(2, 3) + torch.einsum("nhld,lmd->nhlm", query, keys)
    weights = (weights * head**-0.5).softmax(dim=-1)
    out: Tensor = weights @ value + torch.einsum("nhlm,lmd->nhld", weights, values)
    return out.transpose(1, 2).flatten(2)


class PatchTokens(nn.Module):
    """Patches of an image as a map, a learned class token, and learned positions for both.

    Args:
        in_channels: the number of image channels.
        dim: channels of a token.
        patch: pixels of a side of a patch.
        side: patches of a side of the image.
    """

    def __init__(self, in_channels: int, dim: int, *, patch: int, side: int) -> None:
        super().__init__()
        self.in_channels, self.dim, self.patch, self.side = in_channels, dim, patch, side
        self.conv = nn.Conv2d(in_channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.zeros(dim, 1 + side**2))  # the class token's first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) to the state of `dim` channels; for other sides than side · patch see `positioned`."""
        return positioned(self.conv(x), self.token, self.positions)

    def out_layout(self, layout: Layouts) -> Layouts:
        """Returns the layouts of class token and map."""
        return Layout(self.dim, 0), Layout(self.dim, self.patch)


def positioned(patches: Tensor, token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns class token and map with their positions added.

    For another grid of patches than that of the positions they are interpolated, as timm does.

    Args:
        patches: (N, C, H, W).
        token: (C,).
        positions: (C, 1 + side²).
    """
    first = (token + positions[:, 0]).expand(patches.shape[0], -1)  # not len(): a trace would keep its number
    side, sides = math.isqrt(positions.shape[1] - 1), patches.shape[2:]
    grid = positions[:, 1:].unflatten(1, (side, side))
    if tuple(sides) != (side, side):
        grid = functional.interpolate(
            grid.unsqueeze(0), (sides[0], sides[1]), mode="bicubic", align_corners=False, antialias=True
        )[0]
    return first, patches + grid


class TransformerBlock(nn.Module):
    """Attention with relative positions and a two-layer perceptron, each behind a layer norm and beside a shortcut.

    Args:
        dim: channels of a token.
        heads: attention heads, of `head` channels each.
        hidden: channels between the layers of the perceptron.
        reach: largest distance of rows or columns that has an entry of its own.
    """

    def __init__(self, dim: int, *, heads: int, hidden: int, head: int = 64, reach: int = 14) -> None:
        super().__init__()
        self.dim, self.heads, self.hidden, self.head, self.reach = dim, heads, hidden, head, reach
        inner = heads * head
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.project = nn.Linear(inner, dim)
        self.tables = nn.Parameter(torch.zeros(4, 2 * reach + 2, head))  # keys by row, by column, values likewise
        self.expand, self.reduce = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A state to a state of the same shapes."""
        x = tokens_of(state)
        keys, values = relative_tables(self.tables, state[1].shape[2], state[1].shape[3], reach=self.reach)
        y = self.norm1(x)
        y = attention(self.query(y), self.key(y), self.value(y), keys, values, head=self.head)
        x = x + self.project(y)
        x = x + self.reduce(functional.gelu(self.expand(self.norm2(x))))
        return state_of(x, state[1].shape[2], state[1].shape[3])


def relative_tables(tables: Tensor, height: int, width: int, *, reach: int) -> tuple[Tensor, Tensor]:
    """Returns what relative positions add to keys and to values, (L, L, head) each, from tables (4, entries, head)."""
    rows, columns = relative_positions(height, width, reach=reach, device=tables.device)
    return tables[0][rows] + tables[1][columns], tables[2][rows] + tables[3][columns]


class TokenClassifier(nn.Module):
    """Layer norm, the mean of the patches without the class token, a linear layer.

    Shapes: a state of `dim` channels to logits (N, classes).
    """

    stride = 0

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dim, self.classes, self.out_channels = dim, classes, classes
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the logits, (N, classes)."""
        logits: Tensor = self.fc(self.norm(tokens_of(state))[:, 1:].mean(dim=1))
        return logits


# -- elastic modules --------------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, cut: Cut, x: Tensor) -> Tensor:
    """Applies a linear layer with the weights at `cut`.

    They are copied first: a matrix product of a slice may round differently from one of a whole matrix.
    """
    return functional.linear(x, sliced(layer.weight, cut).contiguous(), sliced(layer.bias, cut))


def _norm(layer: nn.LayerNorm, dim: int, x: Tensor) -> Tensor:
    cut = (slice(dim),)
    return functional.layer_norm(x, (dim,), sliced(layer.weight, cut), sliced(layer.bias, cut), layer.eps)


def _fill(target: nn.Module, source: nn.Module, cuts: dict[str, Cut]) -> None:
    """Gives the layers of a module copies of the weights at `cuts` of the layers of the same names."""
    for name, cut in cuts.items():
        target.get_submodule(name).load_state_dict(sliced_state(source.get_submodule(name), cut), assign=True)


class ElasticPatchTokens(Searchable):
    """`PatchTokens` with searched channels (decision `dim`), which all later steps share.

    Args:
        in_channels: the number of image channels.
        dims: options, ascending.
        patch, side: see `PatchTokens`.
    """

    def __init__(self, in_channels: int, dims: Sequence[int], *, patch: int, side: int) -> None:
        super().__init__()
        self.full = PatchTokens(in_channels, max(dims), patch=patch, side=side)
        self.space = SearchSpace("elastic-patch-tokens", [Choice("dim", tuple(dims), ordered=True)])

    def forward(self, state: Tensor, arch: Arch) -> State:
        """(N, in_channels, H, W) to a state of `dim` channels."""
        cut, conv = (slice(int(arch["dim"])),), self.full.conv
        patches = functional.conv2d(state, sliced(conv.weight, cut), sliced(conv.bias, cut), conv.stride)  # type: ignore[arg-type]
        return positioned(patches, sliced(self.full.token, cut), sliced(self.full.positions, cut))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layouts of class token and map."""
        dim = int(arch["dim"])
        return Layout(dim, 0), Layout(dim, self.full.patch)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `PatchTokens`."""
        full, dim = self.full, int(arch["dim"])
        with torch.device("meta"):
            tokens = PatchTokens(full.in_channels, dim, patch=full.patch, side=full.side)
        tokens.load_state_dict(sliced_state(full, (slice(dim),)), assign=True)
        return tokens

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels."""
        return sliced_parts(self.full, (slice(int(arch["dim"])),))


class ElasticTransformerBlock(Searchable):
    """`TransformerBlock` with searched heads and perceptron (decisions `heads` and `ratio`).

    It uses the leading channels of the tokens that it receives, the leading heads, with their biases, and the leading
    int(ratio · channels) of the perceptron's middle. The tables of relative positions are whole.

    Args:
        dim: the largest number of channels of a token.
        heads, ratios: options, ascending.
        reach: see `TransformerBlock`.
    """

    def __init__(self, dim: int, *, heads: Sequence[int], ratios: Sequence[float], reach: int = 14) -> None:
        super().__init__()
        if not heads or not ratios:
            raise InputError(f"heads={tuple(heads)} and ratios={tuple(ratios)} each need an option")
        self.full = TransformerBlock(dim, heads=max(heads), hidden=int(dim * max(ratios)), head=HEAD, reach=reach)
        choices = [Choice("heads", tuple(heads), ordered=True), Choice("ratio", tuple(ratios), ordered=True)]
        self.space = SearchSpace("elastic-transformer-block", choices)

    def _cuts(self, arch: Arch, dim: int) -> dict[str, Cut]:
        """Returns the slices of the layers by name."""
        inner, hidden = int(arch["heads"]) * HEAD, int(dim * float(arch["ratio"]))
        reads = leading(inner, dim)
        return {
            "norm1": (slice(dim),),
            "norm2": (slice(dim),),
            "query": reads,
            "key": reads,
            "value": reads,
            "project": leading(dim, inner),
            "expand": leading(hidden, dim),
            "reduce": leading(dim, hidden),
        }

    def forward(self, state: State, arch: Arch) -> State:
        """A state to a state of the same shapes."""
        full, (height, width), dim = self.full, state[1].shape[2:], state[0].shape[1]
        cuts, x = self._cuts(arch, dim), tokens_of(state)
        keys, values = relative_tables(full.tables, height, width, reach=full.reach)
        y = _norm(full.norm1, dim, x)
        query, key, value = (_linear(full.get_submodule(n), cuts[n], y) for n in ("query", "key", "value"))  # type: ignore[arg-type]
        x = x + _linear(full.project, cuts["project"], attention(query, key, value, keys, values, head=HEAD))
        hidden = functional.gelu(_linear(full.expand, cuts["expand"], _norm(full.norm2, dim, x)))
        return state_of(x + _linear(full.reduce, cuts["reduce"], hidden), height, width)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout that it receives."""
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `TransformerBlock`."""
        dim = _channels(layout)
        heads, hidden = int(arch["heads"]), int(dim * float(arch["ratio"]))
        with torch.device("meta"):
            block = TransformerBlock(dim, heads=heads, hidden=hidden, head=HEAD, reach=self.full.reach)
        _fill(block, self.full, self._cuts(arch, dim))
        block.tables = nn.Parameter(self.full.tables.detach().clone())
        return block

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels and heads, and the tables."""
        for name, cut in self._cuts(arch, _channels(layout)).items():
            yield from sliced_parts(self.full.get_submodule(name), cut)
        yield self.full.tables, ()


class ElasticTokenClassifier(Searchable):
    """`TokenClassifier` for as many channels as it receives.

    Args:
        dim: the largest number.
        classes: number of logits.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.full = TokenClassifier(dim, classes)
        self.space = SearchSpace("elastic-token-classifier")

    def forward(self, state: State, arch: Arch) -> Tensor:
        """A state to logits (N, classes)."""
        dim = state[0].shape[1]
        pooled = _norm(self.full.norm, dim, tokens_of(state))[:, 1:].mean(dim=1)
        return _linear(self.full.fc, leading(self.full.classes, dim), pooled)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns that of the logits."""
        return Layout(self.full.classes, 0)

    def _cuts(self, layout: Layouts) -> dict[str, Cut]:
        dim = _channels(layout)
        return {"norm": (slice(dim),), "fc": leading(self.full.classes, dim)}

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `TokenClassifier`."""
        with torch.device("meta"):
            classifier = TokenClassifier(_channels(layout), self.full.classes)
        _fill(classifier, self.full, self._cuts(layout))
        return classifier

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels."""
        for name, cut in self._cuts(layout).items():
            yield from sliced_parts(self.full.get_submodule(name), cut)


def _channels(layout: Layouts) -> int:
    """Returns the channels of the tokens of a state."""
    assert isinstance(layout, tuple)
    assert isinstance(layout[0], Layout)
    return layout[0].channels
