"""Imports run one way, light imports stay light, public things have docstrings, and help comes at once."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"supernet": "supernet", "searchers": "searchers", "detection": "detection", "supernet_tools": "tools"}
"""Import name to folder."""

ROOMS = [
    {"supernet.errors", "supernet.seeding", "supernet.generators", "supernet.progress", "supernet.heap"},
    {"supernet.checked"},
    {"supernet.csv_rows", "supernet.paths", "supernet.plugins", "supernet.user_code", "supernet.strict_json"},
    {"supernet.sqlite"},
    {"supernet.space", "supernet.config", "supernet.memory", "supernet.convolutions"},
    {"supernet.files"},
    {"supernet.chain", "supernet.data", "supernet.ranking"},
    {"supernet.blocks", "supernet.cost"},
    {"supernet.spaces", "supernet.training", "supernet.export", "supernet.drawing"},
    {"supernet.scoring", "supernet.train"},
    {"supernet.evaluate", "supernet.testing"},
]
"""The floors of `supernet`, lowest first: a module imports from its own room and from the floors below."""

PURE = (
    "supernet.space",
    "supernet.config",
    "supernet.checked",
    "supernet.strict_json",
    "supernet.errors",
    "supernet.seeding",
    "supernet.user_code",
    "detection.config",
)
VALIDATION = {"annotated_types", "pydantic", "pydantic_core"}
FOR_SEARCHERS = (
    "supernet.space",
    "supernet.errors",
    "supernet.seeding",
    "supernet.sqlite",
    "supernet.paths",
    "supernet.strict_json",
    "supernet.checked",
)
HEAVY = {"torch", "torchvision", "timm"}  # 3 to 6 s of import
HELP_SECONDS = 1.0


def modules(package: str) -> dict[str, Path]:
    """Import name to file."""
    names = {}
    for path in sorted((ROOT / PACKAGES[package]).rglob("*.py")):
        parts = (package, *path.relative_to(ROOT / PACKAGES[package]).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


FILES = {name: path for package in PACKAGES for name, path in modules(package).items()}
SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, module: str = "") -> set[str]:
    """Everything a module imports: at its top, inside functions, for type checkers and by `import_module("name")`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the module"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in FILES else node.module or "" for name in inner}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names - {module}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS) if room(module) in rooms)


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """What each module imports; not computed while tests are collected, which every worker does."""
    return {module: imports(parsed(path), module) for module, path in FILES.items()}


def circles(edges: dict[str, set[str]]) -> list[str]:
    """What remains when modules that import nothing of the rest are removed again and again."""
    edges = {name: others & edges.keys() for name, others in edges.items()}
    while leaves := [name for name, others in edges.items() if not others & edges.keys()]:
        for name in leaves:
            del edges[name]
    return sorted(edges)


# -- the direction of imports -----------------------------------------------------------------------------------------


def test_the_walk_sees_imports_of_every_kind() -> None:
    """The tests below rely on it."""
    text = """
import a
if TYPE_CHECKING:
    from b import c
def f():
    from d import e
    importlib.import_module("g")
"""
    assert imports(ast.parse(text)) == {"a", "b", "d", "g"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_modules_import_each_other() -> None:
    assert not circles(all_imports())


def test_no_packages_import_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in all_imports().items():
        rooms.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    for package in PACKAGES:
        rooms.pop(package)  # the lazy names of a whole package
    assert not circles(rooms)


def test_the_engine_imports_downwards() -> None:
    for module in modules("supernet"):
        for other in all_imports()[module]:
            if module == "supernet" or not other.startswith("supernet."):
                assert other.partition(".")[0] not in ("searchers", "detection", "supernet_tools", "tests")
            elif room(other) != room(module):
                assert floor(other) < floor(module), f"{module} imports {other}, which is not below it"


def test_spaces_and_configs_are_plain_data() -> None:
    for module in FILES:
        if room(module) in PURE:
            for other in all_imports()[module]:
                allowed = room(other) in PURE or other.partition(".")[0] in sys.stdlib_module_names | VALIDATION
                assert allowed, f"{module} imports {other}"


def test_searchers_see_spaces_and_no_model() -> None:
    for module in modules("searchers"):
        ours = {other for other in all_imports()[module] if other.partition(".")[0] in (*PACKAGES, "tests")}
        if room(module) == "searchers.morphnet":  # it shrinks a network, so it sees one
            ours -= {"supernet.spaces.widths"}
        above = {other for other in ours if not other.startswith("searchers") and room(other) not in FOR_SEARCHERS}
        assert not above, f"{module} imports {above}"


def test_detection_stands_on_the_engine_alone() -> None:
    for module in modules("detection"):
        assert not {o for o in all_imports()[module] if o.partition(".")[0] in ("searchers", "supernet_tools", "tests")}


# -- what an import loads ---------------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_light_imports_stay_light() -> None:
    statements = [
        "import supernet, supernet.space, supernet.config, supernet.seeding, supernet.errors, supernet.spaces",
        "from searchers import NSGA2, AgingEvolution, PredictorSearch, RandomSearch, Study, search",
        "import detection, detection.config",
    ]
    scripts = ", ".join(f"supernet_tools.{name}" for name in SCRIPTS)
    assert not loaded_by("; ".join([*statements, f"import {scripts}"])) & HEAVY
    assert "numpy" in loaded_by("import numpy")  # the control


@pytest.mark.parametrize("name", ["supernet", "searchers", "detection"])
def test_public_names_resolve(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    for public in module.__all__:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


# -- help -------------------------------------------------------------------------------------------------------------


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """Processor time of one run: what a user waits for on an idle machine, however busy this one is."""
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, done.stdout


COMMANDS = [("train_supernet", "quickstart"), *((name,) for name in SCRIPTS)]
"""The longest help first; the others start with the same imports (`test_light_imports_stay_light`)."""


@pytest.mark.parametrize(
    "command", [COMMANDS[0], *(pytest.param(command, marks=pytest.mark.slow) for command in COMMANDS[1:])], ids=" ".join
)
def test_help_explains(command: tuple[str, ...]) -> None:
    script, *rest = command
    _, text = cpu_seconds([sys.executable, f"tools/{script}.py", *rest, "--help"])
    assert "usage:" in text
    assert "Traceback" not in text
    assert len(text.splitlines()) > 5


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_comes_at_once(command: tuple[str, ...]) -> None:
    """Behind `slow`, because the processor time of the same work doubles where a neighbour shares the core."""
    script, *rest = command
    line = [sys.executable, f"tools/{script}.py", *rest, "--help"]
    runs = [cpu_seconds(line)[0] for _ in range(3)]
    print(f"{' '.join(command)} --help: {min(runs):.2f} s")
    assert min(runs) < HELP_SECONDS


# -- docstrings -------------------------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for scope in [tree, *classes]:
        for node in scope.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield node


def test_everything_public_has_a_docstring() -> None:
    for module, path in FILES.items():
        tree = parsed(path)
        assert ast.get_docstring(tree), f"{path} has no docstring"
        if not module.startswith("supernet_tools."):
            for node in public_definitions(tree):
                assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_every_package_names_what_it_imports() -> None:
    """The engine and the searchers; ground modules may be named together, and a nested package as the one around it."""
    folders = {module for module, path in FILES.items() if path.name == "__init__.py"}
    for package in folders - PACKAGES.keys() - {"supernet.spaces.tables"}:
        if package.startswith(("detection.", "supernet_tools.")):  # they may import all floors below
            continue
        around = package.rpartition(".")[0]
        documents = [ast.get_docstring(parsed(FILES[name])) or "" for name in {package, around} - PACKAGES.keys()]
        text = " ".join(" ".join(documents).split())
        for module in FILES:
            if module == package or (module.rpartition(".")[0] == package and module not in folders):
                for name in {room(other) for other in all_imports()[module] if other.partition(".")[0] in PACKAGES}:
                    ground = FILES[name].name != "__init__.py"
                    named = name in text or (ground and "ground modules" in text)
                    assert named or name == room(package), f"{package} does not say that it imports {name}"


def test_every_package_says_what_lives_there_and_what_it_imports() -> None:
    for module, path in FILES.items():
        if path.name == "__init__.py" and module != "supernet.spaces.tables":
            text = ast.get_docstring(parsed(path)) or ""
            assert len(re.findall(r"[.:](?=\s|$)", text)) >= 2, f"{module}: say what lives here and what it may import"
            assert module.count(".") == 0 or "import" in text, f"{module}: say what it may import"
