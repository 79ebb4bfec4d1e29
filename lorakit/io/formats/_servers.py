"""Programs that load a format: the rules of each, and the file that they are applied to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ...adapters import Adapter


@dataclass
class ServerCheck:
    """What one program does with one adapter's files.

    Parameters
    ----------
    server, version : str
        The program, and the version whose source was read.
    loads : {'yes', 'no', 'wrong'}
        'wrong': it loads the files without a warning, and its updates are not those of the files.
    setting : str or None
        The option that the program has to be started with to take an adapter of this rank.
    reasons : list of str
        Why not.
    notes : list of str
        Anything else to know.
    """

    server: str
    version: str
    loads: Literal["yes", "no", "wrong"] = "yes"
    setting: str | None = None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        """It says that it cannot load the files."""
        self.loads = "no"
        self.reasons.append(reason)

    def mistake(self, reason: str) -> None:
        """It loads them, and does not say what is lost."""
        if self.loads == "yes":
            self.loads = "wrong"
        self.reasons.append(reason)


class WrittenFile:
    """What the rules look at: an adapter that was read from files, and its config."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.format = adapter.provenance.format
        self.config = _config(adapter)
        self.ranks = {module: info.rank for module, info in adapter.infos.items()}
        self.rank = max(self.ranks.values(), default=0)
        self.r = self._number("r", float(self.rank))
        self.alpha = self._number("lora_alpha", self.r)
        self.rslora = bool(self.config.get("use_rslora"))

    def _number(self, name: str, default: float) -> float:
        value = self.config.get(name)
        return float(value) if isinstance(value, int | float) and value else default

    def kinds(self, kind: str) -> list[str]:
        """Modules of a kind of layer: linear, conv, embedding, expert."""
        return [module for module, info in self.adapter.infos.items() if info.kind.name == kind]

    def of_scale(self, rule: Callable[[str], float]) -> list[str]:
        """Modules to which a rule gives a wrong scale."""
        return [
            module
            for module in self.adapter
            if not math.isclose(self.adapter.scale(module) or 1.0, rule(module), rel_tol=1e-6)
        ]

    @property
    def biases(self) -> list[str]:
        """Modules with a bias that was trained beside B; all of them if only the config says that there are some."""
        added = self.adapter.differences
        named = () if added is None else (name.removesuffix(".bias") for name in added.infos if name.endswith(".bias"))
        return [module for module in named if module in self.ranks] or (
            list(self.ranks) if self.config.get("lora_bias") else []
        )

    @property
    def extra_weights(self) -> list[str]:
        """Modules that were trained as a whole."""
        kept = self.config.get("modules_to_save")
        return [str(name) for name in kept] if isinstance(kept, list) else []


class Server(NamedTuple):
    """A program that loads a format.

    Parameters
    ----------
    name, version : str
        The program, and the version whose source was read.
    rules : callable
        Say in a check what the program does with a file.
    convert_to : tuple of str
        Formats to convert to, for an adapter of a format that the program does not read.
    kinds : tuple of str, default=('LoRA',)
        The kinds of adapter that it takes.
    """

    name: str
    version: str
    rules: Callable[[WrittenFile, ServerCheck], None]
    convert_to: tuple[str, ...]
    kinds: tuple[str, ...] = ("LoRA",)


def no_rules(file: WrittenFile, check: ServerCheck) -> None:
    """Say nothing: the program loads every file of the format as it is meant."""


def _config(adapter: Adapter) -> dict[str, Any]:
    path = adapter.provenance.sources[0].config
    if path is not None and path.suffix == ".json":
        with suppress(OSError, ValueError, RecursionError):  # it was read and checked when the adapter was opened
            config = json.loads(path.read_text(encoding="utf-8-sig"))
            return config if isinstance(config, dict) else {}
    return {}
