"""The documentation keeps its word: examples run, commands parse, links and names lead somewhere."""

import ast
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from helpers.scripts import run_script
from searchers.catalog import searcher_settings
from supernet import Chain, list_spaces
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.config import Data
from supernet.testing import check_space
from supernet_tools.pipeline.command_line import parse, parse_recipe
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.settings import pairs

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = [ROOT / "BENCHMARKS.md", *sorted((ROOT / "docs" / "benchmarks").glob("*.md"))]
"""Measurements, whose commands are those of their time; their links must lead somewhere all the same."""
OWN_SPACE = ROOT / "docs" / "own_space.md"
FOLDERS = ("tools", "docs", "tests", "supernet", "searchers", "detection")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def python(*args: object, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python process with one folder on PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# -- examples --------------------------------------------------------------------------------------------------------


def smaller(code: str, *changes: tuple[str, str]) -> str:
    """An example with fewer or smaller images and fewer steps, which takes a third of the time."""
    for before, after in changes:
        assert before in code
        code = code.replace(before, after)
    return code


SMALLER = (("size=16", "size=8"), ("Train(epochs=1)", "Train(epochs=1, batch=512)"))
NARROWER = (("in_channels=1)", "in_channels=1, widths=(16, 32, 64), stem=8)"),)
FEWER = (("size=8)", "size=8, calibration=64)"), ("trials=8", "trials=4"))
as_written = pytest.mark.parametrize("changed", [True, pytest.param(False, marks=pytest.mark.slow)])


@as_written
@pytest.mark.usefixtures("forked_runner")
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    lines = [line for line in code.splitlines() if line and not line.startswith("from ")]
    assert len(lines) == 10
    monkeypatch.chdir(tmp_path)
    exec(smaller(code, *SMALLER, *FEWER) if changed else code, {})
    assert (tmp_path / "exported" / "model.py").is_file()


def test_the_example_of_a_race_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "docs" / "select.md", "python")
    exec(code, {})
    assert "Arch(" in capsys.readouterr().out


@as_written
def test_the_examples_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool) -> None:
    from supernet.data.load import load

    own_data, training = blocks(ROOT / "docs" / "train.md", "python")
    (tmp_path / "scans.py").write_text(own_data)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(load(Data("scans:scans", size=8)).train) == 256
    exec(smaller(training, *SMALLER, *NARROWER) if changed else training, {})
    assert (tmp_path / "state.pt").is_file()


@as_written
def test_the_example_of_detection_runs(capsys: pytest.CaptureFixture[str], changed: bool) -> None:
    (code,) = blocks(ROOT / "docs" / "detection.md", "python")
    exec(smaller(code, ("(48, 8, 8)", "(16, 4, 4)")) if changed else code, {})
    assert "Arch(backbone." in capsys.readouterr().out


def test_the_example_of_elastic_networks_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = blocks(ROOT / "docs" / "elastic.md", "python")
    exec(code, {})
    assert capsys.readouterr().out.endswith(" of 385187552\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the module of the page."""
    (tmp_path / "own_space.py").write_text(blocks(OWN_SPACE, "python")[0])
    return tmp_path


def test_the_own_space_has_forty_lines_and_keeps_the_contract(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (own / "own_space.py").read_text()
    assert len(text.splitlines()) <= 40
    monkeypatch.syspath_prepend(own)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    supernet: Chain = importlib.import_module("own_space").build()
    check_space(supernet, archs=4)
    counted = re.search(r": ([\d *]+) architectures", text)
    assert counted
    assert supernet.space.size() == eval(counted[1])


def test_the_own_space_trains_under_its_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    out = own / "run"
    tiny = ("--train.epochs", 1, "--train.batch", 512, "--data.size", 8, "--data.calibration", 64)
    assert run_script("train_supernet", "quickstart", "--space", "own_space:build", *tiny, "--out", out) == 0
    assert (out / "supernet.safetensors").is_file()
    few = ("--searcher", "random", "--trials", 2)
    assert run_script("search", out, *few) == 2  # the run alone does not run code
    assert run_script("search", out, *few, "--trust", "own_space:build") == 0


def test_the_searchable_of_the_page_keeps_the_contract() -> None:
    scope: dict[str, type] = {}
    exec(blocks(OWN_SPACE, "python")[1], scope)
    body = scope["Depth"]([ConvBNAct(8, 12, kernel=3, stride=2), ConvBNAct(12, 12), ConvBNAct(12, 12, kernel=5)])
    steps = [("stem", ConvBNAct(1, 8, kernel=3)), ("body", body), ("head", ClassifierHead(12, 10, hidden=16))]
    supernet = Chain("depth", steps, input_shape=(1, 16, 16))
    assert [choice.name for choice in supernet.space.choices] == ["body.n"]
    check_space(supernet, archs=3)


@every_page
def test_python_compiles_and_imports_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})


# -- commands --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `python tools/SCRIPT …` of the pages as the script's module and its arguments."""
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        for line in lines + spans(page):
            words = shlex.split(line, comments=True)
            at = next((i for i, word in enumerate(words) if word.startswith("tools/")), 0)
            if at and words[at - 1] == "python":
                yield ".".join(Path(words[at]).with_suffix("").parts[1:]), words[at + 1 :]


@pytest.mark.parametrize(("name", "args"), commands(), ids=lambda value: value if isinstance(value, str) else "-")
def test_commands_parse(name: str, args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"supernet_tools.{name}")
    if "--help" in args or (name == "train_supernet" and not args):
        return  # what they print is tested with the scripts
    if name == "train_supernet":
        monkeypatch.setattr(sys, "argv", [name, *args])
        config, out, *_ = parse_recipe(module.RECIPES, "")
        assert out.parts[0] == "runs"
        assert dataclasses.is_dataclass(config)
        return
    (settings,) = [
        kind
        for kind in vars(module).values()
        if getattr(kind, "__module__", "") == module.__name__ and dataclasses.is_dataclass(kind)
    ]
    parsed = parse(settings, None, args)
    if name == "search":
        assert set(pairs(parsed.settings)) <= set(searcher_settings(parsed.searcher))


def test_commands_are_found() -> None:
    scripts = {
        "train_supernet",
        "search",
        "morphnet",
        "retrain",
        "export",
        "evaluate",
        "fidelity",
        "draw",
        "predict",
        "select_network",
        "fit",
        "report",
    }
    assert {name for name, _ in commands()} == {
        *scripts,
        "benchmarks.alone",
        "benchmarks.widths",
        "benchmarks.detectors",
        "benchmarks.race",
        "benchmarks.demo",
        "benchmarks.rivals",
    }


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set()
    for page in PAGES:
        code = "\n".join(blocks(page, "bash") + spans(page))
        named |= set(re.findall(r"^make (?:[A-Z]+=\S+ )?([a-z-]+)", code, flags=re.MULTILINE))
    assert named >= {"demo", "test", "test-all", "lint"}
    assert named <= targets


# -- links and names -------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page as link targets."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *LOG], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())):
        assert not target.startswith(("http:", "https:")), f"{target}: the pages need no other site"
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{target} has no heading {anchor!r}"


@every_page
def test_named_files_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./]*", span):
            assert (ROOT / span).exists(), f"{page.name} names {span}, which does not exist"


def test_the_readme_names_every_space_and_recipe() -> None:
    table = (ROOT / "README.md").read_text().partition("## What is there")[2].partition("## Pages")[0]
    patterns = re.findall(r"`([a-z0-9.*-]+)`", table)
    for name in (*list_spaces(), *RECIPES):
        assert any(fnmatch(name, pattern) for pattern in patterns), f"the README does not name {name}"
