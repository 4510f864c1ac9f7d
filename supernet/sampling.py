"""Which architectures a training step uses: pure functions of the step, so that ranks and resumed runs agree."""

from collections.abc import Callable

from supernet.errors import InputError, nearest
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace

ArchSampler = Callable[[int], tuple[Arch, ...]]


def uniform(space: SearchSpace, seed: int = 0) -> ArchSampler:
    """One architecture per step, every decision drawn uniformly (SPOS, §3.3), in normal form."""

    def sample(step: int) -> tuple[Arch, ...]:
        return (space.normal_form(space.sample(generator(seed, "arch", step))),)

    return sample


def fair(space: SearchSpace, seed: int = 0) -> ArchSampler:
    """Strict fairness (FairNAS): m architectures per step in which every option of every choice occurs exactly once.

    Per step and choice the options are permuted anew; the k-th architecture takes the k-th of each. Gradients of the m
    paths are summed and applied in one update. There are no normal forms here: they would break the count.

    Raises:
        InputError: choices with different numbers of options, or with conditions; `balanced` takes those.
    """
    counts = {len(choice.options) for choice in space.choices}
    conditional = [choice.name for choice in space.choices if choice.when is not None]
    if len(counts) > 1 or conditional:
        why = f"{conditional[0]!r} is conditional" if conditional else f"they have {sorted(counts)} options"
        raise InputError(
            f"strict fairness needs unconditional choices with equally many options, but in space {space.name!r} "
            f"{why}; use the sampler 'balanced'"
        )
    return balanced(space, seed)


def balanced(space: SearchSpace, seed: int = 0) -> ArchSampler:
    """As many architectures per step as the largest choice has options; smaller choices cycle through theirs.

    Within a step the options of one choice occur equally often up to one; a conditional choice is counted in every
    architecture, active or not.
    """
    passes = max((len(choice.options) for choice in space.choices), default=1)

    def sample(step: int) -> tuple[Arch, ...]:
        rng = generator(seed, "balanced", step)
        columns = []
        for choice in space.choices:
            n = len(choice.options)
            order = rng.sample(range(n), n)
            columns.append(rng.sample([order[i % n] for i in range(passes)], passes))
        return tuple(space.from_indices([column[k] for column in columns]) for k in range(passes))

    return sample


SAMPLERS = {"uniform": uniform, "fair": fair, "balanced": balanced}


def create_sampler(name: str, space: SearchSpace, seed: int = 0) -> ArchSampler:
    """The sampler of that name. Raises `InputError` with the nearest name if there is none."""
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler {name!r}; {nearest(name, SAMPLERS)}")
    return SAMPLERS[name](space, seed)
