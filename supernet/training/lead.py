"""An architecture that is trained alone at first, and whose weights all options then start from."""

from dataclasses import dataclass

from supernet.chain import Chain, Searchable, largest
from supernet.checked import checked_arguments
from supernet.cost import meta_copy
from supernet.errors import InputError, nearest
from supernet.space import Arch, SearchSpace, Value

MOST_OPTIONS = 64
"""More options of one choice than this are not compared."""


@dataclass(frozen=True)
class Lead:
    """An architecture that is trained alone at first, and whose weights all other options then start from.

    If every option starts from its own random weights, each path feeds the next unit different random features, and
    little is learnt until the options agree.

    Attributes:
        arch: the architecture trained alone in the first steps.
        steps: the number of these steps. Before the next one, every option becomes a copy of the one that `arch`
            chooses (`Searchable.copy_options`); larger kernels are padded with zeros.
    """

    arch: Arch
    steps: int


@checked_arguments
def create_lead(space: SearchSpace, option: str, steps: int) -> Lead:
    """Creates the lead that takes one option in every choice that has it, and the first option in the others.

    Raises:
        InputError: no choice has the option, or the lead would last less than a step.
    """
    if not any(option in choice.options for choice in space.choices):
        options = [str(value) for choice in space.choices for value in choice.options]
        raise InputError(f"no choice of {space.name!r} has the option {option!r}; {nearest(option, options)}")
    if steps < 1:
        raise InputError(f"the lead {option!r} of {space.name!r} trains for {steps} steps; set lead_epochs above 0")
    values = {c.name: option if option in c.options else c.options[0] for c in space.choices}
    return Lead(space.normal_form(space.canonical(values)), steps)


@checked_arguments
def common_lead(supernet: Chain, steps: int) -> Lead | None:
    """Returns the lead of the smallest options, if all options of a supernet can start as their copies.

    Without a lead such options begin alike, but each is then trained on its own, and their features part before they
    mean anything. Where an option has no weights there is none, since layers that have learnt together cannot be left
    out; nor where decisions are widths or depths of shared layers.

    Args:
        supernet: its weights are not read.
        steps: the number of steps of the lead; none for less than one.
    """
    if steps < 1 or not supernet.space.choices or supernet.weightless_options():
        return None
    values: dict[str, Value] = {}
    for name, (step, sub, layout) in zip(supernet.step_names, supernet.walk(largest(supernet.space)), strict=True):
        if not isinstance(step, Searchable) or not sub:
            continue
        choices = step.space.choices
        if len(choices) > 1 or choices[0].ordered or not 1 < len(choices[0].options) <= MOST_OPTIONS:
            return None
        archs = [step.space.canonical({choices[0].name: option}) for option in choices[0].options]
        sizes = [sum(parameter.numel() for parameter in step.active_parameters(arch, layout)) for arch in archs]
        smallest = archs[sizes.index(min(sizes))]
        try:
            meta_copy(step).copy_options(smallest)
        except InputError:
            return None
        values |= {f"{name}.{choice}": value for choice, value in smallest.items()}
    return Lead(supernet.space.normal_form(supernet.space.canonical(values)), steps)
