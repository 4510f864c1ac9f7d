"""The resolution of images as a decision: the first step of a chain, which resizes them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional

from supernet.chain import Layout, Layouts, Part, Searchable
from supernet.checked import is_whole, shown
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

STEP = "input"
"""The name of the step, whose decision is `input.resolution`."""


class Resize(nn.Module):
    """Resizes images to a square, bilinearly with antialiasing; images of that size pass as they are.

    Shapes: (N, channels, H, W) to (N, channels, size, size).
    """

    stride = 1

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size, self.out_channels = channels, size, channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the resized images."""
        if x.shape[2] == self.size and x.shape[3] == self.size:
            return x
        sides = (self.size, self.size)
        return functional.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)


class ElasticResolution(Searchable):
    """Resizes the images of a batch to the chosen size (decision `resolution`), in pixels of a side.

    Args:
        channels: the number of image channels.
        sizes: options, ascending; the last is the size of the images.

    Raises:
        InputError: no sizes, or some that do not ascend.
    """

    timed = False

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        if not sizes or list(sizes) != sorted(set(sizes)) or not all(is_whole(size, 1) for size in sizes):
            raise InputError(
                f"sizes={shown(sizes)} should be pixels of a side, ascending; the last is that of the images"
            )
        self.channels, self.largest = channels, max(sizes)
        self.space = SearchSpace("elastic-resolution", [Choice("resolution", tuple(sizes), ordered=True)])

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to (N, C, resolution, resolution)."""
        out: Tensor = Resize(self.channels, int(arch["resolution"]))(state)
        return out

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the layout with as many pixels of the images per pixel as the size leaves, maybe a fraction."""
        assert isinstance(layout, Layout)
        return Layout(layout.channels, layout.stride * self.largest / int(arch["resolution"]))

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `Resize`."""
        return Resize(self.channels, int(arch["resolution"]))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields nothing: there is nothing to train."""
        return iter(())


def resolution_step(channels: int, resolutions: Sequence[int], size: int) -> list[tuple[str, nn.Module]]:
    """Returns the first step of a chain for images of `size` pixels, or nothing if there is nothing to choose.

    Args:
        channels: the number of image channels.
        resolutions: options below `size`, which is always one.
        size: the size of the images.

    Raises:
        InputError: a resolution that is not below the size of the images.
    """
    wrong = [pixels for pixels in resolutions if not 0 < pixels <= size or int(pixels) != pixels]
    if wrong:
        raise InputError(
            f"resolutions={tuple(resolutions)} should be whole numbers of pixels up to {size}, the size of the images, "
            f"and {wrong[0]} is not; raise input_size (data.size), or leave it out"
        )
    sizes = sorted({*map(int, resolutions), size})
    return [(STEP, ElasticResolution(channels, sizes))] if len(sizes) > 1 else []


def without_resize(network: nn.Module) -> tuple[nn.Module, int | None]:
    """Returns a network without the step that resizes its images, and the size of images that it then expects.

    None in place of the size, and the network as it is, if it has no such step. The weights are shared.
    """
    parts = list(network.named_children()) if type(network) is nn.Sequential else []
    if not parts or parts[0][0] != STEP or not isinstance(parts[0][1], Resize):
        return network, None
    rest = nn.Sequential(OrderedDict(parts[1:])).train(network.training)
    return rest, parts[0][1].size
