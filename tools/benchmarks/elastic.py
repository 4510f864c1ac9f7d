"""What remains of a trained network of timm when it is cut without training, under each batch-norm policy?

    python tools/benchmarks/elastic.py lite0.pth photos --target daisy=985

The photographs lie in one folder per kind. Half of the tested ones are of the target's kind, whose class in ImageNet is
given, and the others are spread over the other kinds; the calibration images are others of all kinds. The table says
per cut and policy: MACs, accuracy on the target's images, agreement with the full network in the best class, and the
divergence from it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from supernet.checked import Checked, Count, FilePath, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.chain import Chain
    from supernet.data.images import Images
    from supernet.space import Arch

ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Cuts(Checked):
    """Compare batch-norm policies on cuts of a trained network."""

    weights: Annotated[FilePath, tyro.conf.Positional]
    """File of the network's weights."""
    photos: Annotated[FilePath, tyro.conf.Positional]
    """Folder with a folder of photographs per kind, at any depth."""
    model: Text = "tf_efficientnet_lite0"
    """Name of the network in timm."""
    target: Text = "daisy=985"
    """A kind of photographs and its class among the network's."""
    images: Count = 180
    """Photographs that are tested."""
    calibration: Count = 128
    """Photographs that recalibrate or match the batch norms."""
    draws: Count = 3
    """Draws of calibration photographs; the tested ones stay the same."""
    size: Count = 224
    """Pixels."""
    expansions: tuple[int, ...] = (3, 4)
    """Expansions that are compared."""


def run() -> None:
    args = parse(Cuts, __doc__)

    import torch

    from supernet.cost import CostTable
    from supernet.evaluate import Inherit, Matched, Recalibrate, SharedWeights
    from supernet.spaces import create_supernet
    from supernet.spaces.pretrained import load_pretrained

    torch.set_num_threads(1)
    kind, _, number = args.target.partition("=")
    if not number.isdecimal():
        raise InputError(f"target={args.target!r} should be KIND=CLASS, such as daisy=985")
    supernet = create_supernet(
        "elastic", model=args.model, input_size=args.size, kernels=(3,), expansions=args.expansions, drop=1
    )
    load_pretrained(supernet, args.weights)
    supernet.eval()
    tested, rest = chosen(args.photos, kind, args.images)
    test, cost = read(tested, args.size), CostTable(supernet)
    wanted = torch.tensor([path.parent.name == kind for path in tested])
    cuts = dict(architectures(supernet, args.expansions))
    full = logits(supernet.subnet(cuts["full"]), test)
    rows = []
    for name, arch in cuts.items():
        for policy in (Inherit(), Recalibrate(args.calibration // 32, 32), Matched(args.calibration // 32, 32)):
            figures_of_draws = []
            for draw in range(1 if isinstance(policy, Inherit) else args.draws):
                calibration = read(random.Random(draw).sample(rest, args.calibration), args.size)
                scorer = SharedWeights(supernet, calibration, test, bn=policy)
                figures_of_draws.append(figures(logits(scorer.subnet(arch), test), full, wanted, int(number)))
            columns = [" / ".join(f"{value:.3f}" for value in column) for column in zip(*figures_of_draws, strict=True)]
            rows.append((name, f"{cost(arch)['macs'] / 1e6:.1f}M", type(policy).__name__, *columns))
            print(*rows[-1], sep=" | ", flush=True)
    head = ("cut", "MACs", "batch norm", f"{kind} top-1", "agrees", f"agrees, not {kind}", "KL")
    print_table(f"{args.model}, {len(tested)} photographs, {int(wanted.sum())} of them {kind}", head, rows)


def chosen(folder: Path, kind: str, number: int) -> tuple[list[Path], list[Path]]:
    """The photographs that are tested and the others, drawn with a seed of their own.

    Raises:
        InputError: too few photographs of the kind, or of the others.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    random.Random("tested").shuffle(paths)
    of_kind = [path for path in paths if path.parent.name == kind]
    others = [path for path in paths if path.parent.name != kind]
    half = number // 2
    if len(of_kind) <= half or len(others) <= number - half:
        raise InputError(f"{folder} has {len(of_kind)} photographs of {kind!r} and {len(others)} others; lower images")
    return of_kind[:half] + others[: number - half], of_kind[half:] + others[number - half :]


def read(paths: list[Path], size: int) -> "Images":
    """Photographs, resized to 8/7 of the size and cropped to their middle, normalised by 0.5."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    from supernet.data.images import Images

    larger = round(size * 8 / 7)
    prepare = v2.Compose([v2.PILToTensor(), v2.Resize(larger, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)])
    pixels = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    half = torch.full((3, 1, 1), 0.5)
    return Images(pixels, torch.zeros(len(paths), dtype=torch.long), half, half)


def architectures(supernet: "Chain", expansions: tuple[int, ...]) -> "Iterator[tuple[str, Arch]]":
    """Yields uniform cuts by name, the full network first."""
    from supernet.chain import largest

    full = largest(supernet.space)

    def cut(expand: int | None = None, *, kernel: bool = False, depth: bool = False) -> "Arch":
        values = dict(full)
        for choice in supernet.space.choices:
            if choice.name.endswith("expand") and expand in choice.options:
                values[choice.name] = expand or 0
            elif (kernel and choice.name.endswith("kernel")) or (depth and choice.name.endswith("depth")):
                values[choice.name] = choice.options[0]
        return supernet.space.canonical(values)

    yield "full", full
    yield "d -1", cut(depth=True)
    yield "k 5->3", cut(kernel=True)
    for expansion in sorted(expansions, reverse=True):
        yield f"e {expansion}", cut(expansion)
    yield f"e {expansions[-1]}, k 3, d -1", cut(expansions[-1], kernel=True, depth=True)


def logits(network: "object", images: "Images") -> "Tensor":
    """Outputs of a network in eval mode, (N, classes)."""
    import torch

    assert callable(network)
    with torch.inference_mode():
        return torch.cat([network(x.contiguous(memory_format=torch.channels_last)) for x, _ in images.batches(20)])


def figures(output: "Tensor", full: "Tensor", wanted: "Tensor", number: int) -> tuple[float, ...]:
    """Accuracy on the wanted images, agreement with the full network on all and on the others, mean divergence."""
    from torch.nn.functional import kl_div

    top, best = output.argmax(1), full.argmax(1)
    divergence = kl_div(output.log_softmax(1), full.log_softmax(1), reduction="batchmean", log_target=True)
    same = (top == best).float()
    return (
        float((top[wanted] == number).float().mean()),
        float(same.mean()),
        float(same[~wanted].mean()),
        float(divergence),
    )


if __name__ == "__main__":
    main(run)
