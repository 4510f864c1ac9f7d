"""Progressive shrinking: decisions that stay at their largest option until a step, and open from the largest down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supernet.checked import is_whole, shown
from supernet.config import read_openings
from supernet.errors import InputError, nearest
from supernet.space import Arch, Choice, SearchSpace
from supernet.training.sampling import ArchSampler


@dataclass(frozen=True)
class Opening:
    """When the smaller options of some decisions may be sampled (once-for-all, Cai et al., 2020, section 3.3).

    Attributes:
        name: the end of the decisions' names, such as "kernel".
        first: the step from which the second largest option is open; before, only the largest is.
        last: the step from which all are; in between they open one by one.

    Raises:
        InputError: steps below 0, or in descending order.
    """

    name: str
    first: int
    last: int

    def __post_init__(self) -> None:
        if not is_whole(self.first, 0) or not is_whole(self.last, self.first):
            raise InputError(f"{self}: first and last should be steps from 0, and last no earlier than first")

    def covers(self, choice: Choice) -> bool:
        """Returns whether a decision is one of these."""
        return choice.name == self.name or choice.name.endswith(f".{self.name}")

    def count(self, step: int, options: int) -> int:
        """Returns how many options are open at a step, out of the total."""
        if step < self.first:
            return 1
        if step >= self.last:
            return options
        return min(options, 2 + (options - 2) * (step - self.first) // (self.last - self.first))


def parse_openings(texts: Sequence[str], steps_per_epoch: int) -> list[Opening]:
    """Returns the openings that texts such as "kernel=2" or "expand=4:6" describe, in epochs.

    Raises:
        InputError: a text of another form, a name twice, or no steps.
    """
    if not is_whole(steps_per_epoch, 0):  # none where a batch is larger than the training split
        raise InputError(f"steps_per_epoch={shown(steps_per_epoch)} should be a number of steps")
    return [
        Opening(name, round(first * steps_per_epoch), round(last * steps_per_epoch))
        for name, first, last in read_openings(texts)
    ]


def opened(
    space: SearchSpace, openings: Sequence[Opening], create: Callable[[SearchSpace], ArchSampler]
) -> ArchSampler:
    """Returns a sampler whose architectures use only options that are open at their step.

    It is a function of the step alone, as every sampler. An architecture that a step draws twice is trained once.

    Args:
        space: the search space.
        openings: when its decisions open; others are open from the start.
        create: makes the sampler of a space with fewer options.

    Raises:
        InputError: an opening of no decision, or of one whose options are not ordered.
    """
    for opening in openings:
        covered = [choice for choice in space.choices if opening.covers(choice)]
        if not covered:
            names = sorted({choice.name.rpartition(".")[2] for choice in space.choices})
            raise InputError(f"no decision of {space.name!r} is named {opening.name!r}; {nearest(opening.name, names)}")
        if any(not choice.ordered for choice in covered):
            raise InputError(
                f"the options of {covered[0].name!r} in {space.name!r} are not ordered, so there is no largest one to "
                "begin with; leave it open"
            )
    samplers: dict[tuple[int, ...], ArchSampler] = {}

    def counts(step: int) -> tuple[int, ...]:
        return tuple(
            min([len(choice.options), *(o.count(step, len(choice.options)) for o in openings if o.covers(choice))])
            for choice in space.choices
        )

    def sample(step: int) -> tuple[Arch, ...]:
        key = counts(step)
        if key not in samplers:
            options = {c.name: tuple(c.options[-count:]) for c, count in zip(space.choices, key, strict=True)}
            samplers[key] = create(space.restrict(options))
        return tuple(dict.fromkeys(space.canonical(arch) for arch in samplers[key](step)))

    return sample
