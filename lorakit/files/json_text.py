"""JSON from files that nobody vouches for: headers, configs, metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from reprlib import Repr
from typing import Any

from ..exceptions import CorruptFileError
from .checks import require_openable, stamp

# The largest alpha, rank or scale: far above any that is used in training, and small enough for finite float32 factors.
MAX_NUMBER = 1e12
_MAX_CONFIG = 20_000_000  # bytes; the longest list of modules that a config could sensibly name takes a tenth of it
# Limits for one JSON text, above what the header of the largest allowed file needs. They bound memory: the seven bytes
# {"":0}, take 200 when they are parsed.
_MAX_OBJECTS, _MAX_LISTS, _MAX_VALUES = 600_000, 2_000_000, 8_000_000
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # or half of a pair, which is fine


def parse_json(raw: bytes) -> Any:
    """Parse JSON more strictly than Python does: each key once, printable names, valid Unicode, bounded size.

    Parameters
    ----------
    raw : bytes
        UTF-8, as everything that reads these files takes.

    Raises
    ------
    ValueError
        Saying what is wrong; a ``json.JSONDecodeError`` if it is the syntax.
    """
    # Brackets and commas inside strings are counted too; there are few of them.
    if raw.count(b"[") > _MAX_LISTS or raw.count(b",") > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_LISTS} lists or {_MAX_VALUES} values")
    text = raw.decode("utf-8")
    try:
        parsed = json.loads(text, object_pairs_hook=_Objects())
        if _LONE_SURROGATE.search(raw):
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half of a character, {error.object[error.start]!a}") from None
    return parsed


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises
    ------
    UnsafeFileError
        If it is not a regular file.
    CorruptFileError
        If it is not one JSON object, or absurdly large.
    """
    size = stamp(path)[0]  # refuses what is not a regular file before it is opened
    if size > _MAX_CONFIG:
        raise CorruptFileError(
            f"has {size} bytes",
            path=path,
            expected=f"a config of {_MAX_CONFIG} at most",
            remedy="copy or download it again",
        )
    try:
        with path.open("rb") as file:
            fields = parse_json(file.read(_MAX_CONFIG + 1).removeprefix(b"\xef\xbb\xbf"))
    except json.JSONDecodeError as error:
        raise CorruptFileError(
            f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            path=path,
            remedy="copy or download it again",
        ) from error
    except ValueError as error:
        raise CorruptFileError(
            f"is not JSON as expected: {error}",
            path=path,
            remedy="copy or download it again",
        ) from error
    except OSError as error:
        require_openable(path)
        raise CorruptFileError(
            f"cannot be read: {error.strerror}",
            path=path,
            expected="a config",
            remedy="copy or download it again",
        ) from error
    if not isinstance(fields, dict):
        raise CorruptFileError(
            f"is a JSON {type(fields).__name__}",
            path=path,
            expected="an object of settings",
        )
    return fields


def is_number(value: object) -> bool:
    """Whether a value from a file can be an alpha, a rank or a scale: finite, not absurd, not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def shown(value: object) -> str:
    """Return a value from a file as text for a message, shortened."""
    return _SHORT.repr(value)


class _Objects:
    """Builds the objects of one JSON text and counts them; for ``object_pairs_hook``."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.count += 1
        if self.count > _MAX_OBJECTS:
            raise ValueError(f"it holds more than {_MAX_OBJECTS} objects")
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"it names {twice[:100]!r} twice, expected each key once")
        for key in found:
            if not key.isprintable():  # it would reach terminals, and other programs split names at such characters
                raise ValueError(f"the name {key[:100]!a} cannot be printed")
        return found
