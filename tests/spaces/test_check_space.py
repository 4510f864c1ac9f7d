"""Negative controls: `check_space` fails, and says why, for supernets that break one property each."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.toy_spaces import TOY_SPACES, LooseCell, LooseConv, SlicedBlock
from supernet import create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import Chain, Hidden, Layout, Layouts, Part
from supernet.errors import InputError
from supernet.space import Arch, Value
from supernet.space.normal_form import Form
from supernet.testing import check_elements, check_layouts, check_memory, check_space, check_values

# -- building one defect into a toy space ---------------------------------------------------------------------------


def replaced(toy: str, step: str, kind: type[nn.Module]) -> Chain:
    """Returns the toy space with the steps of that name turned into a subclass of theirs."""
    chain = TOY_SPACES[toy]()
    for name, module in chain.steps:
        if name == step:
            assert issubclass(kind, type(module))
            module.__class__ = kind
    return chain


def steps_of(toy: str, **others: nn.Module) -> Chain:
    """Returns the toy space with some steps exchanged."""
    chain = TOY_SPACES[toy]()
    steps = [(name, others.get(name, module)) for name, module in chain.steps]
    return Chain("broken", steps, input_shape=chain.input_shape)


def with_form(form: Form) -> Chain:
    chain = TOY_SPACES["chain"]()
    return Chain("broken", chain.steps, input_shape=chain.input_shape, normal_form=form)


# -- materialize ------------------------------------------------------------------------------------------------------


class SharesStorage(ChoiceBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        return self._chosen(arch)


class SharesOneTensor(SlicedBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        block = super().materialize(arch, layout)
        block.first.bn.weight.data = self.full.first.bn.weight.data[: int(arch["mid"])]
        return block


class OtherWeights(ChoiceBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        block = super().materialize(arch, layout)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.mul_(1 + 1e-6)
        return block


class OtherOption(ChoiceBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        return copy.deepcopy(self.options["conv"])


class OtherStatistics(SlicedBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        block = super().materialize(arch, layout)
        block.second.bn.running_var.fill_(1.0)
        return block


class Unused(nn.Module):
    """Runs one module and holds another."""

    def __init__(self, used: nn.Module, spare: nn.Module) -> None:
        super().__init__()
        self.used, self.spare = used, spare

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


class HoldsUnused(ChoiceBlock):
    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        return Unused(super().materialize(arch, layout), copy.deepcopy(self.options["conv"]))


# -- out_layout -------------------------------------------------------------------------------------------------------


class WrongChannels(ChoiceBlock):
    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        return Layout(13, 2)


class WrongStride(ChoiceBlock):
    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        return Layout(12, 4)


class WrongWidth(SlicedBlock):
    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        assert isinstance(layout, Layout)
        return Layout(12, layout.stride)


class TwoStates(ChoiceBlock):
    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        return (super().out_layout(arch, layout),) * 2


class WrongIds(LooseCell):
    """The right number of states under other ids; the step after it does not look at them."""

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        actual = super().out_layout(arch, layout)
        return Layout(actual.channels, actual.stride, tuple(i + 1 for i in actual.ids))


class SumsStates(nn.Module):
    """Reads loose ends without caring which they are."""

    out_channels, stride = 6, 1

    def forward(self, state: Hidden | Tensor) -> Tensor:
        tensor = state.tensor if isinstance(state, Hidden) else state
        return tensor.unflatten(1, (-1, 6)).sum(1)


def wrong_ids() -> Chain:
    cell = LooseCell(6)
    cell.__class__ = WrongIds
    return Chain("broken", [("stem", ConvBNAct(3, 6)), ("cell", cell), ("sum", SumsStates())], input_shape=(3, 8, 8))


# -- active_parts -----------------------------------------------------------------------------------------------------


class ForgetsParameter(ChoiceBlock):
    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        yield from list(super().active_parts(arch, layout))[:-1]


class ClaimsParameter(ChoiceBlock):
    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        yield from super().active_parts(arch, layout)
        spare = self.options["mb" if arch["op"] == "conv" else "conv"]
        yield next(spare.parameters()), ()


class ClaimsWhole(SlicedBlock):
    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        yield from ((parameter, ()) for parameter, _ in super().active_parts(arch, layout))


class ForgetsElements(SlicedBlock):
    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        for parameter, index in super().active_parts(arch, layout):
            yield parameter, (slice(2), *index[1:])


class LooseForgets(LooseConv):
    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        yield from (
            (parameter, index) for parameter, index in super().active_parts(arch, layout) if parameter.ndim == 1
        )


# -- forward ----------------------------------------------------------------------------------------------------------


class RemembersArch(ChoiceBlock):
    """Uses the architecture of the call before, as supernets with a settable active subnet do."""

    last = Arch({"op": "conv"})

    def forward(self, state: Any, arch: Arch) -> Any:
        used, self.last = self.last, arch
        return super().forward(state, used)


class DependsOnCalls(ChoiceBlock):
    """Right for the first call of an architecture, different when it comes again after another."""

    def __init__(self, options: dict[str, nn.Module]) -> None:
        super().__init__(options)
        self.seen: list[Arch] = []

    def forward(self, state: Any, arch: Arch) -> Any:
        again = arch in self.seen[:-1]
        self.seen.append(arch)
        return super().forward(state, arch) * (1.5 if again else 1.0)


class WritesBuffer(ChoiceBlock):
    def __init__(self, options: dict[str, nn.Module]) -> None:
        super().__init__(options)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, state: Any, arch: Arch) -> Any:
        self.calls += 1
        return super().forward(state, arch)


def options() -> dict[str, nn.Module]:
    return {"conv": ConvBNAct(12, 12), "mb": ConvBNAct(12, 12, kernel=3)}


# -- source of plain modules ------------------------------------------------------------------------------------------


class KeepsNothing(nn.Module):
    stride, out_channels = 1, 12

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class KeepsAnother(KeepsNothing):
    """The attribute is not the argument."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.width = width + 1


# -- normal forms -----------------------------------------------------------------------------------------------------


def swaps(arch: Arch) -> dict[str, Value]:
    """Conv and mb exchanged: applied twice it is back."""
    return {"a.op": "mb" if arch["a.op"] == "conv" else "conv"}


def leaves(arch: Arch) -> dict[str, Value]:
    """No option of the choice."""
    return {"a.op": "pool"}


def invents(arch: Arch) -> dict[str, Value]:
    """No choice of the space."""
    return {"z.op": "conv"}


def widens(arch: Arch) -> dict[str, Value]:
    """Another number of channels, so certainly another network."""
    return {"b.width": 12}


def other_outputs() -> Chain:
    chain = TOY_SPACES["sliced"]()
    return Chain("broken", chain.steps[:-1], input_shape=chain.input_shape, normal_form=widens)


# -- the controls -----------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[Callable[[], Chain], str]] = {
    "shared storage": (lambda: replaced("chain", "b", SharesStorage), r"the subnet's b\.\S+ shares storage"),
    "one shared tensor": (
        lambda: replaced("sliced", "a", SharesOneTensor),
        r"subnet's a\.first\.bn\.weight shares storage",
    ),
    "other weights": (lambda: replaced("chain", "a", OtherWeights), "differs from supernet.subnet"),
    "other option": (lambda: replaced("chain", "a", OtherOption), "differs from supernet.subnet"),
    "other statistics": (lambda: replaced("sliced", "b", OtherStatistics), "differs from supernet.subnet"),
    "unused module": (
        lambda: replaced("chain", "c", HoldsUnused),
        r"the subnet holds c\.spare\.conv\.weight, which feeds nothing",
    ),
    "wrong channels": (
        lambda: replaced("chain", "a", WrongChannels),
        "before step 'b' the layout announces 13 channels, there are 12",
    ),
    "wrong stride": (
        lambda: replaced("chain", "a", WrongStride),
        "before step 'b' the layout announces stride 4, a side of 16 became 8",
    ),
    "wrong states": (
        lambda: steps_of("chain", c=TwoStates({"conv": nn.Conv2d(12, 16, 1)}), head=nn.Identity()),
        "the layout announces 2 states, there is one",
    ),
    "wrong ids": (wrong_ids, r"before step 'sum' the layout announces the states \(\d.*\), there are \(\d"),
    "forgotten parameter": (
        lambda: replaced("chain", "a", ForgetsParameter),
        "a.* has a gradient, but active_parameters",
    ),
    "claimed parameter": (
        lambda: replaced("chain", "a", ClaimsParameter),
        "a.* has no gradient, but active_parameters",
    ),
    "forgotten loose end": (
        lambda: replaced("loose", "collect", LooseForgets),
        "collect.bank.* has a gradient, but active_parameters",
    ),
    "forgotten elements": (
        lambda: replaced("sliced", "a", ForgetsElements),
        "a.full.* has gradients outside its active elements",
    ),
    "remembered arch": (
        lambda: replaced("chain", "a", RemembersArch),
        "differs from supernet.subnet|depends on what was evaluated before",
    ),
    "written buffer": (lambda: steps_of("chain", b=WritesBuffer(options())), "evaluation changed b.calls"),
    "form that swaps": (lambda: with_form(swaps), "is not idempotent"),
    "form with other outputs": (other_outputs, "normal form has outputs of other shapes"),
    "another argument": (
        lambda: steps_of("chain", b=KeepsAnother(12)),
        r"constructor expression builds another network: b\.conv",
    ),
    "lost argument": (
        lambda: steps_of("chain", b=KeepsNothing(12)),
        "KeepsNothing does not keep its constructor argument 'width'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_supernet_is_found(case: str) -> None:
    build, message = BROKEN[case]
    kind = InputError if case == "lost argument" else AssertionError
    with pytest.raises(kind, match=message):
        check_space(build(), archs=6)


def test_the_message_names_space_and_architecture() -> None:
    with pytest.raises(
        AssertionError, match=r'^toy-chain: .* \(architecture \{"a\.op": "\w+", "b\.op": "\w+", "c\.op": "\w+"\}\)$'
    ):
        check_space(replaced("chain", "a", OtherWeights), archs=2)


def test_a_step_that_cannot_read_every_option_is_named() -> None:
    widths = ChoiceBlock({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 16, 1)})
    chain = Chain("toy-chain", [("a", widths), ("head", ClassifierHead(8, 10, hidden=4))])
    with pytest.raises(AssertionError, match=r"^toy-chain: step 'head' cannot read .* \(architecture .*\"b\"\}\)$"):
        check_space(chain)


def test_a_result_that_depends_on_earlier_ones_is_found() -> None:
    chain = steps_of("chain", b=DependsOnCalls(options()))
    archs = list(chain.space.enumerate())[::3]
    with pytest.raises(AssertionError, match="broken: a result depends on what was evaluated before"):
        check_memory(chain, archs, torch.ones(2, *chain.input_shape))


def test_a_layout_read_by_a_later_slice_is_named() -> None:
    """The step after it cannot be materialised; the announcement is what is wrong."""
    with pytest.raises(AssertionError, match="before step 'b' the layout announces 12 channels, there are"):
        check_space(replaced("sliced", "a", WrongWidth))


def test_elements_that_feed_nothing_are_found() -> None:
    with pytest.raises(AssertionError, match=r"a\.full\."):
        check_space(replaced("sliced", "a", ClaimsWhole))


def test_a_part_that_runs_only_in_training_is_not_idle() -> None:
    """One operation on both sides of a block is two in the subnet: unequal counts, so that NaN must find its way."""
    chain = create_supernet(
        "nasnet-small", ops=("conv1",), filters=2, input_size=12, blocks=1, auxiliary=True, auxiliary_channels=(2, 2)
    )
    values = {"left": 0, "right": 0, "left_op": "conv1", "right_op": "conv1"}
    values_of_cells = {
        f"{cell}.block0.{name}": value for cell in ("normal", "reduce") for name, value in values.items()
    }
    arch = chain.space.canonical({**chain.space.sample(random.Random(0)), **values_of_cells})
    x = torch.randn(2, *chain.input_shape)
    assert sum(p.numel() for p in chain.active_parameters(arch)) < sum(
        p.numel() for p in chain.subnet(arch).parameters()
    )
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    check_elements(chain, arch, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in chain.state_dict().items())


@pytest.mark.parametrize(("padding", "side"), [(0, 3), (1, 4)])
def test_a_stem_without_padding_may_lose_a_pixel(padding: int, side: int) -> None:
    """From 8 pixels at stride 2; a map that is larger than announced, or two pixels smaller, is an error."""
    stem = ConvBNAct(3, 4, kernel=3, stride=2)
    stem.conv.padding = (padding, padding)
    chain = Chain("stem", [("stem", stem)], input_shape=(3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert chain(x, Arch()).shape[-1] == side
    check_layouts(chain, Arch(), x)
    stem.conv.kernel_size = (7, 7)
    stem.conv.weight = nn.Parameter(torch.randn(4, 3, 7, 7))
    stem.conv.padding = (0, 0)
    with pytest.raises(AssertionError, match="announces stride 2"):
        check_layouts(chain, Arch(), x)


@pytest.mark.parametrize("form", [leaves, invents])
def test_a_normal_form_outside_the_space_is_found(form: Form) -> None:
    chain = with_form(form)
    with pytest.raises(AssertionError, match=r"the normal form of .* leaves the space"):
        check_values(chain.space, [chain.space.sample(random.Random(0))])
