"""Residual blocks whose kernel and middle width are searched, as in once-for-all (Cai et al., 2020)."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.mobile import ConvNormAct, DropPath, SqueezeExcite
from supernet.blocks.plain import Residual
from supernet.blocks.used_layer import UsedLayer
from supernet.blocks.vit import ElasticViTBlock
from supernet.chain import Layout, Layouts, Part, Searchable, parameters_of
from supernet.chain.copying import copy_module
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value


class ElasticMBConv(Searchable):
    """A sequence of layers, with or without a shortcut, whose middle channels and kernel are searched.

    Architectures use the leading middle channels (decision `expand`) and the central taps of the largest kernels
    (decision `kernel`). With `matrices` the taps of a smaller kernel are a linear function of the central taps of the
    next larger one, the same for all channels, which begins as the identity (Cai et al., 2020, section 3.3; the size of
    a matrix is that of the smaller kernel's taps).

    Args:
        layers: name to `ConvNormAct` (dense or depthwise) or `SqueezeExcite`, at their largest width, in order.
        searched: the names of the convolutions whose output channels are the searched ones; they follow one another,
            with a `SqueezeExcite` among or after them that scales these channels.
        mids: option of `expand` to the number of middle channels, ascending; no decision for fewer than two options.
        squeezes: option of `expand` to the hidden channels of the `SqueezeExcite`; all of them if empty.
        kernels: options of `kernel`, ascending, the last of which is the largest kernel of the layers; no decision for
            fewer than two options.
        matrices: whether smaller kernels are linear functions of larger ones, in place of their centre.
        decision: the name of the decision on the middle channels.
        shortcut: what is added to the output of the layers, such as `nn.Identity()` or a projection; it stays whole.
        act: whether a ReLU follows the sum.
        drop_path: probability with which the layers beside a shortcut are left out in training, per image.

    Raises:
        InputError: the layers and options contradict each other.
    """

    def __init__(
        self,
        layers: Mapping[str, ConvNormAct | SqueezeExcite],
        *,
        searched: Collection[str] = (),
        mids: Mapping[Value, int] | None = None,
        squeezes: Mapping[Value, int] | None = None,
        kernels: Sequence[int] = (),
        matrices: bool = False,
        decision: str = "expand",
        shortcut: nn.Module | None = None,
        act: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = nn.ModuleDict(layers)
        self.searched, self.mids, self.squeezes = tuple(searched), dict(mids or {}), dict(squeezes or {})
        self.kernels, self.decision = tuple(kernels), decision
        self.shortcut, self.act, self.drop_path = shortcut, act, drop_path
        convs = {name: layer for name, layer in layers.items() if isinstance(layer, ConvNormAct)}
        self.out_channels = [*convs.values()][-1].out_channels
        self.stride = 1
        for layer in convs.values():
            self.stride *= layer.stride
        self.kernel = max(layer.kernel for layer in convs.values())
        self.mid = max((convs[name].out_channels for name in self.searched), default=0)
        self._check(convs)
        self.matrices = nn.ParameterDict()
        for size in self.kernels[:-1] if matrices else ():
            self.matrices[str(size)] = nn.Parameter(torch.eye(size**2).view(size, size, size, size))
        choices = []
        if len(self.kernels) > 1:
            choices.append(Choice("kernel", self.kernels, ordered=True))
        if len(self.mids) > 1:
            choices.append(Choice(decision, tuple(self.mids), ordered=True))
        self.space = SearchSpace("elastic-mbconv", choices)

    def _check(self, convs: Mapping[str, ConvNormAct]) -> None:
        for name, layer in convs.items():
            if layer.groups not in (1, layer.out_channels):
                raise InputError(f"{name} has {layer.groups} groups; give a dense or a depthwise convolution")
        if self.mids and max(self.mids.values()) != self.mid:
            raise InputError(f"mids={self.mids} should end with the {self.mid} channels of {', '.join(self.searched)}")
        if self.squeezes and self.squeezes.keys() != self.mids.keys():
            raise InputError(f"squeezes={self.squeezes} should have the options of mids={self.mids}")
        if self.kernels and (self.kernels[-1] != self.kernel or any(size % 2 == 0 for size in self.kernels)):
            raise InputError(f"kernels={self.kernels} should be odd and end with {self.kernel}, that of the layers")

    # -- what an architecture uses ------------------------------------------------------------------------------------

    def _layers(self, arch: Arch, before: int) -> Iterator[UsedLayer]:
        """Yields the layers in order, for an input of `before` channels."""
        kernel = int(arch.get("kernel", self.kernel))
        option = arch.get(self.decision)
        mid = self.mid if option is None else self.mids[option]
        for name, layer in self.body.items():
            if isinstance(layer, SqueezeExcite):
                hidden = self.squeezes[option] if self.squeezes and option is not None else layer.hidden
                yield UsedLayer(name, layer, before, hidden)
                continue
            assert isinstance(layer, ConvNormAct)
            makes = mid if name in self.searched else layer.out_channels
            used = kernel if layer.kernel == self.kernel else layer.kernel
            yield UsedLayer(name, layer, before, makes, used)
            before = makes

    def _steps_down(self, kernel: int) -> list[int]:
        """Returns the sizes between the largest kernel and `kernel`, descending, `kernel` included."""
        return [size for size in reversed(self.kernels) if kernel <= size < self.kernel]

    def _shrinks(self, used: UsedLayer) -> list[int]:
        """Returns the sizes through which matrices make the kernel of a layer; empty if they do not."""
        largest = isinstance(used.layer, ConvNormAct) and used.layer.kernel == self.kernel
        return self._steps_down(used.kernel) if self.matrices and largest else []

    def _taps(self, used: UsedLayer) -> int:
        """Returns the size of the centre of the largest kernel that the kernel in use is made from."""
        return self._shrinks(used)[0] if self._shrinks(used) else used.kernel

    def _weight(self, used: UsedLayer) -> Tensor | None:
        """Returns the weight that matrices make, (makes, reads or 1, kernel, kernel); None for a layer without them."""
        sizes = self._shrinks(used)
        if not sizes:
            return None
        weight = used.weight(taps=sizes[0])
        for size in sizes:
            margin = (weight.shape[-1] - size) // 2
            weight = weight[..., margin : margin + size, margin : margin + size] if margin else weight
            matrix = self.matrices[str(size)].view(size**2, size**2)
            weight = functional.linear(weight.reshape(-1, size**2), matrix).view(*weight.shape[:2], size, size)
        return weight

    # -- the contract -------------------------------------------------------------------------------------------------

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        x = state
        for used in self._layers(arch, state.shape[1]):
            x = used.run(x, self._weight(used))
        if self.shortcut is None:
            return x
        if self.drop_path and self.training:
            x = DropPath(self.drop_path)(x)
        x = x + self.shortcut(state)
        return functional.relu(x) if self.act else x

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the same for every architecture."""
        assert isinstance(layout, Layout)
        return Layout(self.out_channels, layout.stride * self.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns an `nn.Sequential` of the layers under their names, in a `Residual` if there is a shortcut."""
        assert isinstance(layout, Layout)
        body: OrderedDict[str, nn.Module] = OrderedDict()
        for used in self._layers(arch, layout.channels):
            body[used.name] = used.copied(self._weight(used))
        if self.shortcut is None:
            return nn.Sequential(body)
        if self.drop_path:
            body["drop_path"] = DropPath(self.drop_path)
        return Residual(nn.Sequential(body), copy_module(self.shortcut), act=self.act)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels and central taps in use, and the rows of the matrices that make these taps."""
        assert isinstance(layout, Layout)
        for used in self._layers(arch, layout.channels):
            yield from used.parts(taps=self._taps(used))
        if self.matrices:
            down = self._steps_down(int(arch.get("kernel", self.kernel)))
            for size, smaller in pairwise([*down, 0]):
                margin = (size - smaller) // 2 if smaller else 0
                rows = slice(margin, size - margin)
                yield self.matrices[str(size)], (rows, rows) if margin else ()
        if self.shortcut is not None:
            yield from parameters_of([self.shortcut])

    # -- the order of channels ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def sort_channels(self, keep: Iterable[Value] = ()) -> None:
        """Sorts the middle channels by importance, most important first; the largest network computes the same.

        The importance of a channel is the sum of the absolute weights with which the next layer reads it; then the
        hidden channels of a `SqueezeExcite` that loses some are sorted likewise (once-for-all, before its width
        phases).

        Args:
            keep: options of the decision whose sets of channels stay as they are: channels are sorted within them only.
        """
        if len(self.mids) < 2:
            return
        bounds = [0, *sorted({self.mids[option] for option in keep} - {self.mid}), self.mid]
        start, *_ = (number for number, name in enumerate(self.body) if name in self.searched)
        run: list[nn.Module] = []  # layers with the same channels in the same order
        for name, layer in [*self.body.items()][start:]:
            if run and isinstance(layer, ConvNormAct) and layer.groups == 1:
                importance = layer.conv.weight.abs().sum(dim=(0, 2, 3))
                order = torch.cat([low + _descending(importance[low:high]) for low, high in pairwise(bounds)])
                _take(layer.conv.weight, order, 1)
                for part in run:
                    self._reorder(part, order)
                run = []
                if name not in self.searched:
                    return
            run.append(layer)

    def _reorder(self, layer: nn.Module, order: Tensor) -> None:
        """Reorders the output channels of a convolution, or the channels of a `SqueezeExcite`."""
        if isinstance(layer, SqueezeExcite):
            _take(layer.reduce.weight, order, 1)
            _take(layer.expand.weight, order, 0)
            _take(layer.expand.bias, order, 0)
            self._sort_hidden(layer)
            return
        for tensor in layer.state_dict().values():
            if tensor.ndim:
                _take(tensor, order, 0)

    def _sort_hidden(self, layer: SqueezeExcite) -> None:
        if len(set(self.squeezes.values())) < 2:
            return
        order = _descending(layer.expand.weight.abs().sum(dim=(0, 2, 3)))
        _take(layer.reduce.weight, order, 0)
        _take(layer.reduce.bias, order, 0)
        _take(layer.expand.weight, order, 1)


def _descending(values: Tensor) -> Tensor:
    return values.argsort(descending=True, stable=True)


def _take(tensor: Tensor | None, order: Tensor, dim: int) -> None:
    """Reorders one dimension in place."""
    if tensor is not None:
        tensor.copy_(tensor.index_select(dim, order))


def sort_channels(supernet: nn.Module, keep: Iterable[Value] = ()) -> None:
    """Sorts the middle channels of every `ElasticMBConv`, and heads and perceptrons of every `ElasticViTBlock`.

    Outputs of the largest network change by rounding only, since sums are taken in another order.

    Args:
        supernet: changed in place.
        keep: options of `expand` whose channels stay theirs; for once-for-all's second width phase `(4,)`, after a
            first phase with `()`.
    """
    kept = tuple(keep)
    for module in supernet.modules():
        if isinstance(module, ElasticMBConv):
            module.sort_channels([option for option in kept if option in module.mids])
        elif isinstance(module, ElasticViTBlock):
            module.sort_channels()
