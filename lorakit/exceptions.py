"""Errors that lorakit raises about adapters and files.

::

    LorakitError (ValueError)
     ├── CorruptFileError            the bytes are not what the format says
     ├── UnsafeFileError             reading it could run code, or it is not a regular file
     ├── UnsupportedAdapterError     a valid file of a kind that cannot be merged exactly
     ├── UnsupportedCheckpointError  a base checkpoint of a kind that adapters cannot be added to exactly
     ├── IncompatibleAdaptersError   each is fine, together they are not
     ├── InvalidRecipeError          a recipe says what no recipe can say
     ├── SourceError                 what a recipe or a record was made from is not there, or has changed
     ├── ParameterError              parameters that contradict one another, or name what is not there
     └── OutputError                 the result cannot be written, or not in this form
    LorakitWarning (UserWarning)
     ├── ZeroMergeWarning            a merge came out as zero
     └── CancellingUnitsWarning      huge units of an adapter cancel to an update that rounding swamps

Every message says which file and module, what was seen, what was expected and what to do.
A parameter of an estimator with a wrong value is a plain ``ValueError``, a missing path a ``FileNotFoundError``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__all__ = [
    "CancellingUnitsWarning",
    "CorruptFileError",
    "IncompatibleAdaptersError",
    "InvalidRecipeError",
    "LorakitError",
    "LorakitWarning",
    "OutputError",
    "ParameterError",
    "Setting",
    "SourceError",
    "UnsafeFileError",
    "UnsupportedAdapterError",
    "UnsupportedCheckpointError",
    "Words",
    "ZeroMergeWarning",
]


class Setting:
    """An argument that a remedy asks for, so that each interface can name it in its own way.

    Parameters
    ----------
    name : str
        The argument of lorakit's functions.
    *values : object
        What to pass; several are a choice. None where that is for the user to know.

    Examples
    --------
    >>> print(Setting("overwrite", True), Setting("modules_to_save", "drop", "first"), sep="; ")
    pass overwrite=True; pass modules_to_save='drop' or 'first'
    """

    def __init__(self, name: str, *values: object) -> None:
        self.name = name
        self.values = values

    def __str__(self) -> str:
        return f"pass {self.name}={' or '.join(map(repr, self.values))}"


class Words:
    """One thing as Python says it, and as the command line does, where a :class:`Setting` does not do.

    Parameters
    ----------
    python, command_line : str
        The two texts.

    Examples
    --------
    >>> print(Words("use SVDMerger", "use --method svd"))
    use SVDMerger
    """

    def __init__(self, python: str, command_line: str) -> None:
        self.python = python
        self.command_line = command_line

    def __str__(self) -> str:
        return self.python


Part: TypeAlias = str | Setting | Words
Note: TypeAlias = str | tuple[Part, ...]  # what LorakitWarning is made of
Remedy: TypeAlias = str | Words | Sequence[Part]
Namer: TypeAlias = Callable[[Setting | Words], str]


class LorakitError(ValueError):
    """Base class of the errors that lorakit raises about adapters and files.

    The message is composed from the attributes, ``path: module 'name': seen, expected ...; remedy``. A module or an
    adapter that ``seen`` names itself is not repeated before it.

    Parameters
    ----------
    seen : str or Words
        What was found.
    path : path-like, optional
        The file or folder, or what else was read.
    module : str, optional
        The module.
    adapters : sequence of str, optional
        Names of the adapters.
    expected : str, optional
        What would have been right.
    remedy : str, Words, or sequence of str, Setting and Words, optional
        What to do, in parts where it asks for an argument.

    Examples
    --------
    >>> error = OutputError("exists", path="out", remedy=[Setting("overwrite", True), " to replace it"])
    >>> print(error)
    out: exists; pass overwrite=True to replace it
    >>> error.worded(lambda setting: f"give --{setting.name}")
    'out: exists; give --overwrite to replace it'
    """

    def __init__(
        self,
        seen: str | Words = "",
        *,
        path: str | os.PathLike[str] | None = None,
        module: str | None = None,
        adapters: Sequence[str] = (),
        expected: str | None = None,
        remedy: Remedy = (),
    ) -> None:
        super().__init__(seen)
        self.seen = str(seen)
        self._seen = seen
        self.path = None if path is None else os.fspath(path)
        self.module = module
        self.adapters = tuple(adapters)
        self.expected = expected
        self.remedy = (remedy,) if isinstance(remedy, str | Words) else tuple(remedy)

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, name: Namer) -> str:
        """Return the message, with each setting that the remedy asks for, and each of its Words, said by ``name``."""
        heads = [] if self.path is None else [self.path]
        heads += [adapter for adapter in self.adapters if repr(adapter) not in self.seen]
        if self.module is not None and repr(self.module) not in self.seen:
            heads.append(f"module {self.module!r}")
        return ": ".join([*heads, self._finding(name)])

    def _finding(self, name: Namer) -> str:
        seen = _joined([self._seen], name) + ("" if self.expected is None else f", expected {self.expected}")
        remedy = _joined(self.remedy, name)
        return f"{seen}; {remedy}" if remedy else seen


def _joined(parts: Sequence[Part], name: Namer) -> str:
    return "".join(part if isinstance(part, str) else name(part) for part in parts)


class CorruptFileError(LorakitError):
    """A file's bytes contradict its format: truncated, not what its name says, NaN, unpaired factors."""


class UnsafeFileError(LorakitError):
    """Reading the file could run code or block: a pickle, a device, a FIFO."""


class UnsupportedAdapterError(LorakitError):
    """A valid file of a kind that lorakit cannot merge exactly: DoRA, OFT, a changed base, ..."""


class UnsupportedCheckpointError(LorakitError):
    """A base checkpoint that adapters cannot be added to, or taken from, exactly: quantized, a pickle, no weights."""


class IncompatibleAdaptersError(LorakitError):
    """Adapters that do not go together, or not with a base model: other shapes, other modules, other families."""


class ParameterError(LorakitError):
    """Parameters that contradict one another, or that name modules or adapters which are not there."""


class InvalidRecipeError(LorakitError):
    """A recipe that cannot be read, or that says what no recipe can say.

    Parameters
    ----------
    seen, **fields
        As in :class:`LorakitError`. ``path`` is the recipe.
    line : int, optional
        Where in the file, from 1.
    key : str, optional
        Where in what the file says, such as ``steps[0].merge.density``.
    """

    def __init__(self, seen: str = "", *, line: int | None = None, key: str | None = None, **fields: Any) -> None:
        super().__init__(seen, **fields)
        self.line, self.key = line, key

    def worded(self, name: Namer) -> str:
        """Return the message, with line and key after the path."""
        place = [] if self.line is None else [f"line {self.line}"]
        place += [self.key] if self.key else []
        return ": ".join([*([] if self.path is None else [self.path]), *place, self._finding(name)])


class SourceError(LorakitError):
    """What a recipe or a record says that something was made from is not there, or is not what it was.

    Parameters
    ----------
    seen, **fields
        As in :class:`LorakitError`.
    name : str, optional
        What the source is called.
    seen_sha256, expected_sha256 : str, optional
        The hash that it has, and the one that it should have.
    """

    def __init__(
        self,
        seen: str = "",
        *,
        name: str | None = None,
        seen_sha256: str | None = None,
        expected_sha256: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(seen, **fields)
        self.name, self.seen_sha256, self.expected_sha256 = name, seen_sha256, expected_sha256


class OutputError(LorakitError):
    """The result cannot be written: it exists, the disk is full, a value does not fit the dtype."""


class LorakitWarning(UserWarning):
    """Base class of the warnings that lorakit words for Python and for the command line.

    Parameters
    ----------
    *parts : str, Setting or Words
        The message is all of them, one after the other.

    Examples
    --------
    >>> warning = LorakitWarning("left out, because of ", Words("rest='drop'", "--rest drop"))
    >>> print(warning)
    left out, because of rest='drop'
    >>> warning.worded(lambda words: words.command_line)
    'left out, because of --rest drop'
    """

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, name: Namer) -> str:
        """Return the message, with each part that is no text said by ``name``."""
        return _joined(self.args, name)


class ZeroMergeWarning(LorakitWarning):
    """A merged update is zero: the weights cancel, a rule dropped every entry, or no adapter was trained."""


class CancellingUnitsWarning(LorakitWarning):
    """Units of an adapter are so large, and cancel to so small an update, that rounding swamps it.

    What such an adapter does depends on the program that computes it, and on the dtype in which it is stored.

    Examples
    --------
    >>> print(CancellingUnitsWarning.at("law", "in module 'query'"))
    law: units are so large, and cancel to so small an update, that rounding swamps it, in module 'query'; what ...
    """

    @classmethod
    def at(cls, name: str, where: str) -> CancellingUnitsWarning:
        """Return the warning about an adapter or a file; ``where`` says in which modules."""
        return cls(
            f"{name}: units are so large, and cancel to so small an update, that rounding swamps it, {where}; what the "
            "adapter does depends on the program that computes it"
        )
