"""NAS-Bench-Macro (Su et al., 2021): eight layers of three operations on CIFAR-10, all 6,561 trained three times."""

import csv
import functools
import io
import lzma
from collections.abc import Sequence
from importlib import resources

from torch import nn

from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct, InvertedResidual
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.space import Arch, Value

OPTIONS = ("identity", "mb3_k3", "mb6_k5")
DEPTHS = (2, 3, 3)
WIDTHS = (64, 128, 256)


def identities_last(arch: Arch) -> dict[str, Value]:
    """Moves the stride-1 identities of each stage to its end, since their position does not change the network."""
    values: dict[str, Value] = {}
    for stage in sorted({name.partition(".")[0] for name in arch}):
        depth = sum(name.startswith(f"{stage}.") for name in arch)
        names = [f"{stage}.block{block}.op" for block in range(1, depth)]
        kept = [arch[name] for name in names if arch[name] != "identity"]
        values.update(zip(names, kept + ["identity"] * (len(names) - len(kept)), strict=True))
    return values


def nasbench_macro(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS,
    stem: int = 32,
    head: int = 1280,
) -> Chain:
    """3×3 stem to 32; stages of 2, 3, 3 layers at 64, 128, 256 channels, the first of each at stride 2; 1×1 to 1,280.

    Options in index order: `identity` (1×1 convolution and batch norm where the shape changes), `mb3_k3` (inverted
    residual, expansion 3, kernel 3), `mb6_k5` (expansion 6, kernel 5). 6,561 architectures, 3,969 distinct networks.
    """
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, stem, kernel=3))]
    channels = stem
    for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True), start=1):
        for block in range(depth):
            steps.append((f"stage{stage}.block{block}", macro_layer(channels, width, stride=2 if block == 0 else 1)))
            channels = width
    steps.append(("head", ClassifierHead(channels, num_classes, hidden=head)))
    shape = (in_channels, input_size, input_size)
    return Chain("nasbench-macro", steps, input_shape=shape, normal_form=identities_last)


def macro_layer(in_channels: int, out_channels: int, *, stride: int) -> ChoiceBlock:
    """Returns the searchable layer of the benchmark: its `OPTIONS` at any width."""
    identity: nn.Module = nn.Identity()
    if stride == 2 or in_channels != out_channels:
        identity = ConvBNAct(in_channels, out_channels, stride=stride, act=False)
    blocks = [
        InvertedResidual(in_channels, out_channels, kernel=kernel, expansion=expansion, stride=stride)
        for kernel, expansion in ((3, 3), (5, 6))
    ]
    return ChoiceBlock(dict(zip(OPTIONS, (identity, *blocks), strict=True)))


def arch_of(digits: str) -> Arch:
    """Returns the architecture that the table writes as eight digits, one option number per layer.

    Raises:
        InputError: something else than eight digits from 0 to 2.
    """
    if not isinstance(digits, str) or len(digits) != sum(DEPTHS) or set(digits) - set("012"):
        raise InputError(f"digits={digits!r:.80} should be a text of {sum(DEPTHS)} digits from 0 to 2")
    names = [f"stage{stage}.block{block}.op" for stage, depth in enumerate(DEPTHS, 1) for block in range(depth)]
    return Arch(dict(zip(names, (OPTIONS[int(digit)] for digit in digits), strict=True)))


@functools.cache
def table() -> dict[Arch, dict[str, float]]:
    """Returns the published results of all 6,561 architectures.

    Returns:
        Per architecture, `accuracy` (mean test accuracy in % of three trainings), `accuracy_1` … `accuracy_3`,
        `params` and `macs` (convolutions and linear layer, at 32×32).
    """
    packed = resources.files("supernet").joinpath("spaces/tables/nasbench_macro.csv.xz").read_bytes()
    rows = csv.DictReader(io.StringIO(lzma.decompress(packed).decode()))
    return {
        arch_of(row["arch"]): {
            "accuracy": float(row["mean_acc"]),
            **{f"accuracy_{run}": float(row[f"test_acc_{run}"]) for run in (1, 2, 3)},
            "params": float(row["params"]),
            "macs": float(row["flops"]),
        }
        for row in rows
    }
