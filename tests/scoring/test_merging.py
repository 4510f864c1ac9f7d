"""Steps take several small batches at once where that changes no bit of a score, and each alone where it would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from helpers.scoring_cases import DropoutHead, random_images, randomized_norms
from supernet import Chain
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ConvBNAct
from supernet.scoring.batch_norm import BatchStatistics, Recalibrate
from supernet.scoring.merging import CannotMergeError, Held, held, merged
from supernet.scoring.prefix import PrefixSharing
from supernet.scoring.shared_weights import SharedWeights
from supernet.scoring.trie import Trie


class Counting(nn.Module):
    """A step that notes the images of each of its calls, also those of its copies."""

    stride, out_channels = 1, 6
    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return x + 1


class MixesImages(Counting):
    """A block that subtracts the mean of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean(0)


class OwnStatistics(Counting):
    """A block that passes its input through a batch norm without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(
            super().forward(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.norm.training
        )


class NormTwice(Counting):
    """A block that passes its input through one batch norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        once: Tensor = self.norm(super().forward(x))
        twice: Tensor = self.norm(once * 2)
        return twice


class OneSize(Counting):
    """A block that takes batches of 8 images only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(8, 6, 8, 8) * 2


def chain_of(step: nn.Module) -> Chain:
    torch.manual_seed(0)
    convs = {"one": ConvBNAct(6, 6), "three": ConvBNAct(6, 6, kernel=3), "five": ConvBNAct(6, 6, kernel=5)}
    steps = [("stem", ConvBNAct(3, 6)), ("a", ChoiceBlock(convs)), ("b", step), ("c", ConvBNAct(6, 6, kernel=3))]
    return randomized_norms(Chain("chain", [*steps, ("head", DropoutHead())], input_shape=(3, 8, 8)))


@pytest.mark.parametrize(
    ("step", "calibrated", "evaluated"),
    [
        pytest.param(Counting, True, True, id="plain"),
        pytest.param(MixesImages, False, False, id="mixes images"),
        pytest.param(OneSize, False, False, id="takes one batch size"),
        pytest.param(OwnStatistics, False, True, id="functional batch norm"),
        pytest.param(NormTwice, False, True, id="one norm twice"),
    ],
)
def test_batches_pass_at_once_where_the_bits_are_those_of_each_alone(
    step: type[Counting], *, calibrated: bool, evaluated: bool
) -> None:
    net = chain_of(step())
    parts = random_images(64, 8, 1), random_images(64, 8, 2)
    archs = list(net.space.enumerate())
    largest = {"calibrate": 0, "evaluate": 0}

    @contextmanager
    def watch(phase: str) -> Iterator[None]:
        if phase not in largest:
            yield
            return
        Counting.calls.clear()
        yield
        largest[phase] = max(Counting.calls)

    evaluate = SharedWeights(net, *parts, bn=Recalibrate(8, 8), batch=8, watch=watch)
    first = evaluate(archs[:1])  # in which it is tried
    rows = first + evaluate(archs[1:])
    assert rows == SharedWeights(net, *parts, bn=Recalibrate(8, 8), batch=8, share=False)(archs)
    assert len({row["loss"] for row in rows}) == len(archs)
    assert largest == {"calibrate": 56 if calibrated else 8, "evaluate": 56 if evaluated else 8}


def test_batches_with_their_own_statistics_pass_at_once() -> None:
    net = chain_of(Counting())
    parts = random_images(64, 8, 1), random_images(64, 8, 2)
    archs = list(net.space.enumerate())
    Counting.calls.clear()
    rows = SharedWeights(net, *parts, bn=BatchStatistics(), batch=8)(archs)
    assert max(Counting.calls) == 56
    assert rows == SharedWeights(net, *parts, bn=BatchStatistics(), batch=8, share=False)(archs)


def test_inputs_larger_than_the_bound_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = chain_of(Counting())
    parts = random_images(64, 8, 1), random_images(64, 8, 2)
    archs = list(net.space.enumerate())
    for batches, bound in ((1, 1), (3, 3 * 8 * 6 * 8 * 8 * 4), (7, 2**20)):
        monkeypatch.setattr("supernet.scoring.prefix.MERGED_BYTES", bound)
        Counting.calls.clear()
        SharedWeights(net, *parts, bn=Recalibrate(8, 8), batch=8)(archs)
        assert max(Counting.calls) == 8 * batches


class Pair(NamedTuple):
    """A state of two maps and of nothing."""

    maps: tuple[Tensor, ...]
    more: dict[str, list[Tensor]]
    nothing: None = None


def pair(seed: int, images: int = 4) -> Pair:
    draws = torch.Generator().manual_seed(seed)
    return Pair((torch.randn(images, 3, 2, 2, generator=draws),), {"sizes": [torch.full((images, 2), seed)]})


def test_states_of_any_structure_are_merged_and_taken_apart() -> None:
    states = [held(pair(seed)) for seed in range(3)]
    whole = merged([merged(states[:2]), states[2]])
    assert (whole.batches, whole.images, type(whole.state)) == (3, 4, Pair)
    assert whole.state.more["sizes"][0][:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for one, part in zip(states, whole.apart(), strict=True):
        assert torch.equal(part.state.maps[0], one.state.maps[0])
        assert part.state.nothing is None
        assert part.bytes == one.bytes


@pytest.mark.parametrize(
    "others",
    [
        [pair(1, images=3)],  # another number of images
        [torch.zeros(4, 3, 2, 2)],  # another structure
        [Pair((torch.zeros(4, 3, 2, 3),), {"sizes": [torch.zeros(4, 2)]})],  # another size
        [Pair((torch.zeros(4, 3, 2, 2),), {"shapes": [torch.zeros(4, 2)]})],  # another name
        [Pair((torch.zeros(4, 3, 2, 2),), {"sizes": []})],  # fewer tensors
    ],
)
def test_states_that_differ_are_not_merged(others: list[Any]) -> None:
    with pytest.raises(CannotMergeError):
        merged([held(pair(0)), *map(held, others)])
    with pytest.raises(CannotMergeError):
        Held((torch.zeros(8, 2), torch.zeros(7, 2)), images=4, batches=2).apart()


class MixesWide(Counting):
    """A block that mixes the images of a batch where the maps are wider than high."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.shape[3] > x.shape[2]
        return super().forward(x) - (x.mean(0) if wide else 0)


def test_batches_of_other_shapes_are_tried_again() -> None:
    """Detectors see batches of several formats, for which the kernels may differ."""
    net = chain_of(MixesWide())
    trie = Trie(net, [net.space.normal_form(arch) for arch in net.space.enumerate()])
    sharing = PrefixSharing(net)
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 8, width, generator=draws) for width in (8, 8, 8, 8, 12, 12, 12)]
    together: list[list[Tensor]] = [[] for _ in trie.paths]
    alone: list[list[Tensor]] = [[] for _ in trie.paths]
    sharing.outputs(trie, batches, lambda number, out: together[number].append(out))
    for batch in batches:
        PrefixSharing(net).outputs(trie, [batch], lambda number, out: alone[number].append(out))
    for outs, expected in zip(together, alone, strict=True):
        assert all(map(torch.equal, outs, expected))
