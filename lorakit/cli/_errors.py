"""What the user sees when something goes wrong: one clear line on stderr, and the exit code."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from ..exceptions import LorakitError, LorakitWarning, Setting, Words
from ._streams import discard, open_missing, say_aside

# 1 is an answer: no, of diff and verify. 70 is what sysexits.h has for an error in the program itself.
_USER, _BUG, _INTERRUPTED, _BROKEN_PIPE = 2, 70, 130, 141
_REPORT = "This is a bug in lorakit. Please report it with the output of the same command under --debug."
_DEBUG = "lorakit.debug"  # in click's meta, which a command shares with its group

# What a remedy asks for is an argument of the library; here it is an option, by the same name but for these.
_AS_OPTIONS = {
    "same_base": "leave out --strict",
    "component": "run lorakit convert --component {}",
    "family": "run lorakit convert --family {}",
    "k": "pass -k",
}


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_DEBUG] = value or ctx.meta.get(_DEBUG, False)


debug_option = click.option(
    "--debug",
    is_flag=True,
    envvar="LORAKIT_DEBUG",
    is_eager=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error.  [env: LORAKIT_DEBUG]",
)


class Commands(click.Group):
    """A group whose commands end with lorakit's messages and exit codes, whatever they raise."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; translate what the library raises and warns of."""
        interrupts: list[int] = []
        try:
            with _plain_warnings(), _noted(interrupts):
                _require_current_folder()
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if interrupts:  # torch, while it is imported, turns it into other errors
                raise KeyboardInterrupt from error
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            say_error(error)
            if not _is_users(error):
                say_aside(_REPORT)
            ctx.exit(_USER if _is_users(error) else _BUG)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Parse, run, exit."""
        open_missing()
        try:
            code = cast(Any, super()).main(*args, **kwargs | {"standalone_mode": False}) or 0
            sys.stdout.flush()  # what cannot be written shows here, and not when Python shuts down
        except click.Abort:  # click's name for KeyboardInterrupt
            say_aside("lorakit: interrupted")
            code = _INTERRUPTED
        except click.ClickException as error:
            _show_usage(error)
            code = error.exit_code
        except (BrokenPipeError, SystemExit):  # the latter is what click makes of the former
            discard(sys.stdout)
            code = _BROKEN_PIPE
        except OSError as error:
            discard(sys.stdout)
            say_aside(f"stdout cannot be written: {error.strerror}", kind="error")
            code = _USER
        sys.exit(code)


def _require_current_folder() -> None:
    """Say that the current folder is gone, which ends in a fatal error without a reason when torch is imported."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder was deleted; change to one that exists (cd)") from None


@contextmanager
def parameters_checked() -> Iterator[None]:
    """Around ``fit``: a TypeError that comes before any module is read is about a parameter, so the user's."""
    try:
        yield
    except TypeError as error:
        if getattr(error, "__notes__", None) or isinstance(error, LorakitError):
            raise
        raise ValueError(str(error)) from error


def say_error(error: Exception) -> None:
    """Report an error and go on."""
    say_aside(message(error), kind="error")


def _is_users(error: Exception) -> bool:
    return isinstance(error, (ValueError, OSError, ImportError)) or _shortage(error) is not None


def _shortage(error: Exception) -> str | None:
    """Say what the machine has too little of, if that is what an error is about.

    By names and texts: torch and the C++ library raise plain RuntimeErrors for it, and importing torch for its
    OutOfMemoryError would take seconds.
    """
    text = str(error)
    memory = ("DefaultCPUAllocator", "std::bad_alloc", "not enough memory", "Cannot allocate memory")
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "out of memory"
    if isinstance(error, RuntimeError) and any(sign in text for sign in memory):
        return "out of memory"
    if isinstance(error, RuntimeError) and ("start new thread" in text or "Resource temporarily unavailable" in text):
        return "no more threads can be started"
    return None


def message(error: Exception) -> str:
    """Return what to tell the user, in the words of the command line."""
    text = error.worded(_option) if isinstance(error, LorakitError) else str(error)
    text = text or type(error).__name__
    if not _is_users(error):
        text = f"{type(error).__name__}: {text}"
    elif (shortage := _shortage(error)) is not None:
        text = f"{shortage}: {text}; use fewer --jobs, or --device cpu"
    notes = [note for note in getattr(error, "__notes__", ()) if note not in text]
    return f"{text} ({'; '.join(notes)})" if notes else text


def _option(setting: Setting | Words) -> str:
    """Name what a remedy asks for as an option of the command line.

    Examples
    --------
    >>> _option(Setting("overwrite", True)), _option(Setting("modules_to_save", "drop"))
    ('pass --overwrite', 'pass --modules-to-save drop')
    """
    if isinstance(setting, Words):
        return setting.command_line
    values = " or ".join(str(value).removeprefix("torch.") for value in setting.values if value is not True)
    said = _AS_OPTIONS.get(setting.name)
    if said is not None and not (said.startswith("run ") and setting.name in _own_options()):
        return said.format(values)
    return f"pass --{setting.name.replace('_', '-')} {values}".rstrip()


def _own_options() -> set[str | None]:
    """Return the names of the options of the command that runs."""
    ctx = click.get_current_context(silent=True)
    command = None if ctx is None else ctx.command
    if ctx is not None and isinstance(command, click.Group):
        command = command.get_command(ctx, ctx.invoked_subcommand or "")
    return set() if command is None else {param.name for param in command.params}


def _show_usage(error: click.ClickException) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # `lorakit` alone; its message is the help
        error.show()
        return
    ctx = getattr(error, "ctx", None)
    say_aside(_parameter_meant(error, ctx) or error.format_message(), kind="error")
    if ctx is not None:
        say_aside(f"Try '{ctx.command_path} --help'.")


def _parameter_meant(error: click.ClickException, ctx: click.Context | None) -> str | None:
    """Say how to give a parameter of a method, where it was given like an option, such as ``--density 0.3``."""
    if not isinstance(error, click.NoSuchOption) or ctx is None or ctx.info_name not in ("merge", "prune"):
        return None
    from .._listing import listed

    parameters = {name for kind in ("merger", "pruner") for info in listed(kind) for name in info.parameters}
    typed = error.option_name.lstrip("-").replace("-", "_")
    near = get_close_matches(typed, sorted(parameters), n=1, cutoff=0.8)
    if not near:
        return None
    asked = "" if near[0] == typed else f" Did you mean the parameter {near[0]!r}?"
    return f"No such option '{error.option_name}'.{asked} Parameters of a method are given by --param {near[0]}=VALUE."


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning of the library once, as one line."""
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = message.worded(_option) if isinstance(message, LorakitWarning) else str(message)
        if text not in seen:
            seen.add(text)
            say_aside(text, kind="warning")

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """Append to a list when Ctrl-C is pressed, and raise KeyboardInterrupt as Python does."""

    def note(signum: int, frame: Any) -> None:
        interrupts.append(signum)
        signal.default_int_handler(signum, frame)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():  # somebody else's business
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
