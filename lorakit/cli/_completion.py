"""What the Tab key offers in a shell: words that are known without importing torch, which would take seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Literal

import click

from ..io.formats.registry import abouts

Completer = Callable[[click.Context, click.Parameter, str], list[str]]

_FOLDERS = {"merger": "merging", "pruner": "pruning"}
_METHOD = re.compile(r'^    method = "(\w+)"$', re.MULTILINE)


def method_names(kind: Literal["merger", "pruner"]) -> list[str]:
    """Return the names of the methods of one kind, read off the source files, which does not import them.

    Examples
    --------
    >>> method_names("pruner")
    ['lego', 'svd']
    """
    sources = [file for file in files("lorakit").joinpath(_FOLDERS[kind]).iterdir() if file.name.endswith(".py")]
    return sorted({name for source in sources for name in _METHOD.findall(source.read_text(encoding="utf-8"))})


def methods_of(kind: Literal["merger", "pruner"]) -> Completer:
    """Return the completer of ``--method``."""
    return lambda ctx, param, typed: _starting(typed, method_names(kind))


def complete_method(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
    """Complete the name of a method of any kind."""
    return _starting(typed, sorted({*method_names("merger"), *method_names("pruner")}))


def complete_format(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
    """Complete the name of a format."""
    return _starting(typed, [known.name for known in abouts()])


def complete_device(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
    """Complete the name of a device. Whether the machine has it is not known before torch is imported."""
    return _starting(typed, ["cpu", "cuda", "mps"])


def _starting(typed: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(typed)]
