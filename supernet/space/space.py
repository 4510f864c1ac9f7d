"""Search spaces: named decisions that can be drawn, mutated, counted and composed.

Spaces compose by dotted prefix, so the space of a network is the union of the spaces of its steps, and a step receives
`arch.sub("stage1.block0")`.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ParamSpec, Self, TypeVar

from supernet.checked import arguments_explained, checked_arguments
from supernet.errors import InputError, nearest
from supernet.space.arch import Arch, Value
from supernet.space.choice import Choice, _choice_from_json, _choice_to_json
from supernet.space.normal_form import Form, NormalForm
from supernet.strict_json import parse_json

MOST_NORMAL_FORMS = 4096  # remembered per space, and as many architectures that are known to be canonical


P = ParamSpec("P")
T = TypeVar("T")


def _explained(method: Callable[P, T]) -> Callable[P, T]:
    """Names what is wrong with the arguments of a method of `SearchSpace` that fails: their types, or their decisions.

    Nothing is checked before, since searchers call these methods thousands of times a second.
    """
    method = arguments_explained(method)

    @functools.wraps(method)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except InputError:
            raise
        except (LookupError, ValueError):  # a decision that is missing or unknown, or a value of none of its options
            arguments = [*list(args), *kwargs.values()]
            space = arguments.pop(0)
            for arch in arguments:
                if isinstance(arch, Mapping) and isinstance(space, SearchSpace):
                    space.canonical(arch)
            raise

    return explained


@dataclass(frozen=True, init=False)
class SearchSpace:
    """An ordered list of decisions and, if different values can describe the same network, a normal form.

    Args:
        name: shown in messages and part of the digest.
        choices: the decisions; the parent of a conditional decision must come before it.
        normal_form: a module-level function from `Arch` to the values of one representative per network. It must be
            idempotent and may have a `version` attribute (an integer).

    Raises:
        InputError: two choices have the same name, or a condition refers to an unknown or later parent or to a value
            that it does not have.
    """

    name: str
    choices: tuple[Choice, ...]
    forms: tuple[tuple[str, NormalForm], ...]
    _by_name: dict[str, Choice] = field(repr=False, compare=False)
    _resolved: list[tuple[str, Form]] | None = field(repr=False, compare=False)
    _normal_forms: dict[str, Arch] = field(repr=False, compare=False)
    _canonical: dict[str, Arch] = field(repr=False, compare=False)

    def __init__(self, name: str, choices: Sequence[Choice] = (), normal_form: Form | None = None) -> None:
        if not isinstance(choices, Iterable) or not all(isinstance(choice, Choice) for choice in choices):
            raise InputError(f"space {name!r} takes a sequence of choices, such as [Choice('depth', (1, 2))]")
        forms = (("", NormalForm.of(normal_form)),) if normal_form is not None else ()
        self._set(name, choices, forms)

    def _set(self, name: str, choices: Sequence[Choice], forms: Sequence[tuple[str, NormalForm]]) -> None:
        if not isinstance(name, str):
            raise InputError(f"the name of a space is a text, not {name!r}")
        by_name: dict[str, Choice] = {}
        for choice in choices:
            if choice.name in by_name:
                raise InputError(f"space {name!r} has two choices named {choice.name!r}; names must be unique")
            if choice.when is not None:
                _check_condition(name, choice, by_name)
            by_name[choice.name] = choice
        fields = {
            "name": name,
            "choices": tuple(choices),
            "forms": tuple(forms),
            "_by_name": by_name,
            "_resolved": None,
            "_normal_forms": {},
            "_canonical": {},
        }
        for attribute, value in fields.items():
            object.__setattr__(self, attribute, value)

    @classmethod
    def _of(cls, name: str, choices: Sequence[Choice], forms: Sequence[tuple[str, NormalForm]]) -> "SearchSpace":
        space = cls.__new__(cls)
        space._set(name, choices, forms)
        return space

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resolved": None, "_normal_forms": {}, "_canonical": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and every copy of a searchable module would copy all choices

    def __getitem__(self, name: str) -> Choice:
        """Returns the choice of that name; an `InputError` offers the nearest one."""
        if not isinstance(name, str) or name not in self._by_name:
            raise InputError(f"space {self.name!r} has no choice {name!r}; {nearest(name, self._by_name)}")
        return self._by_name[name]

    def __len__(self) -> int:
        return len(self.choices)

    def __contains__(self, arch: object) -> bool:
        if not isinstance(arch, Arch):
            return False
        try:
            return self.canonical(arch) == arch
        except InputError:
            return False

    def _complete(self, pick: Callable[[Choice], Value]) -> Arch:
        """Returns an architecture: `pick` gives the values of active choices, the others take their first option."""
        values: dict[str, Value] = {}
        inactive: set[str] = set()
        for choice in self.choices:
            if choice.off(values, inactive):
                inactive.add(choice.name)
                values[choice.name] = choice.options[0]
            else:
                values[choice.name] = pick(choice)
        return Arch(values)

    @_explained
    def active(self, arch: Mapping[str, Value]) -> tuple[Choice, ...]:
        """Returns the choices whose conditions hold in `arch`, in the order of the space."""
        active: list[Choice] = []

        def record(choice: Choice) -> Value:
            active.append(choice)
            return arch[choice.name]

        self._complete(record)
        return tuple(active)

    def canonical(self, values: Mapping[str, Value]) -> Arch:
        """Returns the architecture with these values; inactive choices take their first option.

        Results for an `Arch` are remembered, since every part of a search checks the architectures that it is given.

        Raises:
            InputError: the space has no such name, an active choice is missing, or a value is not an option.
        """
        if type(values) is not Arch:
            return self._find_canonical(values)
        canonical = self._canonical.get(values.key)  # by its text: an `Arch` with True equals one with 1
        if canonical is None:
            canonical = self._find_canonical(values)
            if len(self._canonical) >= MOST_NORMAL_FORMS:
                self._canonical.clear()
            self._canonical[values.key] = canonical
        return canonical

    def _find_canonical(self, values: Mapping[str, Value]) -> Arch:
        if not isinstance(values, Mapping):
            raise InputError(f"an architecture is a mapping of decision names to values, not {str(values)[:80]!r}")
        for name in values:
            self[name]  # names the nearest valid choice if there is none

        def checked(choice: Choice) -> Value:
            if choice.name not in values:
                raise InputError(f"the architecture lacks {choice.name!r}, a decision of space {self.name!r}")
            value = values[choice.name]
            option = choice.option(value)
            if option is None:
                hint = nearest(value, choice.options)
                raise InputError(f"{value!r} is not an option of {choice.name!r} in space {self.name!r}; {hint}")
            return option

        return self._complete(checked)

    @_explained
    def normal_form(self, arch: Arch) -> Arch:
        """Returns the representative of the network that `arch` describes; `arch` itself in a space without forms.

        After `fix`, a representative with another value of a fixed choice is not used: `arch` is returned. Results are
        remembered by `arch.key`, since searchers ask for the form of one architecture many times.

        Raises:
            InputError: a form cannot be imported, refuses the architecture, or returns values that are not an
                architecture of the space; the form is named.
        """
        if not self.forms:
            return arch
        form = self._normal_forms.get(arch.key)
        if form is None:
            form = self._find_normal_form(arch)
            if len(self._normal_forms) >= MOST_NORMAL_FORMS:
                self._normal_forms.clear()
            self._normal_forms[arch.key] = form
        return form

    def _find_normal_form(self, arch: Arch) -> Arch:
        values = self.represent(arch)
        try:
            return self.canonical(values)
        except InputError as error:
            fixed = [choice for choice in self.choices if len(choice.options) == 1]
            if any(values.get(choice.name) not in choice.options for choice in fixed):
                return arch  # the representative lies outside the restricted space
            names = ", ".join(form.function for _, form in self.forms)
            raise InputError(f"the normal form {names} leaves the space {self.name!r}: {error}") from error

    def represent(self, arch: Arch) -> dict[str, Value]:
        """The values that the normal forms return for `arch`, unchecked.

        Raises:
            InputError: a form cannot be imported or refuses the architecture; it is named.
        """
        functions = self._resolved
        if functions is None:
            functions = [(prefix, form.resolve()) for prefix, form in self.forms]
            object.__setattr__(self, "_resolved", functions)
        values = dict(arch)
        for (prefix, function), (_, form) in zip(functions, self.forms, strict=True):
            current = Arch(values)
            start = f"{prefix}." if prefix else ""
            part = current.sub(prefix) if prefix else current
            try:
                representative = function(part)
            except InputError as error:
                raise InputError(f"the normal form {form.function} fails: {error}") from error
            values.update({start + name: value for name, value in representative.items()})
        return values

    @_explained
    def to_indices(self, arch: Arch) -> tuple[int, ...]:
        """Returns the number of each value among the options of its choice, in the order of the space."""
        return tuple(choice.index(arch[choice.name]) for choice in self.choices)

    @_explained
    def from_indices(self, indices: Sequence[int]) -> Arch:
        """Returns the architecture of an index vector; every vector in range is legal, inactive entries are ignored."""
        if len(indices) != len(self.choices):
            raise InputError(f"space {self.name!r} has {len(self.choices)} choices, not {len(indices)} indices")
        for choice, index in zip(self.choices, indices, strict=True):
            if not 0 <= index < len(choice.options):
                raise InputError(f"index {index} of {choice.name!r} is outside 0..{len(choice.options) - 1}")
        position = {choice.name: i for i, choice in enumerate(self.choices)}
        return self._complete(lambda choice: choice.options[indices[position[choice.name]]])

    def sample(self, rng: Random) -> Arch:
        """Returns a random architecture: every active choice is drawn independently and uniformly (SPOS, §3.3).

        Raises:
            InputError: `rng` is not a generator.
        """
        if not isinstance(rng, Random):
            raise InputError(f"rng={rng!r} should be a generator, such as random.Random(0)")
        return self._complete(lambda choice: choice.draw(rng))

    @_explained
    def mutate(self, arch: Arch, rng: Random, prob: float, *, other: bool = False) -> Arch:
        """Redraws each active choice with probability `prob`.

        The old value may be drawn again, as in the released code of DetNAS and SPOS, unless `other` excludes it, as
        when a bit is flipped.
        """
        if not 0 <= prob <= 1:
            raise InputError(f"prob={prob!r} should be a probability from 0 to 1")
        active = {choice.name for choice in self.active(arch)}

        def redraw(choice: Choice) -> Value:
            if choice.name not in active:
                return choice.draw(rng)
            if rng.random() >= prob:
                return arch[choice.name]
            changes = other and len(choice.options) > 1
            return choice.draw_other(arch[choice.name], rng) if changes else choice.draw(rng)

        return self._complete(redraw)

    @_explained
    def mutate_one(self, arch: Arch, rng: Random) -> Arch:
        """Changes exactly one active choice, drawn uniformly; choices that become active are drawn.

        Raises:
            InputError: no active choice has a second option.
        """
        active = self.active(arch)
        movable = [choice for choice in active if len(choice.options) > 1]
        if not movable:
            raise InputError(f"space {self.name!r} leaves nothing to mutate: every active choice has only one option")
        chosen = movable[rng.randrange(len(movable))]
        names = {choice.name for choice in active}

        def move(choice: Choice) -> Value:
            if choice.name == chosen.name:
                return choice.draw_other(arch[choice.name], rng)
            return arch[choice.name] if choice.name in names else choice.draw(rng)

        return self._complete(move)

    @_explained
    def crossover(self, first: Arch, second: Arch, rng: Random) -> Arch:
        """Takes each active choice from either parent with equal probability, or from the one where it is active."""
        active = [{choice.name for choice in self.active(parent)} for parent in (first, second)]
        parents = (first, second)

        def inherit(choice: Choice) -> Value:
            holders = [i for i in (0, 1) if choice.name in active[i]]
            if not holders:
                return choice.draw(rng)
            return parents[holders[rng.randrange(len(holders))]][choice.name]

        return self._complete(inherit)

    @_explained
    def neighbors(self, arch: Arch) -> list[Arch]:
        """Returns all architectures that differ in one active choice (ordered: by one step).

        Choices that become active take their first option.
        """
        active = self.active(arch)
        kept = {choice.name: arch[choice.name] for choice in active}
        neighbors = []
        for choice in active:
            for value in choice.adjacent(arch[choice.name]):
                moved = kept | {choice.name: value}
                neighbors.append(self._complete(lambda c, moved=moved: moved.get(c.name, c.options[0])))  # type: ignore[misc]
        return neighbors

    def enumerate(self) -> Iterator[Arch]:
        """Yields every architecture of the space once; the last choice varies fastest."""

        def extend(position: int, values: dict[str, Value], inactive: frozenset[str]) -> Iterator[Arch]:
            if position == len(self.choices):
                yield Arch(values)
                return
            choice = self.choices[position]
            off = choice.off(values, inactive)
            hidden = inactive | {choice.name} if off else inactive
            for option in choice.options[:1] if off else choice.options:
                yield from extend(position + 1, {**values, choice.name: option}, hidden)

        return extend(0, {}, frozenset())

    def size(self) -> int:
        """Returns the exact number of architectures, without regard to normal forms."""
        children: dict[str, list[Choice]] = {choice.name: [] for choice in self.choices}
        for choice in self.choices:
            if choice.when is not None:
                children[choice.when[0]].append(choice)

        def count(choice: Choice) -> int:
            below = [(child.when[1], count(child)) for child in children[choice.name] if child.when is not None]
            if not below:
                return len(choice.options)
            return sum(math.prod(n for values, n in below if option in values) for option in choice.options)

        return math.prod(count(choice) for choice in self.choices if choice.when is None)

    @checked_arguments
    def fix(self, values: Mapping[str, Value]) -> "SearchSpace":
        """Returns the same space with the named choices fixed to one value each."""
        for name, value in values.items():
            if self[name].option(value) is None:
                raise InputError(f"{value!r} is not an option of {name!r}; {nearest(value, self[name].options)}")
        choices = []
        for choice in self.choices:
            options = (values[choice.name],) if choice.name in values else choice.options
            choices.append(Choice(choice.name, options, choice.when, choice.ordered))
        return SearchSpace._of(self.name, choices, self.forms)

    @checked_arguments
    def restrict(self, options: Mapping[str, Sequence[Value]]) -> "SearchSpace":
        """Returns the same space with fewer options of the named choices.

        Raises:
            InputError: an option that the choice does not have, or none.
        """
        kept: dict[str, tuple[Value, ...]] = {}
        for name, values in options.items():
            unknown = [value for value in values if self[name].option(value) is None]
            if unknown:
                raise InputError(
                    f"{unknown[0]!r} is not an option of {name!r}; {nearest(unknown[0], self[name].options)}"
                )
            kept[name] = tuple(values)
        choices = []
        for choice in self.choices:
            when = choice.when
            if when is not None and when[0] in kept:
                when = (when[0], tuple(value for value in when[1] if value in kept[when[0]]) or when[1])
            choices.append(Choice(choice.name, kept.get(choice.name, choice.options), when, choice.ordered))
        return SearchSpace._of(self.name, choices, self.forms)

    def to_json(self) -> str:
        """Returns the space as JSON; ranges stay ranges, and normal forms are named with their version."""
        choices = [_choice_to_json(choice) for choice in self.choices]
        forms = [{"prefix": prefix, "function": form.function, "version": form.version} for prefix, form in self.forms]
        return json.dumps({"name": self.name, "choices": choices, "normal_forms": forms}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, trust: Collection[str] = ()) -> "SearchSpace":
        """Reads the output of `to_json`. No code is imported for a name that only the text gives.

        Args:
            text: what `to_json` returned.
            trust: normal forms as `"module:function"` that the text may name besides those of this project and of
                spaces that this process has built.

        Raises:
            InputError: the text is something else, or names another normal form.
        """
        try:
            document = parse_json(text)
            if not isinstance(document, dict):
                raise ValueError("it is no JSON object")
            choices = [_choice_from_json(item) for item in document["choices"]]
            forms = [
                (form["prefix"], NormalForm.from_file(form["function"], form["version"], trust))
                for form in document["normal_forms"]
            ]
            return cls._of(document["name"], choices, forms)
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            why = {KeyError: "it lacks an entry ", TypeError: "an entry has the wrong type: "}.get(type(error), "")
            raise InputError(
                f"{text!r:.60} is not the JSON of a search space as `to_json` writes it: {why}{error}"
            ) from error

    def digest(self) -> str:
        """Returns 16 hex digits of SHA-256 over `to_json`; they agree exactly if two spaces are interchangeable."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@checked_arguments
def compose(name: str, parts: Mapping[str, SearchSpace], normal_form: Form | None = None) -> SearchSpace:
    """Returns one space from several; the decisions and normal forms of each are below its dotted prefix.

    Args:
        name: the name of the composed space.
        parts: prefix to space; a part without choices adds nothing.
        normal_form: a form over the composed space, applied after those of the parts.
    """
    choices: list[Choice] = []
    forms: list[tuple[str, NormalForm]] = []
    for prefix, part in parts.items():
        for choice in part.choices:
            when = None if choice.when is None else (f"{prefix}.{choice.when[0]}", choice.when[1])
            choices.append(Choice(f"{prefix}.{choice.name}", choice.options, when, choice.ordered))
        forms += [(f"{prefix}.{inner}" if inner else prefix, form) for inner, form in part.forms]
    if normal_form is not None:
        forms.append(("", NormalForm.of(normal_form)))
    return SearchSpace._of(name, choices, forms)


def _check_condition(space: str, choice: Choice, earlier: Mapping[str, Choice]) -> None:
    assert choice.when is not None
    parent, values = choice.when
    if not values:
        raise InputError(
            f"choice {choice.name!r} of space {space!r} depends on no value of {parent!r}; give at least one"
        )
    if parent not in earlier:
        remedy = nearest(parent, earlier) if earlier else "a choice depends on earlier ones only, and it is the first"
        raise InputError(
            f"choice {choice.name!r} of space {space!r} depends on {parent!r}, which is not listed before it; {remedy}"
        )
    wrong = [value for value in values if value not in earlier[parent].options]
    if wrong and len(earlier[parent].options) > 1:
        raise InputError(f"choice {choice.name!r} depends on {parent!r} = {wrong[0]!r}, which is not an option of it")
