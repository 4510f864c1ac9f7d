"""The spaces of AutoFormer (Chen et al., 2021, Table 1, and its code): vision transformers of three sizes."""

from collections.abc import Sequence

import torch
from torch import nn

from supernet.blocks.elastic import ElasticDepth
from supernet.blocks.transformer import (
    ElasticPatchTokens,
    ElasticTokenClassifier,
    ElasticTransformerBlock,
    PatchTokens,
    TransformerBlock,
)
from supernet.blocks.vit import FusedAttention, ViTBlock
from supernet.chain import Chain
from supernet.checked import is_whole, shown
from supernet.errors import InputError

REACH = 14
"""Distances of rows and columns of patches that have entries of their own."""


def initialize_transformer(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws weights, tokens, positions and tables from a truncated normal of deviation 0.02, and resets layer norms.

    Layer scales begin at 1e-5.

    Args:
        module: a network, changed in place.
        generator: for the draws; torch's global generator if None.
    """
    for part in module.modules():
        drawn: list[torch.Tensor] = []
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d | nn.Linear):
            drawn.append(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, PatchTokens):
            drawn += [part.token, part.positions]
        elif isinstance(part, TransformerBlock):
            drawn.append(part.tables)
        elif isinstance(part, FusedAttention):
            drawn.append(part.weight)
            if part.bias:
                nn.init.zeros_(part.shift)
        elif isinstance(part, ViTBlock) and part.scaled:
            nn.init.constant_(part.scales, 1e-5)
        for tensor in drawn:
            nn.init.trunc_normal_(tensor, std=0.02, generator=generator)


def _chain(
    name: str,
    *,
    num_classes: int,
    input_size: int,
    in_channels: int,
    dims: Sequence[int],
    heads: Sequence[int],
    ratios: Sequence[float],
    depths: Sequence[int],
    patch: int,
) -> Chain:
    """Patches, the first blocks, mean of the patches."""
    if not is_whole(patch, 1):
        raise InputError(f"patch={shown(patch)} should be pixels of a side of a patch, from 1")
    if input_size % patch:
        raise InputError(f"input_size={input_size} is not a multiple of the patches' {patch} pixels")
    if not dims or not depths or min(depths) < 1:
        raise InputError(f"dims={tuple(dims)} and depths={tuple(depths)} each need an option, depths of at least 1")
    blocks = [ElasticTransformerBlock(max(dims), heads=heads, ratios=ratios, reach=REACH) for _ in range(max(depths))]
    steps: list[tuple[str, nn.Module]] = [
        ("embed", ElasticPatchTokens(in_channels, dims, patch=patch, side=input_size // patch)),
        ("body", ElasticDepth(blocks, depths)),
        ("head", ElasticTokenClassifier(max(dims), num_classes)),
    ]
    return Chain(name, steps, input_shape=(in_channels, input_size, input_size), init=initialize_transformer)


def autoformer_tiny(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    dims: Sequence[int] = (192, 216, 240),
    heads: Sequence[int] = (3, 4),
    ratios: Sequence[float] = (3.5, 4),
    depths: Sequence[int] = (12, 13, 14),
    patch: int = 16,
) -> Chain:
    """AutoFormer-T: 3 · (4**12 + 4**13 + 4**14) = 1.06e9 architectures.

    Decisions: `embed.dim`, the channels of all tokens; `body.depth`; per block `heads`, of 64 channels each, and
    `ratio`, the middle to the outer channels of its perceptron, which are active while the block is used. Keys and
    values have learned relative positions (14 rows and columns). Biases are cut like their weights, unlike in the
    released code, whose subnets with fewer heads take biases of other channels (Cream, issue 121).

    Args:
        num_classes: size of the logits.
        input_size: pixels, a multiple of `patch`.
        in_channels: the number of image channels.
        dims, heads, ratios, depths: options, ascending.
        patch: pixels of a side of a patch.
    """
    return _chain(
        "autoformer-tiny",
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        dims=dims,
        heads=heads,
        ratios=ratios,
        depths=depths,
        patch=patch,
    )


def autoformer_small(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    dims: Sequence[int] = (320, 384, 448),
    heads: Sequence[int] = (5, 6, 7),
    ratios: Sequence[float] = (3, 3.5, 4),
    depths: Sequence[int] = (12, 13, 14),
    patch: int = 16,
) -> Chain:
    """AutoFormer-S: 3 · (9**12 + 9**13 + 9**14) = 7.7e13 architectures; arguments as in `autoformer_tiny`."""
    return _chain(
        "autoformer-small",
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        dims=dims,
        heads=heads,
        ratios=ratios,
        depths=depths,
        patch=patch,
    )


def autoformer_base(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    dims: Sequence[int] = (528, 576, 624),
    heads: Sequence[int] = (9, 10),
    ratios: Sequence[float] = (3, 3.5, 4),
    depths: Sequence[int] = (14, 15, 16),
    patch: int = 16,
) -> Chain:
    """AutoFormer-B: 3 · (6**14 + 6**15 + 6**16) = 1.0e13 architectures; arguments as in `autoformer_tiny`."""
    return _chain(
        "autoformer-base",
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        dims=dims,
        heads=heads,
        ratios=ratios,
        depths=depths,
        patch=patch,
    )
