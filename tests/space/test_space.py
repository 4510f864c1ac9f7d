"""Spaces and architectures as data: what is legal, what is drawn, and what survives JSON."""

import itertools
import json
import math
import pickle
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest, chisquare

from supernet.chain.layout import Layout
from supernet.errors import InputError
from supernet.space import Arch, ArchReader, Choice, SearchSpace, Value, compose
from supernet.space.normal_form import NormalForm


def commute(arch: Arch) -> dict[str, Value]:
    """Two operands in alphabetical order."""
    left, right = sorted((str(arch["left"]), str(arch["right"])))
    return {"left": left, "right": right}


def lowest(arch: Arch) -> dict[str, Value]:
    """Every pair of a whole network's sides at its lower one."""
    return {name: min(str(value) for value in arch.values()) for name in arch}


def leaving(arch: Arch) -> dict[str, Value]:
    """A broken form: its values are not options."""
    return {"left": "z"}


def refusing(arch: Arch) -> dict[str, Value]:
    """A broken form that raises."""
    raise InputError("left must be even")


calls: list[str] = []


def counting(arch: Arch) -> dict[str, Value]:
    """The identity, which records its calls."""
    calls.append(arch.key)
    return dict(arch)


def pair() -> SearchSpace:
    return SearchSpace("pair", [Choice("left", ("a", "b", "c")), Choice("right", ("a", "b", "c"))], commute)


def nested() -> SearchSpace:
    """`depth` opens `kernel`, whose value 5 opens `dilation`."""
    kernel, dilation = ("kernel", (3, 5), ("depth", (2, 3))), ("dilation", ("one", "two", "four"), ("kernel", (5,)))
    choices = [
        Choice("depth", (1, 2, 3), ordered=True),
        Choice(*kernel),
        Choice(*dilation),
        Choice("op", ("conv", "pool")),
    ]
    return SearchSpace("nested", choices)


def random_space(rng: random.Random) -> SearchSpace:
    """Up to seven choices, about half of them conditional on an earlier one, some ranges, some ordered."""
    choices: list[Choice] = []
    for number in range(rng.randint(1, 7)):
        count = rng.randint(1, 4)
        options: tuple[Value, ...] | range = tuple(f"v{i}" for i in range(count))
        if rng.random() < 0.3:
            options = range(0, 4 * count, 4)
        when = None
        if choices and rng.random() < 0.5:
            parent = rng.choice(choices)
            when = (parent.name, tuple(rng.sample(list(parent.options), rng.randint(1, len(parent.options)))))
        choices.append(Choice(f"c{number}", options, when, ordered=rng.random() < 0.4))
    return SearchSpace("random", choices)


def random_spaces(number: int) -> list[SearchSpace]:
    rng = random.Random(7)
    single = [random_space(rng) for _ in range(number)]
    composed = [compose("two", {"a": one, "b.c": other}) for one, other in itertools.pairwise(single[:6])]
    return single + composed


def names_of(choices: tuple[Choice, ...]) -> set[str]:
    return {choice.name for choice in choices}


def made(*choices: Choice) -> SearchSpace:
    return SearchSpace("s", choices)


DEPTH, OPENED = Choice("depth", (3, 4)), Choice("child", (1, 2), when=("depth", (3,)))
FIXED = {"left": "a", "right": "b"}
PART = '{"name": "s", "choices": [%s], "normal_forms": []}'
BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "duplicate": (lambda: made(Choice("a", (1,)), Choice("a", (2,))), "two choices named 'a'"),
    "composed": (lambda: compose("s", {"a": made(Choice("b.c", (1,))), "a.b": made(Choice("c", (1,)))}), "two .*a.b.c"),
    "later-parent": (lambda: made(OPENED, DEPTH), "'child' of space 's' depends on 'depth', which is not listed"),
    "misspelt": (lambda: made(DEPTH, Choice("c", (1,), ("dept", (3,)))), "depends on 'dept', .* did you mean 'depth'"),
    "impossible": (
        lambda: made(DEPTH, Choice("c", (1,), ("depth", (3, 5)))),
        "'c' depends on 'depth' = 5, which is",
    ),
    "no-options": (lambda: Choice("a", ()), "'a' has no options"),
    "twice": (lambda: Choice("a", (1, 2, 1)), r"'a' lists an option twice: \(1, 2, 1\)"),
    "no-name": (lambda: Choice("", (1,)), "needs a name"),
    "dot-first": (lambda: Choice(".a", (1,)), "needs a name .* not '.a'"),
    "lambda": (lambda: SearchSpace("s", [], lambda arch: dict(arch)), "top level of a module, not .*<lambda>"),
    "method": (lambda: SearchSpace("s", [], SearchSpace.normal_form), "top level of a module, not 'SearchSpace.norm"),
    "unknown": (lambda: pair().canonical({"lift": "a", "right": "a"}), "no choice 'lift'; did you mean 'left'"),
    "unknown-far": (lambda: pair()["xyzzy"], "no choice 'xyzzy'; choose from: left, right"),
    "missing": (lambda: pair().canonical({"left": "a"}), "lacks 'right', a decision of space 'pair'"),
    "missing-opened": (lambda: nested().canonical({"depth": 2, "kernel": 5, "op": "conv"}), "lacks 'dilation'"),
    "illegal": (lambda: pair().canonical({"left": "a", "right": "z"}), "'z' is not an option of 'right' .*: a, b, c"),
    "illegal-near": (
        lambda: nested().canonical({"depth": 1, "op": "convs"}),
        "'convs' is not an option .*mean 'conv'",
    ),
    "fix-name": (lambda: pair().fix({"lef": "a"}), "no choice 'lef'; did you mean 'left'"),
    "fix-value": (lambda: pair().fix({"left": "z"}), "'z' is not an option of 'left'; choose from: a, b, c"),
    "indices-few": (lambda: pair().from_indices((0,)), "has 2 choices, not 1 indices"),
    "indices-many": (lambda: pair().from_indices((0, 0, 0)), "has 2 choices, not 3 indices"),
    "index-high": (lambda: pair().from_indices((0, 3)), r"index 3 of 'right' is outside 0\.\.2"),
    "index-negative": (lambda: pair().from_indices((-1, 0)), r"index -1 of 'left' is outside 0\.\.2"),
    "still": (lambda: pair().fix(FIXED).mutate_one(Arch(FIXED), random.Random(0)), "'pair' leaves nothing to mutate"),
    "arch-garbage": (lambda: Arch.from_json("{left: a}"), "JSON object of decision names and values"),
    "arch-list": (lambda: Arch.from_json('["a", "b"]'), r"plain values, not '\[\"a\", \"b\"\]'"),
    "arch-null": (lambda: Arch.from_json('{"left": null}'), "plain values, not"),
    "space-empty": (lambda: SearchSpace.from_json("{}"), "not the JSON of a search space .*lacks an entry 'choices'"),
    "space-list": (lambda: SearchSpace.from_json("[]"), r"'\[\]' is not the JSON of a search space .* no JSON object"),
    "space-choices": (lambda: SearchSpace.from_json(PART % "1"), "not the JSON of a search space"),
    "choice-never-active": (lambda: Choice("b", (1, 2), when=("a", ())), "never active; name the values of 'a'"),
    "layout-channels": (lambda: Layout(-1), "channels=-1"),
    "layout-stride": (lambda: Layout(8, math.nan), "stride=nan"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_input_is_named(case: str) -> None:
    act, message = BROKEN[case]
    with pytest.raises(InputError, match=message):
        act()


@pytest.mark.parametrize(
    "rest", ['"a", "options": {"range": [0, 4, 0]}', '"a", "options": [1], "when": ["b"]', '3, "options": [1]']
)
def test_damaged_json_of_a_space_is_an_input_error(rest: str) -> None:
    with pytest.raises(InputError, match=r"not the JSON of a search space|the name of a choice is a text, not 3"):
        SearchSpace.from_json(PART % f'{{"name": {rest}}}')


def test_arch_is_a_value() -> None:
    source: dict[str, Value] = {"b.x": 1, "a": "k3"}
    one, other = Arch(source), Arch({"a": "k3", "b.x": 1})
    source["a"] = "k7"  # does not reach into the architecture
    assert one == other
    assert (hash(one), one.key) == (hash(other), other.key)
    assert one != Arch({"a": "k3", "b.x": 2})
    assert len({one.key, Arch({"a": "k3", "b.x": 2}).key, Arch({"a": "k3", "b.y": 1}).key}) == 3
    assert one != {"a": "k3", "b.x": 1}  # an architecture, not any mapping
    assert dict(one) == {"b.x": 1, "a": "k3"}
    assert re.fullmatch("[0-9a-f]{16}", one.key)
    with pytest.raises(TypeError):
        one["a"] = "k5"  # type: ignore[index]


def test_sub_removes_the_prefix_at_dots_only() -> None:
    arch = Arch({"b1.op": "x", "b1.deep.op": "y", "b10.op": "z", "b1": 3})
    assert arch.sub("b1") == Arch({"op": "x", "deep.op": "y"})
    assert arch.sub("b1").sub("deep") == arch.sub("b1.deep") == Arch({"op": "y"})
    assert arch.sub("b2") == Arch()


def test_json_and_pickle_keep_an_arch() -> None:
    arch = Arch({"op": "3×3", "width": 8, "rate": 0.25, "se": True})
    assert json.loads(arch.to_json()) == {"op": "3×3", "width": 8, "rate": 0.25, "se": True}
    for copy in (Arch.from_json(arch.to_json()), pickle.loads(pickle.dumps(arch))):
        assert copy == arch
        assert copy.key == arch.key
        assert [type(value) for value in copy.values()] == [str, int, float, bool]


def test_canonical_gives_the_option_itself() -> None:
    """1.0 and 1 are equal in Python but not in JSON, so the key must be of the option."""
    space = SearchSpace("s", [Choice("n", (1, 2))])
    canonical = space.canonical({"n": 1.0})
    assert canonical.key == space.canonical(Arch({"n": 1.0})).key == Arch({"n": 1}).key


@pytest.mark.parametrize("options", [(1, 2), (0.5, 1.0), range(3), (True, False)])
def test_a_truth_value_is_no_number(options: tuple[Value, ...] | range) -> None:
    """Although they are equal in Python; whoever writes one does not mean the other."""
    space = SearchSpace("s", [Choice("n", options)])
    right, wrong = (True, 1) if options[0] is True else (1, True)
    assert space.canonical(Arch({"n": right})) == space.canonical({"n": right})
    for values in ({"n": wrong}, Arch({"n": wrong}), Arch.from_json(json.dumps({"n": wrong}))):
        with pytest.raises(InputError, match=f"{wrong} is not an option of 'n'"):
            space.canonical(values)
    with pytest.raises(InputError, match=f"{wrong} is not an option of 'n'"):
        space.fix({"n": wrong})
    with pytest.raises(InputError, match=f"{wrong} is not an option of 'n'"):
        space.restrict({"n": (wrong,)})


KEYS = """
import random
from supernet.space import Choice, SearchSpace
space = SearchSpace("s", [Choice(f"b{i}.op", ("k3", "k5", "k7")) for i in range(9)])
arch = space.sample(random.Random(3))
print(arch.key, space.digest(), arch.to_json())
"""


def test_key_is_the_same_in_every_process() -> None:
    home, lines = str(Path(__file__).parents[2]), set()
    for seed in ("0", "1", "4242"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": home}
        lines.add(
            subprocess.run([sys.executable, "-c", KEYS], env=env, capture_output=True, text=True, check=True).stdout
        )
    assert len(lines) == 1
    assert Arch.from_json(lines.pop().split(" ", 2)[2]).key == "9da457cacf5b2294"


def test_inactive_choices_take_the_first_option_at_every_level() -> None:
    space = nested()
    values = itertools.product((3, 5), ("one", "two", "four"))
    same = [space.canonical({"depth": 1, "kernel": k, "dilation": d, "op": "pool"}) for k, d in values]
    assert set(same) == {Arch({"depth": 1, "kernel": 3, "dilation": "one", "op": "pool"})}
    assert names_of(space.active(same[0])) == {"depth", "op"}
    # a grandchild stays off although its own parent's value would open it
    open_kernel = space.canonical({"depth": 2, "kernel": 5, "dilation": "four", "op": "pool"})
    assert names_of(space.active(open_kernel)) == {"depth", "kernel", "dilation", "op"}
    assert Arch({**same[0], "dilation": "four"}) not in space
    assert same[0] in space
    assert dict(same[0]) not in space
    assert space.normal_form(same[0]) == same[0]  # of a space without forms


def test_size_by_hand() -> None:
    assert nested().size() == 2 * (1 + 2 * (1 + 3))  # ops; depth 1; depths with kernel 3, or 5 and three dilations
    assert pair().size() == 9
    assert SearchSpace("none").size() == 1
    assert list(SearchSpace("none").enumerate()) == [Arch()]


def test_size_counts_without_enumerating() -> None:
    wide = SearchSpace("wide", [Choice(f"c{i}", range(10**9)) for i in range(3)])
    assert wide.size() == 10**27
    assert wide.canonical({"c0": 0, "c1": 5, "c2": 10**9 - 1}) in wide
    assert all(0 <= value < 10**9 for value in wide.sample(random.Random(0)).values())


@pytest.mark.parametrize("space", random_spaces(60), ids=lambda space: f"{len(space)}-choices")
def test_random_spaces_agree_with_their_enumeration(space: SearchSpace) -> None:
    archs = list(space.enumerate())
    members = set(archs)
    assert space.size() == len(archs) == len(members)
    rng = random.Random(0)
    for arch in rng.sample(archs, min(20, len(archs))):
        assert space.canonical(arch) == arch
        assert space.from_indices(space.to_indices(arch)) == arch
        for moved in (space.mutate(arch, rng, 0.5), space.crossover(arch, rng.choice(archs), rng), space.sample(rng)):
            assert moved in members
        for neighbor in space.neighbors(arch):
            assert neighbor in members
            assert neighbor != arch
        assert len(set(space.neighbors(arch))) == len(space.neighbors(arch))
    vectors = itertools.product(*(range(len(choice.options)) for choice in space.choices))
    assert {space.from_indices(vector) for vector in itertools.islice(vectors, 3000)} <= members
    assert SearchSpace.from_json(space.to_json()) == space


def test_indices_follow_the_order_of_options() -> None:
    space = nested()
    arch = space.from_indices((2, 1, 2, 1))
    assert arch == Arch({"depth": 3, "kernel": 5, "dilation": "four", "op": "pool"})
    assert space.to_indices(arch) == (2, 1, 2, 1)
    assert space.from_indices((0, 1, 2, 1)) == space.from_indices((0, 0, 0, 1))  # inactive entries are ignored
    assert [space.to_indices(arch) for arch in space.enumerate()] == sorted(map(space.to_indices, space.enumerate()))


LEVEL = 1e-3  # of every test on draws; the seeds are fixed, so a pass stays a pass


def test_sample_is_uniform() -> None:
    space = SearchSpace("s", [Choice("a", range(3)), Choice("b", ("x", "y")), Choice("c", (1, 2, 4, 8), ordered=True)])
    rng = random.Random(1)
    seen = Counter(space.sample(rng) for _ in range(24 * 400))
    assert len(seen) == 24
    assert chisquare(list(seen.values())).pvalue > LEVEL


def test_sample_of_conditional_choices_follows_the_tree() -> None:
    space, rng, draws = nested(), random.Random(2), 9000
    seen = Counter(space.sample(rng) for _ in range(draws))
    archs = list(space.enumerate())
    expected = [draws / math.prod(len(choice.options) for choice in space.active(arch)) for arch in archs]
    assert chisquare([seen[arch] for arch in archs], expected).pvalue > LEVEL


def test_mutate_changes_each_gene_with_the_stated_probability() -> None:
    space = SearchSpace("s", [Choice("two", range(2)), Choice("five", range(5)), Choice("one", (0,))])
    arch, rng, draws, prob = space.from_indices((1, 3, 0)), random.Random(3), 6000, 0.3
    children = [space.mutate(arch, rng, prob) for _ in range(draws)]
    for name, options in (("two", 2), ("five", 5)):
        changed = sum(child[name] != arch[name] for child in children)
        assert binomtest(changed, draws, prob * (options - 1) / options).pvalue > LEVEL
    assert all(child["one"] == 0 for child in children)
    assert {child["five"] for child in children} == set(range(5))
    assert all(space.mutate(arch, rng, 0.0) == arch for _ in range(50))
    others = [space.mutate(arch, rng, prob, other=True) for _ in range(draws)]
    for name in ("two", "five"):
        assert binomtest(sum(child[name] != arch[name] for child in others), draws, prob).pvalue > LEVEL
    assert {child["five"] for child in others} == set(range(5))


def test_mutate_draws_what_becomes_active() -> None:
    space, rng = nested(), random.Random(4)
    shallow = space.canonical({"depth": 1, "op": "conv"})
    opened = Counter(
        child["kernel"] for child in (space.mutate(shallow, rng, 0.9) for _ in range(3000)) if child["depth"] != 1
    )
    assert binomtest(opened[5], opened.total(), 0.5).pvalue > LEVEL


def test_mutate_one_moves_exactly_one_active_choice() -> None:
    rng = random.Random(5)
    for space in random_spaces(40):
        for _ in range(10):
            parent = space.sample(rng)
            before = space.active(parent)
            if all(len(choice.options) == 1 for choice in before):
                continue
            child = space.mutate_one(parent, rng)
            kept = names_of(before) & names_of(space.active(child))
            assert sum(child[name] != parent[name] for name in kept) == 1
            assert child in space


def test_mutate_one_draws_choice_and_option_uniformly() -> None:
    space = SearchSpace("s", [Choice("two", range(2)), Choice("one", (0,)), Choice("four", range(4))])
    parent, rng = space.from_indices((0, 0, 2)), random.Random(6)
    seen = Counter(space.to_indices(space.mutate_one(parent, rng)) for _ in range(6000))
    assert set(seen) == {(1, 0, 2), (0, 0, 0), (0, 0, 1), (0, 0, 3)}
    expected = {(1, 0, 2): 3000, (0, 0, 0): 1000, (0, 0, 1): 1000, (0, 0, 3): 1000}
    assert chisquare([seen[key] for key in expected], list(expected.values())).pvalue > LEVEL


def test_crossover_takes_every_active_gene_from_a_parent_that_has_it() -> None:
    rng = random.Random(8)
    for space in random_spaces(40):
        for _ in range(10):
            parents = (space.sample(rng), space.sample(rng))
            child = space.crossover(*parents, rng)
            assert child in space
            for choice in space.active(child):
                holders = [parent for parent in parents if choice.name in names_of(space.active(parent))]
                assert child[choice.name] in {parent[choice.name] for parent in holders}


def test_crossover_takes_either_parent_with_equal_probability() -> None:
    space = SearchSpace("s", [Choice(f"c{i}", range(2)) for i in range(3)])
    rng = random.Random(9)
    zeros, ones = space.from_indices((0, 0, 0)), space.from_indices((1, 1, 1))
    seen = Counter(space.crossover(zeros, ones, rng) for _ in range(8 * 400))
    assert len(seen) == 8
    assert chisquare(list(seen.values())).pvalue > LEVEL


def test_draws_are_a_function_of_the_generator() -> None:
    space = nested()

    def trajectory(seed: int) -> list[Arch]:
        rng = random.Random(seed)
        one, other = space.sample(rng), space.sample(rng)
        return [one, other, space.crossover(one, other, rng), space.mutate(one, rng, 0.5), space.mutate_one(one, rng)]

    state = random.getstate()
    assert trajectory(0) == trajectory(0)
    assert len({tuple(trajectory(seed)) for seed in range(10)}) > 5
    assert random.getstate() == state  # the global generator is not touched


def test_neighbors_exactly() -> None:
    space = nested()
    middle = space.canonical({"depth": 2, "kernel": 5, "dilation": "two", "op": "conv"})
    assert [tuple(neighbor.values()) for neighbor in space.neighbors(middle)] == [
        (1, 3, "one", "conv"),
        (3, 5, "two", "conv"),  # ordered: one step down and up; depth 1 closes what is below
        (2, 3, "one", "conv"),
        (2, 5, "one", "conv"),
        (2, 5, "four", "conv"),
        (2, 5, "two", "pool"),
    ]
    shallow = space.canonical({"depth": 1, "op": "conv"})
    assert [tuple(neighbor.values()) for neighbor in space.neighbors(shallow)] == [
        (2, 3, "one", "conv"),
        (1, 3, "one", "pool"),  # what becomes active starts at its first option
    ]


def test_neighbors_are_symmetric_without_conditions() -> None:
    space = SearchSpace("s", [Choice("a", range(3)), Choice("b", (4, 2, 8, 1), ordered=True), Choice("c", ("x", "y"))])
    near = {arch: set(space.neighbors(arch)) for arch in space.enumerate()}
    assert all(arch in near[neighbor] for arch, neighbours in near.items() for neighbor in neighbours)
    scale = {value: place for place, value in enumerate(space["b"].options)}
    for arch, neighbours in near.items():
        step = {other for other in near if sum(other[name] != arch[name] for name in arch) == 1}
        assert neighbours == {other for other in step if abs(scale[other["b"]] - scale[arch["b"]]) <= 1}


def test_compose_prefixes_conditions_and_forms() -> None:
    space = compose("net", {"body": nested(), "stem": SearchSpace("empty"), "join": pair()}, lowest_joins)
    assert [choice.name for choice in space.choices] == [
        "body.depth",
        "body.kernel",
        "body.dilation",
        "body.op",
        "join.left",
        "join.right",
    ]
    assert space["body.dilation"].when == ("body.kernel", (5,))
    assert space["body.depth"].ordered
    assert space.size() == nested().size() * pair().size()
    arch = space.canonical({"body.depth": 1, "body.op": "conv", "join.left": "c", "join.right": "b"})
    assert space.normal_form(arch).sub("join") == Arch({"left": "b", "right": "b"})  # the part's form, then the whole's


def lowest_joins(arch: Arch) -> dict[str, Value]:
    """The right side follows the left one."""
    return {"join.right": arch["join.left"]}


def test_forms_reach_through_nested_composition() -> None:
    inner = compose("inner", {"x": pair()})
    outer = compose("outer", {"a": inner, "b": inner})
    arch = outer.canonical({"a.x.left": "b", "a.x.right": "a", "b.x.left": "c", "b.x.right": "b"})
    assert outer.normal_form(arch) == Arch({"a.x.left": "a", "a.x.right": "b", "b.x.left": "b", "b.x.right": "c"})
    assert len({outer.normal_form(arch) for arch in outer.enumerate()}) == 6 * 6


def test_fix_restricts() -> None:
    space = nested().fix({"depth": 2, "kernel": 5})
    assert space.size() == len(set(space.enumerate())) == 3 * 2
    assert {arch["depth"] for arch in space.enumerate()} == {2}
    assert all(arch in nested() for arch in space.enumerate())
    assert nested().fix({"depth": 1}).size() == 2  # what is below a closed parent disappears from the count
    assert len({nested().digest(), space.digest(), nested().fix({"depth": 2}).digest()}) == 3
    with pytest.raises(InputError, match="3 is not an option of 'depth'"):
        space.canonical({"depth": 3, "kernel": 5, "dilation": "one", "op": "conv"})


def test_a_normal_form_that_leaves_the_fixed_space_is_not_used() -> None:
    space = pair().fix({"left": "b"})
    assert space.normal_form(Arch({"left": "b", "right": "c"})) == Arch({"left": "b", "right": "c"})
    outside = Arch({"left": "b", "right": "a"})  # its representative has left = a
    assert pair().normal_form(outside) == Arch({"left": "a", "right": "b"})
    assert space.normal_form(outside) == outside
    assert SearchSpace.from_json(space.to_json()).normal_form(outside) == outside


@pytest.mark.parametrize("form", [leaving, refusing])
def test_a_broken_normal_form_is_named(form: Callable[[Arch], dict[str, Value]]) -> None:
    broken = SearchSpace("pair", pair().choices, form)
    for space in (broken, broken.fix({"right": "a"}), SearchSpace.from_json(broken.to_json())):
        with pytest.raises(InputError, match=rf"normal form \S+:{form.__name__} "):
            space.normal_form(Arch({"left": "b", "right": "a"}))


def test_normal_forms_are_computed_once_and_do_not_belong_to_the_space() -> None:
    space, untouched = (SearchSpace("pair", pair().choices, counting) for _ in range(2))
    size = len(pickle.dumps(space))
    calls.clear()
    for arch in (*space.enumerate(), *space.enumerate()):
        assert space.normal_form(arch) == arch
    assert len(calls) == len(set(calls)) == space.size()
    assert space == untouched
    assert hash(space) == hash(untouched)
    assert len(pickle.dumps(space)) == size
    assert pickle.loads(pickle.dumps(space)).normal_form(next(space.enumerate())) == next(space.enumerate())
    assert len(calls) == space.size() + 1  # the copy starts without memory


def test_a_space_survives_json_and_pickle() -> None:
    space = compose("net", {"a": pair(), "b": nested()}, lowest)
    for copy in (SearchSpace.from_json(space.to_json()), pickle.loads(pickle.dumps(space))):
        assert copy == space
        assert copy.digest() == space.digest()
        assert list(copy.enumerate()) == list(space.enumerate())
    arch = Arch({"left": "c", "right": "a"})
    assert SearchSpace.from_json(pair().to_json()).normal_form(arch) == Arch({"left": "a", "right": "c"})
    assert '"a", "b", "c"' in pair().to_json()  # values, not option numbers


def test_ranges_stay_ranges_through_json() -> None:
    space = SearchSpace("s", [Choice("width", range(8, 10**9, 8), ordered=True)])
    assert len(space.to_json()) < 200
    again = SearchSpace.from_json(space.to_json())
    assert again["width"].options == range(8, 10**9, 8)  # and no tuple
    assert again["width"].ordered
    assert again.neighbors(Arch({"width": 16})) == [Arch({"width": 8}), Arch({"width": 24})]


def test_a_changed_normal_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text, digest = pair().to_json(), pair().digest()
    monkeypatch.setattr(commute, "version", 2, raising=False)
    with pytest.raises(InputError, match="commute is at version 2 here, but the space was written with version 1"):
        SearchSpace.from_json(text).normal_form(Arch({"left": "b", "right": "a"}))
    assert pair().digest() != digest  # built again, it is another space
    assert pair().normal_form(Arch({"left": "b", "right": "a"})) == Arch({"left": "a", "right": "b"})


@pytest.mark.parametrize("function", ["no.such.module:form", "supernet.space:no_such_form"])
def test_a_lost_normal_form_is_named(function: str) -> None:
    document = json.loads(pair().to_json())
    document["normal_forms"][0]["function"] = function
    space = SearchSpace.from_json(json.dumps(document), trust=[function])
    with pytest.raises(InputError, match=rf"'{function}' cannot be imported"):
        space.normal_form(Arch({"left": "b", "right": "a"}))


@pytest.mark.parametrize(
    "function",
    ["subprocess:Popen", "os:system", "supernet.files:commit", "supernet.space:Arch", "", "x:", 3, None],
)
def test_a_normal_form_that_only_a_file_names_is_never_imported(
    function: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(pair().to_json())
    document["normal_forms"][0]["function"] = function
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    with pytest.raises(InputError, match=re.escape(repr(function))):
        SearchSpace.from_json(json.dumps(document))
    with pytest.raises(InputError, match="named by a file"):
        NormalForm(str(function)).resolve()


def test_a_normal_form_that_the_user_trusts_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_forms.py").write_text("def same(arch):\n    return arch\n")
    monkeypatch.syspath_prepend(tmp_path)
    document = json.loads(pair().to_json())
    document["normal_forms"][0]["function"] = "my_forms:same"
    with pytest.raises(InputError, match="my_forms:same"):
        SearchSpace.from_json(json.dumps(document))
    space = SearchSpace.from_json(json.dumps(document), trust=["my_forms:same"])
    arch = Arch({"left": "b", "right": "a"})
    assert space.normal_form(arch) == arch
    assert pickle.loads(pickle.dumps(space)).normal_form(arch) == arch


def test_digest_tells_spaces_apart() -> None:
    parent, ops = Choice("p", (1, 2, 3)), ("x", "y", "z")
    different = [
        SearchSpace("s", [parent, Choice("c", ops)]),
        SearchSpace("other", [parent, Choice("c", ops)]),
        SearchSpace("s", [Choice("c", ops), parent]),
        SearchSpace("s", [parent, Choice("d", ops)]),
        SearchSpace("s", [parent, Choice("c", ("x", "y"))]),
        SearchSpace("s", [parent, Choice("c", ("y", "x", "z"))]),
        SearchSpace("s", [parent, Choice("c", ops, ordered=True)]),
        SearchSpace("s", [parent, Choice("c", ops, ("p", (1,)))]),
        SearchSpace("s", [parent, Choice("c", ops, ("p", (2,)))]),
        SearchSpace("s", [parent, Choice("c", ops, ("p", (1, 2)))]),
        SearchSpace("s", [Choice("p", ("1", "2", "3")), Choice("c", ops)]),
        SearchSpace("s", [parent, Choice("c", ops)], lowest),
        SearchSpace("s", [parent, Choice("c", ops)], commute),
        compose("s", {"q": SearchSpace("t", [parent, Choice("c", ops)], lowest)}),
        compose("s", {"q": SearchSpace("t", [parent, Choice("c", ops)])}, lowest),
    ]
    assert len({space.digest() for space in different}) == len(different)
    assert len(set(different)) == len(different)
    assert SearchSpace("s", [parent, Choice("c", ops)]).digest() == different[0].digest()


def test_equal_spaces_have_equal_digests() -> None:
    one, other = (SearchSpace("s", [Choice("width", range(4, stop, 4))]) for stop in (13, 16))
    assert (one == other) == (one.digest() == other.digest())


def test_the_time_to_draw_and_name_an_arch_grows_little_faster_than_the_space() -> None:
    """A ratio, since measuring lines and slow machines change both times; a quadratic one would be 16."""
    times = {}
    for stages in (1, 4):
        names = [f"stage{i}.block{j}" for i in range(stages) for j in range(10)]
        space, rng = compose("s", {name: block() for name in names}), random.Random(0)
        assert len(space) == len(names)
        times[stages] = min(seconds_to_draw(space, names, rng) for _ in range(200))
    assert times[4] < 11 * times[1]


def seconds_to_draw(space: SearchSpace, names: list[str], rng: random.Random) -> float:
    began = time.thread_time()
    arch = space.sample(rng)
    assert len(arch.key) == 16
    assert all(len(arch.sub(name)) == 1 for name in names)
    return time.thread_time() - began


def block() -> SearchSpace:
    return SearchSpace("choice", [Choice("op", ("shuffle3", "shuffle5", "shuffle7", "xception"))])


# -- many architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "x", "b": 1, "c": true}',
        '{"a": "é: \\"y\\", z", "b": 2.5, "c": false}',
        '{"b": 1, "a": "x", "c": true}',  # another order
        '{"a":"x","b":1,"c":true}',
        '{"a": "x", "b": 1.0, "c": true}',
        '{"a": "x", "b": 1}',
        '{"a": "other", "b": 1, "c": true}',
        '{"a": "x", "a": "x", "b": 1, "c": true}',
        '["a": "x", "b": 1, "c": true]',
        '{"a": "x", "b": [1], "c": true}',
        '{"a": "x", "b": NaN, "c": true}',
        "",
        "{}",
    ],
)
def test_the_fast_reader_of_architectures_reads_what_from_json_reads(text: str) -> None:
    read = ArchReader({"a": ("x", 'é: "y", z'), "b": (1, 2.5), "c": (True, False)})

    def outcome(reader: Callable[[str], Arch]) -> tuple[object, ...]:
        try:
            arch = reader(text)
        except InputError as error:
            return (str(error),)
        return arch, arch.key, list(arch), [type(value) for value in arch.values()]

    assert outcome(read) == outcome(Arch.from_json)


def test_canonical_architectures_are_remembered_by_value() -> None:
    space = SearchSpace("s", [Choice("depth", (1, 2)), Choice("op", ("a", "b"), when=("depth", (2,)))])
    other = SearchSpace("t", [Choice("depth", (2, 1)), Choice("op", ("a", "b"), when=("depth", (1,)))])
    arch = Arch({"depth": 1, "op": "b"})
    for _ in range(2):
        assert space.canonical(arch) == Arch({"depth": 1, "op": "a"})
        assert other.canonical(arch) == arch
        with pytest.raises(InputError, match="no choice 'width'"):
            space.canonical(Arch({"width": 1}))
    assert space.canonical(arch) is space.canonical(Arch(dict(arch)))
