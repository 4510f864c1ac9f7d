"""Imports run one way, files and functions stay small, everything is annotated, and help comes at once."""

import ast
import importlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("supernet", "searchers", "detection")
OURS = (*PACKAGES, "tools", "tests")
BENCHMARKS = ("benchmark_curves", "benchmark_fronts", "benchmark_oracles", "benchmark_supernets")
PARTS = (*BENCHMARKS, "classifying", "common", "detecting", "recipes", "searching", "stages")  # of scripts
SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem not in PARTS)
PURE = (
    "supernet.space",
    "supernet.config",
    "detection.config",
    "supernet.errors",
    "supernet.normal_form",
    "supernet.seeding",
)
HEAVY = {"torch", "torchvision", "timm"}  # 3 to 6 s of import

FILE_LINES, FUNCTION_LINES, HELP_SECONDS = 500, 70, 1.0


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def name_of(path: Path) -> str:
    """`supernet/spaces/__init__.py` is `supernet.spaces`; a tool and a test are known by their folder too."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in files(*OURS)}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs, those inside functions too; `if TYPE_CHECKING:` bodies are left out."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for part in child.orelse:
                yield from statements(part)
        else:
            yield from statements(child)


def imports(module: str) -> set[str]:
    """All modules that a module imports, wherever in it; of ours the file that a name comes from."""
    found: set[str] = set()
    for node in statements(parsed(FILES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the module"
            origin = node.module or ""
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else homes(origin, name) for name in inner}
    if module.startswith("tools."):
        found = {f"tools.{name}" if f"tools.{name}" in FILES else name for name in found}
    return found - {module}


def homes(origin: str, name: str) -> str:
    """`from supernet import Chain` reaches supernet.searchable, where the lazy package has it from."""
    if origin in PACKAGES and (ROOT / origin / "__init__.py").exists():
        table: dict[str, str] = getattr(importlib.import_module(origin), "_HOME", {})
        return table.get(name.rpartition(".")[2], origin)
    return origin


def package(name: str) -> str:
    return name.partition(".")[0]


def modules(of: str) -> list[str]:
    return [name for name in FILES if package(name) == of]


# -- the direction of imports -----------------------------------------------------------------------------------------


def rank(module: str) -> int:
    """space, config ← searchable ← blocks ← spaces ← what trains, scores, counts and writes ← testing."""
    if module in (*PURE, "supernet"):
        return 0
    for level, start in enumerate(("supernet.searchable", "supernet.blocks", "supernet.spaces"), start=1):
        if module == start or module.startswith(start + "."):
            return level
    return 5 if module == "supernet.testing" else 4


@pytest.mark.parametrize("module", modules("supernet"))
def test_the_engine_imports_one_way(module: str) -> None:
    for other in imports(module):
        assert package(other) not in (
            "searchers",
            "detection",
            "tools",
            "tests",
            "common",
            "stages",
            "searching",
            "recipes",
        ), f"{module} imports {other}"
        if package(other) == "supernet":
            allowed = rank(module)
            assert rank(other) <= allowed, f"{module} imports {other}, which stands above it"


@pytest.mark.parametrize("module", PURE)
def test_spaces_and_configs_are_plain_data(module: str) -> None:
    for other in imports(module):
        assert other in PURE or package(other) in sys.stdlib_module_names, f"{module} imports {other}"


def test_the_engine_has_no_import_cycles() -> None:
    edges = {name: {other for other in imports(name) if other in FILES} for name in modules("supernet")}
    while edges:
        leaves = [name for name, others in edges.items() if not others & edges.keys()]
        assert leaves, f"these modules import each other: {sorted(edges)}"
        for name in leaves:
            del edges[name]


@pytest.mark.parametrize("module", modules("searchers"))
def test_searchers_see_spaces_and_no_model(module: str) -> None:
    for other in imports(module):
        if package(other) in OURS and package(other) != "searchers":
            assert other in ("supernet.space", "supernet.errors", "supernet.seeding"), f"{module} imports {other}"


@pytest.mark.parametrize("module", modules("detection"))
def test_detection_stands_on_the_engine_alone(module: str) -> None:
    assert not {other for other in imports(module) if package(other) in ("searchers", "tools", "tests")}


@pytest.mark.parametrize("module", [name for name in FILES if package(name) in PACKAGES])
def test_no_package_imports_scripts(module: str) -> None:
    scripts = {Path(path).stem for path in (ROOT / "tools").glob("*.py")}
    assert not {other for other in imports(module) if package(other) == "tools" or other in scripts}


def test_the_walk_sees_imports_inside_functions_and_behind_lazy_names() -> None:
    """What the tests above rely on, shown on files that have both."""
    assert "supernet.searchable" in imports("supernet.spaces")  # inside create_network, not only for type checkers
    assert {"supernet.searchable", "supernet.space"} <= imports("tools.stages")  # from supernet import Arch, Chain
    assert "tools.stages" in imports("tools.search")
    assert "supernet.spaces" not in imports("supernet")  # for type checkers alone
    assert "torch" in imports("supernet.spaces")


# -- what an import loads ---------------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import supernet",
        "import supernet.space, supernet.config, supernet.seeding, supernet.errors",
        "import supernet.spaces",
        "import supernet.space, searchers",
        "from searchers import NSGA2, AgingEvolution, PredictorSearch, RandomSearch, Study, search",
        "import detection, detection.config",
    ],
)
def test_light_imports_stay_light(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_a_chain_loads_torch() -> None:
    """The control of the test above."""
    assert "torch" in loaded_by("import supernet; supernet.Chain")


@pytest.mark.parametrize("name", ["supernet", "searchers", "detection"])
def test_public_names_resolve(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__, key=str.lower) == sorted(set(module.__all__), key=str.lower)
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


@pytest.mark.xdist_group("help")  # one at a time
@pytest.mark.parametrize("command", [(name,) for name in SCRIPTS] + [("train_supernet", "quickstart")], ids=" ".join)
def test_help_comes_at_once(command: tuple[str, ...]) -> None:
    script, *rest = command
    line = [sys.executable, f"tools/{script}.py", *rest, "--help"]
    runs = [cpu_seconds(line) for _ in range(3)]
    assert statistics.median(seconds for seconds, _ in runs) < HELP_SECONDS
    assert "usage:" in runs[0][1]
    assert "Traceback" not in runs[0][1]
    assert len(runs[0][1].splitlines()) > 5


# -- size, annotations, docstrings ------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for function in functions(ast.parse(text)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES, f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", files(*PACKAGES, "tools"), ids=name_of)
def test_every_function_is_annotated(path: Path) -> None:
    for function in functions(parsed(path)):
        given = function.args
        arguments = given.posonlyargs + given.args + given.kwonlyargs + [given.vararg or ast.arg("self")]
        arguments += [given.kwarg or ast.arg("self")]
        bare = [arg.arg for arg in arguments if arg.annotation is None and arg.arg not in ("self", "cls")]
        assert not bare, f"{function.name}: no annotation of {bare}"
        assert function.returns is not None, f"{function.name}: no annotation of what it returns"


@pytest.mark.parametrize("path", files(*PACKAGES), ids=name_of)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree) or not tree.body, "no docstring of the module"  # an empty __init__ hides nothing
    for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in scope.body:
            public = isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
            overload = isinstance(node, Function) and any(ast.unparse(d) == "overload" for d in node.decorator_list)
            if public and not overload and not getattr(scope, "name", "").startswith("_"):
                assert ast.get_docstring(node), f"no docstring of {node.name}"  # type: ignore[arg-type, union-attr]


def test_every_script_explains_itself() -> None:
    assert len(SCRIPTS) >= 6
    for name in SCRIPTS:
        assert ast.get_docstring(parsed(ROOT / "tools" / f"{name}.py"))
