"""From the command line to a script and back: typed flags, one-line errors, and the command `supernet`."""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from supernet.checked import Checked, FilePath, check, checked_arguments, fields_of, shown, unchecked, unused_fields
from supernet.errors import InputError, RunError, Terminated, nearest
from supernet.heap import keep_freed_memory
from supernet.paths import work_saved
from supernet.plugins import FUNCTION
from supernet_tools.pipeline.located import NOT_MOVED
from supernet_tools.pipeline.settings import signature_types
from supernet_tools.pipeline.trust import Trust, trust, trust_recipe

T = TypeVar("T")

Action = Literal["train", "plan", "find-lr"]
"""What a recipe is read for."""

START = "front:"
FRONT = re.compile(rf"{START}([0-9]{{1,9}})")
"""How `--arch` names a network of the front of a search, by its number."""

COMMANDS = {
    "fit": "fit",
    "train": "train_supernet",
    "search": "search",
    "morphnet": "morphnet",
    "select": "select_network",
    "retrain": "retrain",
    "evaluate": "evaluate",
    "fidelity": "fidelity",
    "export": "export",
    "predict": "predict",
    "draw": "draw",
    "report": "report",
    "demo": "quickstart",
}
"""Command of `supernet` to the script that it runs."""


def console() -> None:
    """The command `supernet COMMAND …`, which runs the same function as `python tools/SCRIPT.py …`."""
    name, rest = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if name in ("-h", "--help"):
        if len(sys.argv) == 1:
            print(f"error: name a command: {', '.join(COMMANDS)}", file=sys.stderr)
        print("usage: supernet COMMAND [--help] …\n\ncommands:")
        for command, script in COMMANDS.items():
            print(f"  {command:10}{_summary(script)}")
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if name == "--version":
        from supernet import __version__

        print(f"supernet {__version__}")
        raise SystemExit(0)
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; {nearest(name, COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"supernet {name}", *rest]
    main(importlib.import_module(f"supernet_tools.{COMMANDS[name]}").run)


def _summary(script: str) -> str:
    """The first sentence of a script's docstring."""
    text = importlib.import_module(f"supernet_tools.{script}").__doc__ or ""
    return text.splitlines()[0].partition("python tools/")[0].rstrip(": .")


def main(run: Callable[[], None]) -> None:
    """Runs a script. Exit code 2 with one line for wrong input, 1 for a run that cannot go on, 130 for Ctrl-C."""
    work_saved.clear()
    keep_freed_memory()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {rank()}{message}", file=sys.stderr)
    try:
        with _terminated_like_an_interrupt():
            run()
    except (InputError, RunError) as error:
        print(f"error: {rank()}{' '.join(str(error).splitlines())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    except BrokenPipeError:  # the reader of a pipe, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        raise SystemExit(141) from None  # as a shell says of a process that SIGPIPE ended
    except (OSError, MemoryError) as error:  # what no stage expected, e.g. a folder without permission
        print(f"error: {rank()}{' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None
    except Terminated:
        print(_stopped("terminated"), file=sys.stderr)
        raise SystemExit(143) from None
    except KeyboardInterrupt:
        print(_stopped("interrupted"), file=sys.stderr)
        raise SystemExit(130) from None


def _stopped(how: str) -> str:
    """What a command says that was stopped."""
    if work_saved.is_set():
        return f"{how}; finished work is saved, and the same command goes on from it"
    return f"{how} before it saved any work; the same command begins where this one did"


@contextlib.contextmanager
def _terminated_like_an_interrupt() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, with one line and everything closed.

    Under torchrun the signal ends a process at once, as the launcher expects; a training finishes its step first.
    """
    if threading.current_thread() is not threading.main_thread() or "RANK" in os.environ:
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def rank() -> str:
    """The process of a torchrun that speaks; empty for the first or only one."""
    number = os.environ.get("RANK", "0")
    return "" if number == "0" else f"(rank {number}) "


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """An entry of a table by name. Raises `InputError` with the nearest name."""
    if name not in table:
        raise InputError(f"there is no {kind} {name!r}; {nearest(name, table)}")
    return table[name]


class Flags(Checked):
    """Base of the settings of a command, which know which of them were typed.

    Attributes:
        typed: names of the fields whose flags were typed, those of a dataclass in it behind a dot; none for settings
            that were made in Python.
    """

    typed: ClassVar[frozenset[str]] = frozenset()

    def refuse(self, *names: str, reason: str) -> None:
        """Refuses flags that turn out to have no effect once it is known what the command works on.

        Args:
            names: names of the fields.
            reason: when they have no effect, such as "for a classifier".

        Raises:
            InputError: the flag of one of them was typed.
        """
        _refuse_unused(self, ((name, reason) for name in names), self.typed)


def search_unused(arch: str | None) -> Iterator[tuple[str, str]]:
    """Yields the field `search` of a command whose `arch` names a network by itself, as `Checked.unused` does."""
    if arch is not None and not arch.startswith(START):
        yield "search", "beside --arch, which names the network (only front:N is one of a search)"


def calibration_unused(bn: str | None, *names: str) -> Iterator[tuple[str, str]]:
    """Yields the fields of a command that describe a calibration of batch norm, if its `bn` asks for none."""
    if bn == "keep":
        for name in names:
            yield name, "with --bn keep, which calibrates nothing"


def parse(settings: type[T], description: str | None, args: Sequence[str] | None = None) -> T:
    """A dataclass from typed command-line flags; its field `trust`, if it has one, holds for this command.

    Raises:
        InputError: a flag that is unknown, given twice, without a value or without an effect, or a value of a wrong
            type or out of range.
    """
    kind: Any = settings
    words = sys.argv[1:] if args is None else args
    _refuse_empty_paths(words, fields_of(kind))
    with unchecked():
        values: T = _cli(settings, description=description, args=args, prog=_program(), flags=_flags(settings))
    check(values, remedy=lambda name: "" if _positional(settings, name) else _remedy(name))
    typed_names = _typed(words, kind)
    for name in sorted(typed_names):
        if attrgetter(name)(values) == ():
            raise InputError(f"{_flag(name)} has no value; give one behind it, or leave the flag out")
    if isinstance(values, Flags):
        object.__setattr__(values, "typed", typed_names)
        _refuse_unused(values, unused_fields(values), typed_names)
    source = getattr(values, "data", NOT_MOVED).source
    typed = [source] if source and FUNCTION.fullmatch(source) else []
    trust([*getattr(values, "trust", ()), *typed])
    return values


def run_one_of(commands: Mapping[str, Callable[..., None]], description: str | None) -> None:
    """Runs the function that the first argument names, with its arguments as typed flags.

    Raises:
        InputError: a command or flag that is unknown or given twice, or a value of a wrong type or out of range.
    """
    from tyro.extras import subcommand_cli_from_dict

    def deferred(function: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bound(*args: Any, **values: Any) -> Any:
            return functools.partial(function, *args, **values)

        return bound

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in ("-h", "--help"):
        choose("command", name, commands)
    arguments = [item for function in commands.values() for item in signature_types(function).items()]
    flags = [flag for argument, kind in arguments for flag in _flags_of(argument, kind)]
    _refuse_empty_paths(sys.argv[2:], dict(arguments))
    with unchecked():
        call = _cli(
            {command: deferred(function) for command, function in commands.items()},
            cli=subcommand_cli_from_dict,
            args=None,
            flags=flags,
            prog=_program(),
            description=description,
        )
    for name, value in call.keywords.items():
        if dataclasses.is_dataclass(value):
            check(value)
        if value == () and _flag(name) in sys.argv:
            raise InputError(f"{_flag(name)} has no value; give one behind it, or leave the flag out")
    checked_arguments(call.func)(*call.args, **call.keywords)


def _cli(
    target: Any, *, args: Sequence[str] | None, flags: Iterable[str], cli: Callable[..., Any] = tyro.cli, **options: Any
) -> Any:
    """What `tyro.cli` returns; the box that it draws around an error becomes one line.

    Args:
        target: what tyro fills.
        args: the command line; that of the process if None.
        flags: what a wrong flag is compared with.
        cli: `tyro.cli`, or a function that takes the same arguments.
        options: of `cli`.
    """
    args = sys.argv[1:] if args is None else args
    once(args)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return cli(target, args=args, **options)
    except SystemExit as stopped:
        if stopped.code in (0, None):
            raise
        rows = [re.sub("[╭╮╰╯│─]+|-{3,}", " ", row).strip() for row in messages.getvalue().splitlines()]
        text = " ".join(row for row in rows[1:] if row).partition("For full helptext")[0]
        text = text.partition("Argument helptext:")[0].strip(" .")
        if text.startswith("Unrecognized"):
            text = _unknown(args, flags, text.partition(":")[2].split(", ")[0].strip())
        raise InputError(f"{text or 'these arguments cannot be read'}; see {options['prog']} --help") from None


def _unknown(args: Sequence[str], known: Iterable[str], first: str) -> str:
    """Names the first flag that does not exist, with the nearest ones that do; `first` if all flags exist."""
    names = {"--help", *known}
    flags = [arg.partition("=")[0].replace("_", "-") for arg in args if re.match("--[A-Za-z]", arg)]
    wrong = next((flag for flag in flags if re.sub(r"(^--|\.)no-", r"\1", flag) not in names), None)
    if wrong is None:
        return f"the argument {first!r} belongs to no flag"
    close = difflib.get_close_matches(wrong, sorted(names), n=3)
    return f"there is no flag {wrong}" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _flags(settings: Any, prefix: str = "--") -> Iterator[str]:
    """Yields the flags of a dataclass, those of the dataclasses in it behind a dot."""
    for name, kind in fields_of(settings).items():
        yield from _flags_of(name, kind, prefix)


def _flags_of(name: str, kind: Any, prefix: str = "--") -> Iterator[str]:
    """Yields the flag of an argument, or those of the dataclass that it is."""
    flag = prefix + name.replace("_", "-")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield from _flags(kind, f"{flag}.")
    else:
        yield flag


def _refuse_empty_paths(args: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Raises `InputError` for an empty path, as "$UNSET" is in a shell: it would mean this folder."""
    paths = {flag for name, kind in kinds.items() if "pathlib.Path" in str(kind) for flag in _flags_of(name, kind)}
    switches = {flag for name, kind in kinds.items() if kind is bool for flag in _flags_of(name, kind)}
    flag = ""
    for arg in args:
        name, equals, value = arg.partition("=")
        flag = name.replace("_", "-") if arg.startswith("--") else flag
        if arg == "" and (not flag or flag in switches):
            raise InputError("an empty argument names nothing; give a file or folder, . for this one")
        if flag in paths and (arg == "" or (equals and name.startswith("--") and not value)):
            raise InputError(f"{flag} '' names nothing; give a file or folder, . for this one")


def once(args: Sequence[str]) -> None:
    """Checks that no flag is given twice, since only one of its values would count. Raises `InputError`."""
    flags = [arg.partition("=")[0].replace("_", "-") for arg in args if re.match("--[A-Za-z]", arg)]
    names = [re.sub(r"(^--|\.)no-", r"\1", flag) for flag in flags]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"the flag {name} is given twice; give it once, with all its values behind it")


def _flag(name: str) -> str:
    """The flag of a field by its dotted name."""
    return f"--{name.replace('_', '-')}"


def _remedy(name: str) -> str:
    return f"; change {_flag(name)}"


def _typed(words: Sequence[str], kind: Any) -> frozenset[str]:
    """The dotted names of the fields of a dataclass whose flags are among the words of a command line."""
    names = {word.partition("=")[0].replace("_", "-") for word in words if re.match("--[A-Za-z]", word)}
    flags = {re.sub(r"(^--|\.)no-", r"\1", name) for name in names} | names
    return frozenset(flag[2:].replace("-", "_") for flag in _flags(kind) if flag in flags)


def _refuse_unused(values: Any, unused: Iterable[tuple[str, str]], typed: Collection[str]) -> None:
    """Raises `InputError` for the first field without an effect whose flag was typed.

    Args:
        values: the settings.
        unused: dotted names of fields without an effect, each with when that is so.
        typed: dotted names of the fields whose flags were typed.
    """
    for name, reason in unused:
        if name in typed:
            value = shown(attrgetter(name)(values))
            raise InputError(f"{name}={value} has no effect {reason}; leave out {_flag(name)}")


def _positional(settings: Any, name: str) -> bool:
    return tyro.conf.Positional in getattr(fields_of(settings)[name], "__metadata__", ())


def parse_recipe(recipes: Mapping[str, Callable[[], T]], description: str) -> tuple[T, Path, Action, bool]:
    """Reads `RECIPE [--field value …] --out FOLDER [--plan | --find-lr]`, where every field of the recipe is a flag.

    Returns:
        the recipe with the given fields, the folder, what to do, whether changed data are accepted.
    """
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        if not args:
            print("error: name a recipe and give --out FOLDER", file=sys.stderr)
        print(f"{description}\n\nusage: {_program()} RECIPE [--help] [--field value ...] --out FOLDER\n\nrecipes:")
        for name, make in recipes.items():
            print(f"  {name:24}{(make.__doc__ or '').splitlines()[0]}")
        raise SystemExit(0 if args else 2)
    recipe = choose("recipe", args[0], recipes)()
    kind: Any = type(recipe)

    def configure(
        *,
        out: Path,
        plan: bool = False,
        find_lr: bool = False,
        accept_changed_data: bool = False,
        trust: Trust = (),
        config: Annotated[kind, tyro.conf.arg(name="")] = recipe,
    ) -> tuple[Any, Path, Action, bool]:
        """Train by this recipe.

        Args:
            out: Folder of the run. An interrupted run goes on.
            plan: Only print parameters, memory, time and disk that the training would take.
            find_lr: Only try learning rates in short trainings on copies, and print their losses.
            accept_changed_data: Go on although images were repaired, removed or added, or data.skip-unreadable set.
            trust: Code from outside this project that the run of `pretrained` names and that may run, as
                package.module:function. What is typed here as space, backbone or data.source is trusted.
            config: Every field of the recipe.
        """
        if plan and find_lr:
            raise InputError("--plan and --find-lr are two questions; give one of them")
        trust_recipe(config, trust)
        return config, out, "plan" if plan else "find-lr" if find_lr else "train", accept_changed_data

    _refuse_empty_paths(args, fields_of(Output))
    with unchecked():
        flags = [*_flags(kind), "--out", "--plan", "--find-lr", "--accept-changed-data", "--trust"]
        parsed = _cli(configure, args=args[1:], flags=flags, prog=f"{_program()} {args[0]}", description=description)
    config, out, action, accept = parsed
    check(Output(out))
    check(config, remedy=_remedy)
    _refuse_unused(config, unused_fields(config), _typed(args[1:], kind))
    return config, out, action, accept


def command(name: str, *arguments: object) -> str:
    """A command line that a user can copy, in the form in which this command was called."""
    start = ["supernet", name] if sys.argv[0].startswith("supernet ") else ["python", f"tools/{COMMANDS[name]}.py"]
    return shlex.join([*start, *map(str, arguments)])


def closing(written: Iterable[object], *following: str) -> None:
    """Says on standard error what a command has written, and which commands come next."""
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    for number, line in enumerate(following):
        print(f"{'next:' if not number else '  or:'} {line}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Output(Checked):
    """Where a recipe writes."""

    out: FilePath


def _program() -> str:
    """What usage lines call this command."""
    return sys.argv[0] if sys.argv[0].startswith("supernet ") else Path(sys.argv[0]).name
