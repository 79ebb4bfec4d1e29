"""Recipes as YAML: text to values that know their line, and values to text.

Plain words are read as YAML 1.2 reads them, in which ``no`` is a text and ``1e-3`` a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ..exceptions import InvalidRecipeError

_MOST_BYTES, _MOST_NODES, _MOST_DEPTH = 1 << 20, 100_000, 20
_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_WORDS: dict[str, tuple[str, str]] = {  # kind of value: pattern, first letters
    "null": ("~|null|Null|NULL|", "~nN"),
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
}


@dataclass(frozen=True)
class Node:
    """A value of a recipe, with its place in the file.

    Parameters
    ----------
    value : object
        A text, number, bool or None; a list of nodes; or a dict of str to nodes.
    file : str
        The recipe.
    line : int
        Where the value begins, from 1. Of a value in a mapping, the line of its key.
    key : str
        Where it stands in the recipe, such as ``steps[0].merge.density``; empty for the recipe as a whole.
    """

    value: Any
    file: str
    line: int
    key: str = ""

    def error(self, seen: str, *, expected: str | None = None, remedy: str = "") -> InvalidRecipeError:
        """Return the error that says what is wrong here."""
        return InvalidRecipeError(
            seen, path=self.file, line=self.line, key=self.key, expected=expected, remedy=remedy or ()
        )

    def mapping(self, known: Collection[str] | None = None, *, needed: Collection[str] = ()) -> dict[str, Node]:
        """Return the values by their keys.

        Parameters
        ----------
        known : collection of str, optional
            The keys that there may be.
        needed : collection of str, optional
            The keys that there must be.

        Raises
        ------
        InvalidRecipeError
            If it is no mapping, has another key, with the known one that is near, or lacks one.
        """
        found = {} if self.value is None else self.value
        if not isinstance(found, dict):
            raise self.error(f"is {self.described()}", expected="keys with values")
        for name, node in found.items():
            if known is not None and name not in known:
                raise node.unknown(name, known)
        for name in needed:
            if name not in found:
                raise self.error(f"has no {name!r}", expected=f"{', '.join(needed)}")
        return found

    def unknown(self, name: str, known: Collection[str]) -> InvalidRecipeError:
        """Return the error that a name is none of the known ones."""
        near = get_close_matches(name, list(known), n=1)
        return self.error(
            f"there is no {name!r}",
            expected=f"one of {', '.join(sorted(known))}" if known else "nothing here",
            remedy=f"did you mean {near[0]!r}?" if near else "",
        )

    def elements(self) -> list[Node]:
        """Return the elements of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"is {self.described()}", expected="a list, one element after each '- '")
        return self.value

    def text(self) -> str:
        """Return a text; a number or a word counts as what stands in the file."""
        if isinstance(self.value, str) and self.value:
            return self.value
        raise self.error(f"is {self.described()}", expected="a text, in quotes if it looks like a number")

    def choice(self, known: Collection[str]) -> str:
        """Return a text that must be one of several."""
        found = self.text()
        if found not in known:
            raise self.unknown(found, known)
        return found

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        return self.value

    def described(self) -> str:
        """Say what stands here, for a message."""
        if self.value is None:
            return "empty"
        if isinstance(self.value, (list, dict)):
            return "a list" if isinstance(self.value, list) else "keys with values"
        shown = repr(self.value)
        return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_text(path: Path) -> Node:
    """Read a recipe as YAML.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    InvalidRecipeError
        If it is no YAML, or holds tags, a key twice, or more than a recipe needs; with the line.
    ImportError
        If PyYAML is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such recipe")
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidRecipeError(f"has {path.stat().st_size} bytes", path=path, expected=f"at most {_MOST_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRecipeError(f"is no text in UTF-8 ({error.reason})", path=path, expected="YAML") from error
    return parse(text, str(path))


def parse(text: str, file: str) -> Node:
    r"""Read a text as YAML.

    Examples
    --------
    >>> recipe = parse("steps:\n- merge: {k: 16, density: 1e-3, rule: no}", "merge.yaml")
    >>> recipe.plain()
    {'steps': [{'merge': {'k': 16, 'density': 0.001, 'rule': 'no'}}]}
    >>> recipe.mapping()["steps"].elements()[0].mapping()["merge"].mapping()["k"].key
    'steps[0].merge.k'
    """
    yaml = _yaml()
    try:
        root = yaml.compose(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise InvalidRecipeError(
            f"is no YAML: {error.problem}{f' ({error.context})' if error.context else ''}", path=file, line=line
        ) from error
    except RecursionError as error:
        raise InvalidRecipeError("is nested too deeply", path=file) from error
    except yaml.YAMLError as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRecipeError(f"is no YAML: {reason}", path=file) from error
    if root is None:
        raise InvalidRecipeError("is empty", path=file, expected="sources and steps")
    return _Reader(file).node(root, "", root.start_mark.line + 1, 0)


def dump(recipe: Mapping[str, Any], *, comment: str = "") -> str:
    """Write plain values as YAML that :func:`parse` reads as the same values.

    Examples
    --------
    >>> print(dump({"name": "1e-3", "weights": [1, 2.5]}), end="")
    name: '1e-3'
    weights: [1, 2.5]
    """
    text: str = _yaml().dump(
        dict(recipe), Dumper=_dumper(), sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text


class _Reader:
    """From PyYAML's nodes to ours, counted: a short text can stand for very many by its aliases."""

    def __init__(self, file: str) -> None:
        self.file, self.left = file, _MOST_NODES

    def node(self, found: Any, key: str, line: int, depth: int) -> Node:
        place = Node(None, self.file, line, key)
        self.left -= 1
        if self.left < 0 or depth > _MOST_DEPTH:
            raise place.error("holds more, or deeper, than a recipe needs")
        kind = found.tag.removeprefix(_TAG)
        if kind not in ("map", "seq", "str", *_WORDS):
            raise place.error(f"has the tag {found.tag!r}", expected="no tags")
        if found.id == "sequence":
            nodes = [
                self.node(element, f"{key}[{i}]", element.start_mark.line + 1, depth + 1)
                for i, element in enumerate(found.value)
            ]
            return Node(nodes, self.file, line, key)
        if found.id == "mapping":
            return Node(self._mapping(found, key, depth), self.file, line, key)
        try:
            return Node(_scalar(kind, found.value), self.file, line, key)
        except ValueError as error:
            raise place.error(f"{found.value[:60]!r} is no {kind}") from error

    def _mapping(self, found: Any, key: str, depth: int) -> dict[str, Node]:
        values: dict[str, Node] = {}
        for name, value in found.value:
            line = name.start_mark.line + 1
            if name.id != "scalar":
                raise Node(None, self.file, line, key).error("has a key that is no text")
            inner = f"{key}.{name.value}" if key else name.value
            if name.value in values:
                raise Node(None, self.file, line, inner).error("stands here twice", expected="each key once")
            values[name.value] = self.node(value, inner, line, depth + 1)
        return values


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0 if text[:2] in ("0x", "0o") else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if kind == "float" else text


def require_yaml() -> None:
    """Raise ImportError if recipes can be neither read nor written."""
    _yaml()


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes are YAML, which needs a package: pip install 'lorakit[recipes]'") from error
    return yaml


@cache
def _loader() -> Any:
    class Loader(_yaml().SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, list[Any]] = {}

    _add_words(Loader.add_implicit_resolver)
    return Loader


@cache
def _dumper() -> Any:
    class Dumper(_yaml().SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    _add_words(Dumper.add_implicit_resolver)  # and those of YAML 1.1: a text is quoted if either reads it otherwise
    Dumper.add_representer(
        list,
        lambda dumper, values: dumper.represent_sequence(
            f"{_TAG}seq", values, flow_style=not any(isinstance(value, (list, dict)) for value in values)
        ),
    )
    return Dumper


def _add_words(add: Callable[[str, re.Pattern[str], list[str]], None]) -> None:
    for kind, (pattern, first) in _WORDS.items():
        add(f"{_TAG}{kind}", re.compile(f"(?:{pattern})$"), [*first, *([""] if kind == "null" else [])])
