"""Vision transformers of timm in parts, for `supernet.spaces.elastic`."""

from typing import Any

import torch
from timm.layers import Attention, LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from supernet.blocks.transformer import PatchTokens
from supernet.blocks.vit import ElasticViTBlock, ViTBlock, ViTHead
from supernet.space import Value
from supernet.spaces.converted import NoRule, assign


def embedding_of(model: VisionTransformer) -> PatchTokens:
    """Returns patches, class token and positions as one module. Raises `NoRule` for another form of them."""
    network: Any = model
    patches = network.patch_embed
    if type(patches) is not PatchEmbed or not isinstance(patches.norm, nn.Identity) or patches.proj.bias is None:
        raise NoRule("patches of another form")
    if network.cls_token is None or network.reg_token is not None or network.pos_embed is None:
        raise NoRule("no class token, register tokens or no learned positions")
    if network.dynamic_img_size or not isinstance(network.norm_pre, nn.Identity):
        raise NoRule("images of any size or a norm before the blocks")
    if network.pos_drop.p or not isinstance(network.patch_drop, nn.Identity):
        raise NoRule("dropout of tokens")
    (side, other), (patch, height) = patches.grid_size, patches.patch_size
    if side != other or patch != height:
        raise NoRule("images or patches that are not square")
    dim = network.embed_dim
    with torch.device("meta"):
        tokens = PatchTokens(patches.proj.in_channels, dim, patch=patch, side=side)
    assign(tokens.conv, patches.proj)
    positions = network.pos_embed.detach()[0]
    if network.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    tokens.token = nn.Parameter(network.cls_token.detach().flatten().clone())
    tokens.positions = nn.Parameter(positions.t().contiguous())
    return tokens


def head_of(model: VisionTransformer) -> ViTHead:
    """Returns pooling, norm and classifier as one module. Raises `NoRule` for another form of them."""
    network: Any = model
    if network.global_pool not in ("token", "avg") or network.pool_include_prefix or network.attn_pool is not None:
        raise NoRule(f"the pooling {network.global_pool!r}")
    if not isinstance(network.head, nn.Linear) or network.head.bias is None:
        raise NoRule("no linear classifier")
    mean = network.global_pool == "avg"
    norm, other = (network.fc_norm, network.norm) if mean else (network.norm, network.fc_norm)
    if not isinstance(other, nn.Identity) or not isinstance(norm, nn.LayerNorm):
        raise NoRule("a norm at another place")
    with torch.device("meta"):
        head = ViTHead(
            network.embed_dim, network.head.out_features, mean=mean, eps=norm.eps, dropout=network.head_drop.p
        )
    assign(head.scale, norm)
    assign(head.fc, network.head)
    return head


def block_of(block: Any, shares: tuple[float, ...]) -> ElasticViTBlock:
    """Returns a block with searched heads and perceptron. Raises `NoRule` for another form of it."""
    attention: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    if (type(block), type(attention), type(mlp)) != (Block, Attention, Mlp):
        raise NoRule(f"blocks of another form ({type(block).__name__})")
    for part in (attention.q_norm, attention.k_norm, attention.norm, mlp.norm):
        if not isinstance(part, nn.Identity):
            raise NoRule("norms within attention or perceptron")
    rates = (attention.attn_drop.p, attention.proj_drop.p, mlp.drop1.p, mlp.drop2.p)
    paths = [block.drop_path1, block.drop_path2]
    if attention.gate is not None or any(rates) or not all(isinstance(path, nn.Identity) for path in paths):
        raise NoRule("gates or dropout in its blocks")
    plain = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    norms = (block.norm1, block.norm2)
    if not plain or not all(isinstance(norm, nn.LayerNorm) and norm.elementwise_affine for norm in norms):
        raise NoRule("another activation or norm in its blocks")
    scaled = isinstance(block.ls1, LayerScale)
    if attention.proj.bias is None or mlp.fc1.bias is None or mlp.fc2.bias is None or not attention.fused_attn:
        raise NoRule("layers without a bias")
    heads, head, dim, hidden = attention.num_heads, attention.head_dim, attention.qkv.in_features, mlp.fc1.out_features
    bias = attention.qkv.bias is not None
    with torch.device("meta"):
        converted = ViTBlock(dim, heads=heads, head=head, hidden=hidden, bias=bias, scaled=scaled, eps=block.norm1.eps)
    for own, theirs in (
        (converted.norm1, block.norm1),
        (converted.norm2, block.norm2),
        (converted.attention.project, attention.proj),
        (converted.expand, mlp.fc1),
        (converted.reduce, mlp.fc2),
    ):
        assign(own, theirs)
    converted.attention.weight = nn.Parameter(attention.qkv.weight.detach().clone().view(3, heads * head, dim))
    if bias:
        converted.attention.shift = nn.Parameter(attention.qkv.bias.detach().clone().view(3, heads * head))
    if scaled:
        converted.scales = nn.Parameter(torch.stack([block.ls1.gamma.detach(), block.ls2.gamma.detach()]))
    fewer = {max(1, round(heads * share)) for share in shares} - {heads}
    hiddens: dict[Value, int] = {}
    for share in sorted(set(shares)):
        middle = max(1, round(hidden * share))
        if middle < hidden and middle not in hiddens.values():
            hiddens[_ratio(middle, dim)] = middle
    hiddens[_ratio(hidden, dim)] = hidden
    return ElasticViTBlock(converted, heads=[*sorted(n for n in fewer if n < heads), heads], hiddens=hiddens)


def _ratio(middle: int, dim: int) -> float:
    """Returns middle / dim as an integer if it is one, else rounded to three digits."""
    return middle // dim if middle % dim == 0 else round(middle / dim, 3)
