"""Functions that users write, such as spaces and data sets: what goes wrong in them is one line that names them."""

import contextlib
import importlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from supernet.errors import InputError, RunError


def import_function(reference: str, what: str) -> Callable[..., Any]:
    """Imports the function that `"package.module:function"` names.

    Args:
        reference: its module and name.
        what: what messages call it, such as "the space 'mine:small'".

    Raises:
        InputError: the module cannot be imported, whatever it does instead, or has no such function.
    """
    module, _, name = reference.partition(":")
    try:
        with calling(what, doing="cannot be imported"):
            function = getattr(importlib.import_module(module), name, None)
    except InputError as error:
        if isinstance(error.__cause__, ImportError):
            raise InputError(f"{error}; is its folder on PYTHONPATH?") from error.__cause__
        raise
    if function is None:
        raise InputError(f"{what} cannot be imported: {module} has no {name!r}; is its folder on PYTHONPATH?")
    if not callable(function):
        raise InputError(f"{what} cannot be called: {name!r} is of type {type(function).__name__}, not a function")
    checked: Callable[..., Any] = function
    return checked


@contextlib.contextmanager
def calling(what: str, *, doing: str = "failed") -> Iterator[None]:
    """Turns whatever is raised inside, also an exit of the program, into an `InputError` of one line that names `what`.

    A real Ctrl-C, what a handler of another signal raises like one, and `RunError` are passed on.
    """
    with _noting_interrupts() as pressed:
        try:
            yield
        except RunError:
            raise
        except BaseException as error:
            signalled = pressed or type(error) is not KeyboardInterrupt  # a subclass comes from a handler of a signal
            if (isinstance(error, KeyboardInterrupt) and signalled) or isinstance(error, GeneratorExit):
                raise
            raise InputError(f"{what} {doing}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Returns what went wrong and where, in one line."""
    message = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, InputError | ImportError):
        return message or type(error).__name__
    if isinstance(error, SystemExit):
        return f"it ends the program with exit code {error.code!r}"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the frame that called
    if frames and not isinstance(error, SyntaxError):
        text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return text


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yields a list that gets an entry when somebody presses Ctrl-C, which a raised `KeyboardInterrupt` is not."""
    pressed: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pressed.append(0)  # cannot tell: every interrupt counts as a real one
        yield pressed
        return

    def interrupt(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
