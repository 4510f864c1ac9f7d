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


SAMPLERS = {"uniform": uniform}


def create_sampler(name: str, space: SearchSpace, seed: int = 0) -> ArchSampler:
    """The sampler of that name. Raises `InputError` with the nearest name if there is none."""
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler {name!r}; {nearest(name, SAMPLERS)}")
    return SAMPLERS[name](space, seed)
