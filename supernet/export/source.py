"""The source that a network needs beyond torch, gathered into one file.

Exported code may import the standard library, torch and torchvision. Everything else that it names is copied: classes
with their bases, helper functions and constants. They are found by following the free names of each definition through
its module.
"""

import ast
import functools
import importlib.util
import inspect
import itertools
import symtable
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from supernet.errors import InputError
from supernet.export.expression import Named, is_literal, literal

LIBRARIES = ("torch", "torchvision")
"""What exported code may import besides the standard library."""

_OWN = ("supernet", "searchers", "detection")  # copied even where they are installed in site-packages


@dataclass(frozen=True)
class Bundle:
    """The code that expressions need.

    Attributes:
        imports: import lines, the standard library first.
        definitions: source of classes, functions and constants, each after those that it needs; may be empty.
        requires: the packages imported besides the standard library.
    """

    imports: str
    definitions: str
    requires: tuple[str, ...]


def bundle(used: Iterable[Named], *, imported: Mapping[str, Any], defined: Iterable[str]) -> Bundle:
    """Returns the source of classes and functions, and of everything that they name.

    Methods called `out_layout` are left out, since exported code has no layouts. Annotations are not evaluated, so the
    surrounding code must begin with `from __future__ import annotations`.

    Args:
        used: classes and functions at the top level of their modules.
        imported: modules, or members of library modules, that the surrounding code imports, by name.
        defined: names that the surrounding code defines, which the bundle must not define.

    Raises:
        InputError: an import of anything but the standard library, torch and torchvision; two different things with
            the same name; a class or function that has no source or is nested in another.
    """
    bundler = _Bundler(taken=dict.fromkeys(defined, "the rest of the file"))
    for name, value in imported.items():
        bundler.taken[name] = value
        bundler.add_import(*_import_of(name, value))
    for named in used:
        bundler.add_root(named)
    return Bundle(bundler.import_lines(), bundler.text(), tuple(sorted(bundler.requires)))


def check_copyable(module: str, owner: str) -> None:
    """Checks that a module is a library or that its code may be copied.

    Raises:
        InputError: `module` belongs to another installed package, which is neither imported nor copied.
    """
    root = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if is_library(module) or root in _OWN:
        return
    if root != "__main__" and (file is None or {"site-packages", "dist-packages"} & set(Path(file).parts)):
        raise _forbidden(owner, module)


def is_library(module: str) -> bool:
    """Returns whether a module belongs to the standard library, torch or torchvision."""
    root = module.partition(".")[0]
    return root in LIBRARIES or root in sys.stdlib_module_names


def _forbidden(owner: str, module: str) -> InputError:
    return InputError(
        f"{owner} needs {module!r}, but exported code may import only torch and torchvision; write it with torch alone"
    )


# -- following names -------------------------------------------------------------------------------------------------


class _Binding(NamedTuple):
    """A statement that binds a global name, with its `alias` if it is an import."""

    statement: ast.stmt
    alias: ast.alias | None


@functools.lru_cache(maxsize=64)
def _source(module: ModuleType) -> tuple[list[str], dict[str, list[_Binding]]]:
    """Returns a module's lines, and the statements that bind each of its global names."""
    try:
        text = inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise InputError(f"the source of {module.__name__!r} cannot be read, so it cannot be exported") from error
    bindings: dict[str, list[_Binding]] = {}
    for statement in _top_level(ast.parse(text)):
        for name, alias in _bound(statement):
            bindings.setdefault(name, []).append(_Binding(statement, alias))
    return text.split("\n"), bindings


def _top_level(node: ast.AST) -> Iterator[ast.stmt]:
    """Yields the statements of a module, including those under `if`, `try` and `with`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _top_level(child)
        elif isinstance(child, ast.stmt):
            yield child


def _bound(statement: ast.stmt) -> Iterator[tuple[str, ast.alias | None]]:
    """Yields the names that a statement binds, with the alias if it is an import."""
    match statement:
        case ast.Import(names=aliases):
            yield from ((alias.asname or alias.name.partition(".")[0], alias) for alias in aliases)
        case ast.ImportFrom(names=aliases):
            yield from ((alias.asname or alias.name, alias) for alias in aliases)
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            yield name, None
        case ast.Assign(targets=targets):
            yield from ((target.id, None) for target in targets if isinstance(target, ast.Name))


def _origin(module: ModuleType, name: str, value: object, owner: str) -> tuple[ModuleType, str, list[_Binding]]:
    """Follows re-exports of a name to its definition or to an import from a library; returns module, name, bindings."""
    while True:
        bindings = _source(module)[1].get(name, [])
        imports = [binding for binding in bindings if binding.alias is not None]
        if not imports and (bindings or is_literal(value)):
            return module, name, bindings
        target, member = _target(module, imports, value)
        if is_library(target):
            return module, name, imports or [_Binding(ast.ImportFrom(target, [], 0), ast.alias(member))]
        if is_literal(value):
            return module, name, []
        check_copyable(target, owner)
        if isinstance(value, ModuleType):
            raise InputError(
                f"{owner} uses the whole module {value.__name__!r}; import the names that it needs instead"
            )
        if target in ("", module.__name__):
            raise InputError(f"{owner} uses {name!r}, whose definition in {module.__name__!r} cannot be found")
        module, name = sys.modules[target], member


def _target(module: ModuleType, imports: list[_Binding], value: object) -> tuple[str, str]:
    """Returns the module that an import reads from, and the name there."""
    if not imports:  # a star import, or a name that the module's __getattr__ provides
        return getattr(value, "__module__", None) or "", getattr(value, "__name__", "")
    statement, alias = imports[0]
    assert alias is not None
    return _absolute(statement, module) if isinstance(statement, ast.ImportFrom) else alias.name, alias.name


def _absolute(statement: ast.ImportFrom, module: ModuleType) -> str:
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), module.__package__ or "")


def _free_names(text: str) -> set[str]:
    """Returns the global names that code reads."""
    names: set[str] = set()
    tables = [symtable.symtable(text, "source", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if (s.is_referenced() if top else s.is_global())}
        tables += table.get_children()
    return names


class _AtDefinition(ast.NodeTransformer):
    """Reduces code to what is executed at definition: no function bodies, no annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Keeps the decorators and defaults."""
        outside = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        return ast.Expr(ast.Tuple(outside, ast.Load()))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Keeps the value."""
        return ast.Expr(node.value or ast.Constant(None))


# -- cutting out source ----------------------------------------------------------------------------------------------


def _definition(module: ModuleType, name: str, bindings: list[_Binding], owner: str) -> str:
    """Returns the source of a class or function (its last definition), or of the only assignment to a name."""
    check_copyable(module.__name__, owner)
    statements = [binding.statement for binding in bindings]
    definitions = [statement for statement in statements if isinstance(statement, ast.ClassDef | ast.FunctionDef)]
    statement = definitions[-1] if definitions else statements[0]
    chained = isinstance(statement, ast.Assign) and len(statement.targets) > 1
    if chained or (not definitions and len(statements) > 1):
        raise InputError(f"{owner} uses {name!r} of {module.__name__!r}, which has several assignments; keep one")
    lines = _source(module)[0][_first_line(statement) - 1 : statement.end_lineno]
    text = "\n".join(lines)
    text = textwrap.dedent(text) if statement.col_offset else text  # dedent would also change blank lines in strings
    return _without_layouts(text) if isinstance(statement, ast.ClassDef) else text


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _without_layouts(text: str) -> str:
    """Removes the method `out_layout` from the source of a class."""
    (tree,) = ast.parse(text).body
    assert isinstance(tree, ast.ClassDef)
    lines, kept = text.split("\n"), len(tree.body)
    for statement in reversed(tree.body):
        if isinstance(statement, ast.FunctionDef) and statement.name == "out_layout":
            first = _first_line(statement) - 1
            while not lines[first - 1].strip():
                first -= 1
            del lines[first : statement.end_lineno]
            kept -= 1
    return "\n".join(lines if kept else [*lines, "    pass"])


# -- gathering -------------------------------------------------------------------------------------------------------


def _import_of(name: str, value: Any) -> tuple[str, str, str]:
    if isinstance(value, ModuleType):
        return value.__name__, "", name
    return value.__module__, value.__name__, name


@dataclass
class _Bundler:
    """The code gathered so far.

    Attributes:
        taken: every global name of the file, with its value.
        imports: `(module, member, name)`; the member is empty for `import module`.
        requires: the packages imported besides the standard library.
        texts: the source of each definition, in the order in which they were found.
        needs: the global names that each definition reads.
        early: those of them that are read when the definition is executed.
    """

    taken: dict[str, object]
    imports: set[tuple[str, str, str]] = field(default_factory=set)
    requires: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    early: dict[str, set[str]] = field(default_factory=dict)

    def add_root(self, named: Named) -> None:
        """Adds a class or function that an expression names."""
        module = sys.modules.get(named.__module__)
        if module is None or vars(module).get(named.__qualname__) is not named:
            raise InputError(f"{named.__qualname__} is not at the top level of a module; move it there to export it")
        if not is_library(named.__module__):
            self._add(module, named.__name__, named.__name__)
        elif self._claim(named.__name__, named):
            self.add_import(*_import_of(named.__name__, named))

    def add_import(self, module: str, member: str, name: str) -> None:
        """Adds `import module as name`, or `from module import member as name`."""
        parent, _, last = module.rpartition(".")
        self.imports.add((parent, last, name) if parent and not member and last == name else (module, member, name))
        self.requires |= {module.partition(".")[0]} & set(LIBRARIES)

    def _claim(self, name: str, value: object) -> bool:
        """Returns whether the name is new. Raises `InputError` if the file uses it for something else."""
        known = self.taken.setdefault(name, value)
        if known is value:
            return name not in self.texts
        if is_literal(value) and type(known) is type(value) and known == value:
            return False
        first, second = (
            getattr(it, "__module__", getattr(it, "__name__", "the rest of the file")) for it in (known, value)
        )
        raise InputError(f"two different things are called {name!r}, of {first} and of {second}; rename one of them")

    def _add(self, module: ModuleType, name: str, owner: str) -> None:
        """Adds the value of a module's global name, and everything that this needs in turn."""
        value = vars(module)[name]
        if not self._claim(name, value):
            return
        home, original, bindings = _origin(module, name, value, owner)
        if bindings and bindings[0].alias is not None:
            for statement, alias in bindings:
                assert alias is not None
                source = (_absolute(statement, home), alias.name) if isinstance(statement, ast.ImportFrom) else None
                self.add_import(*(source or (alias.name, "")), name)
        elif is_literal(value):
            self._define(name, f"{name} = " + literal(value, lead=len(name) + 3), home)
        elif original != name:
            self._define(name, f"{name} = {original}", home)
        else:
            self._define(name, _definition(home, name, bindings, owner), home)

    def _define(self, name: str, text: str, module: ModuleType) -> None:
        tree = ast.parse(text)
        self._check_inner_imports(tree, name, module)
        names = {free for free in _free_names(text) if free in vars(module) and not free.startswith("__")} - {name}
        read = {node.id for node in ast.walk(_AtDefinition().visit(tree)) if isinstance(node, ast.Name)}
        self.texts[name], self.needs[name], self.early[name] = text, names, names & read
        for free in sorted(names):
            self._add(module, free, name)

    def _check_inner_imports(self, tree: ast.AST, owner: str, module: ModuleType) -> None:
        for node in ast.walk(tree):
            targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for target in [_absolute(node, module)] if isinstance(node, ast.ImportFrom) else targets:
                if not is_library(target):
                    raise _forbidden(owner, target)
                self.requires |= {target.partition(".")[0]} & set(LIBRARIES)

    def text(self) -> str:
        """Returns all definitions, with blank lines around classes and functions."""
        order: list[str] = []
        for name in self.texts:
            self._place(name, frozenset(), order)
        blocks = [self.texts[name] for name in order]
        apart = [block.startswith(("class ", "def ", "@")) for block in blocks]
        gaps = ["\n\n\n" if above or below else "\n" for above, below in itertools.pairwise(apart)]
        return "".join(block + gap for block, gap in zip(blocks, [*gaps, ""], strict=False))

    def _place(self, name: str, placing: frozenset[str], order: list[str]) -> None:
        """Appends a name after the names it needs; in a circle of needs, what it reads early comes first."""
        if name in order or name in placing:
            return
        placing |= {name}
        early = self.early[name] & set(self.texts)
        for need in sorted(early):
            self._place(need, placing, order)
        for need in sorted((self.needs[name] & set(self.texts)) - early):
            if not self._closure(need) & placing:
                self._place(need, placing, order)
        order.append(name)

    def _closure(self, name: str) -> set[str]:
        """Returns the definitions that must be executed before this one, and this one."""
        closure, waiting = {name}, [name]
        while waiting:
            new = (self.early[waiting.pop()] & set(self.texts)) - closure
            closure |= new
            waiting += new
        return closure

    def import_lines(self) -> str:
        """Returns the import lines: the standard library before torch, `import` before `from … import`."""
        groups = []
        for wanted in (False, True):
            chosen = [item for item in sorted(self.imports) if (item[0].partition(".")[0] in LIBRARIES) == wanted]
            plain = [(module, name) for module, member, name in chosen if not member]
            lines = [f"import {m}" + ("" if n == m.partition(".")[0] else f" as {n}") for m, n in plain]
            for module in sorted({module for module, member, _ in chosen if member}):
                members = [k if k == n else f"{k} as {n}" for m, k, n in chosen if k and m == module]
                lines.append(f"from {module} import {', '.join(members)}")
            groups.append("\n".join(lines))
        return "\n\n".join(filter(None, groups))
