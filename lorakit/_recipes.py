"""Estimators as data: the class and its parameters as JSON holds them, and the estimator from that again.

A value is written as JSON has it: null, true, false, a finite number, a text, a list. Everything else is an object with
one key that says what it is: ``{"float": "inf"}``, ``{"tuple": [...]}``, ``{"set": [...]}``, ``{"dict": [[key, value],
...]}``, ``{"array": [...]}``; ``{"class": ..., "params": {...}}`` for an estimator of lorakit or a dataclass such as
RankBudget. What has no such form, data and models and functions, is only named: ``{"unrecorded": "Grams(...)"}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any, TypeAlias, TypeGuard

import numpy as np

Recipe: TypeAlias = dict[str, Any]  # {"class": ..., "params": {...}}

OF_THE_RUN = ("n_jobs", "verbose", "device")  # parameters that are chosen anew by who runs it again

_NOT_RECORDED = ("n_jobs", "verbose")  # they never change a result
_MAX_NUMBERS = 10_000  # of an array; a weight for each adapter is far below
_MAX_DEPTH = 20
_MAX_NAME = 200  # characters by which something unrecorded is named


class RecipeError(ValueError):
    """A recipe names something that cannot be made from it."""


class _UnrecordedError(RecipeError):
    """A value was only named."""


def recipe_of(estimator: Any) -> Recipe:
    """Return the class of an estimator and every parameter that bears on its result, as JSON holds them.

    Parameters
    ----------
    estimator : object
        With ``get_params``, or a dataclass.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import RankBudget, SVDMerger
    >>> recipe = recipe_of(SVDMerger(k=RankBudget(4), scale=np.float32(0.5), weights={"law": 2}))
    >>> recipe["class"], recipe["params"]["scale"], recipe["params"]["weights"]
    ('SVDMerger', 0.5, {'dict': [['law', 2]]})
    >>> recipe["params"]["k"]
    {'class': 'RankBudget', 'params': {'mean': 4, 'max_rank': None, 'size': None}}
    """
    return _recipe(estimator, 0)


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as people read it, in one line.

    Examples
    --------
    >>> recipe_text({"class": "SVDMerger", "params": {"k": 4, "weights": {"dict": [["law", 2]]}}})
    "SVDMerger(k=4, weights={'law': 2})"
    """
    return _text(recipe, 0)


def expression_of(recipe: Mapping[str, Any], known: Mapping[str, Callable[..., Any]]) -> str | None:
    """Return what to write in Python for the object that a recipe describes.

    Parameters at their defaults are left out, and those of the run alone.

    Parameters
    ----------
    recipe : mapping
        As :func:`recipe_of` returns it.
    known : mapping of str to type
        The classes that are known, for their defaults.

    Returns
    -------
    str or None
        None where no expression makes it: a class is not known, or a parameter was only named.

    Examples
    --------
    >>> from lorakit import RankBudget, SVDMerger
    >>> recipe = recipe_of(SVDMerger(k=RankBudget(4), scale="match", n_jobs=2))
    >>> expression_of(recipe, {"SVDMerger": SVDMerger, "RankBudget": RankBudget})
    "SVDMerger(k=RankBudget(mean=4), scale='match')"
    """
    try:
        return _expression(recipe, known, 0)
    except RecipeError:
        return None


def from_recipe(recipe: Mapping[str, Any], known: Mapping[str, Callable[..., Any]], **run: Any) -> Any:
    """Make the object that a recipe describes.

    Parameters
    ----------
    recipe : mapping
        As :func:`recipe_of` returns it; it may come from a file that nobody vouches for.
    known : mapping of str to type
        The classes that may be made.
    **run : object
        ``device`` and ``n_jobs`` for every estimator that has them, whatever the recipe says.

    Raises
    ------
    RecipeError
        If a class is not known, a parameter was not recorded, or the class does not take it.

    Examples
    --------
    >>> from lorakit import SVDMerger
    >>> from_recipe({"class": "SVDMerger", "params": {"k": 4}}, {"SVDMerger": SVDMerger}, n_jobs=2)
    SVDMerger(k=4, n_jobs=2)
    """
    return _made(recipe, known, run, 0)


def value_from(recorded: Any, known: Mapping[str, Callable[..., Any]]) -> Any:
    """Return the value that a recorded one stands for.

    Parameters
    ----------
    recorded : object
        As JSON holds it; see above for the forms.
    known : mapping of str to type
        The classes that may be made.

    Raises
    ------
    RecipeError
        If a class is not known, or a value was only named.

    Examples
    --------
    >>> value_from({"dict": [["law", {"float": "inf"}]]}, {})
    {'law': inf}
    """
    return _made(recorded, known, {}, 0)


def is_recipe(found: object) -> TypeGuard[Recipe]:
    """Whether a value from a file has the form of a recipe; what its parameters hold is looked at when it is made."""
    return isinstance(found, dict) and isinstance(found.get("class"), str) and isinstance(found.get("params"), dict)


def _recipe(value: Any, depth: int) -> Recipe:
    cls = type(value)
    if hasattr(value, "get_params"):
        params = value.get_params(deep=False)
        params = {name: params[name] for name in signature(cls).parameters if name not in _NOT_RECORDED}
    else:
        params = {field.name: getattr(value, field.name) for field in fields(value)}
    return {"class": cls.__name__, "params": {name: _plain(param, depth + 1) for name, param in params.items()}}


def _plain(value: Any, depth: int) -> Any:
    """Return a value as JSON holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if depth < _MAX_DEPTH:
        if isinstance(value, list):
            return [_plain(element, depth + 1) for element in value]
        if isinstance(value, tuple):
            return {"tuple": [_plain(element, depth + 1) for element in value]}
        if isinstance(value, (set, frozenset)):  # in an order that does not depend on hashes
            return {"set": sorted((_plain(element, depth + 1) for element in value), key=repr)}
        if isinstance(value, dict):
            return {"dict": [[_plain(key, depth + 1), _plain(item, depth + 1)] for key, item in value.items()]}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= _MAX_NUMBERS:
            return {"array": _plain(value.tolist(), depth + 1)}
        if _is_ours(value):
            return _recipe(value, depth)
    return {"unrecorded": _name(value)}


def _is_ours(value: Any) -> bool:
    if isinstance(value, type) or type(value).__module__.partition(".")[0] != "lorakit":
        return False
    if is_dataclass(value):  # settings, not what holds data
        return all(isinstance(getattr(value, field.name), bool | int | float | str | None) for field in fields(value))
    return hasattr(value, "get_params")


def _name(value: Any) -> str:
    """Name a value that is not recorded, in one line; where it lies in memory would make two runs differ."""
    shape = getattr(value, "shape", None)
    text = repr(value) if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 3]}..."


def _text(value: Any, depth: int) -> str:
    """Return a recorded value as people read it."""
    if depth > _MAX_DEPTH:
        return "..."
    if is_recipe(value):
        shown = (f"{name}={_text(param, depth + 1)}" for name, param in value["params"].items())
        return f"{value['class']}({', '.join(shown)})"
    found = _literal(value, lambda element: _text(element, depth + 1))
    return str(_tagged(value)[1]) if found is None else found


def _expression(value: Any, known: Mapping[str, Callable[..., Any]], depth: int) -> str:
    """Return a recorded value as Python has it."""
    if depth > _MAX_DEPTH:
        raise RecipeError("it is nested too deeply")
    if is_recipe(value):
        if value["class"] not in known:
            raise RecipeError(f"this version has no method {_name(value['class'])}")
        if bad := [name for name in value["params"] if not name.isidentifier()]:  # a file can name it so
            raise RecipeError(f"{value['class']} has no parameter {_name(bad[0])}")
        takes = signature(known[value["class"]]).parameters
        given = {
            name: param
            for name, param in value["params"].items()
            if name not in OF_THE_RUN and not (name in takes and repr(_plain(takes[name].default, 1)) == repr(param))
        }
        return f"{value['class']}({', '.join(f'{k}={_expression(v, known, depth + 1)}' for k, v in given.items())})"
    if isinstance(value, dict) and _tagged(value)[0] == "float":
        return f"float({_tagged(value)[1]!r})"
    found = _literal(value, lambda element: _expression(element, known, depth + 1))
    if found is None:
        raise _UnrecordedError(_name(value))
    return found


def _literal(value: Any, text: Callable[[Any], str]) -> str | None:
    """Return a recorded value as a literal of Python, its elements as ``text`` has them; None if it is none."""
    if not isinstance(value, (list, dict)):
        return repr(value)
    kind, content = ("list", value) if isinstance(value, list) else _tagged(value)
    if kind == "dict" and _is_pairs(content):
        return f"{{{', '.join(f'{text(key)}: {text(item)}' for key, item in content)}}}"
    if kind in ("list", "tuple", "set", "array") and isinstance(content, list):
        inside = ", ".join(map(text, content))
        return {"tuple": f"({inside},)" if len(content) == 1 else f"({inside})", "set": f"{{{inside}}}"}.get(
            kind, f"[{inside}]"
        )
    return None


def _made(value: Any, known: Mapping[str, Callable[..., Any]], run: Mapping[str, Any], depth: int) -> Any:
    """Return what a recorded value stands for."""
    if depth > _MAX_DEPTH:
        raise RecipeError("it is nested too deeply")
    if isinstance(value, list):
        return [_made(element, known, run, depth + 1) for element in value]
    if not isinstance(value, dict):
        return value
    if is_recipe(value):
        return _called(value, known, run, depth)
    kind, content = _tagged(value)
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "dict" and _is_pairs(content):
        return _hashed(dict, [[_made(part, known, run, depth + 1) for part in pair] for pair in content])
    if kind in ("tuple", "set", "array") and isinstance(content, list):
        elements = [_made(element, known, run, depth + 1) for element in content]
        return _hashed({"tuple": tuple, "set": set, "array": list}[kind], elements)
    if kind == "unrecorded":
        raise _UnrecordedError(str(content))
    raise _UnrecordedError(_name(value))


def _called(
    recipe: Mapping[str, Any], known: Mapping[str, Callable[..., Any]], run: Mapping[str, Any], depth: int
) -> Any:
    name = recipe["class"]
    if name not in known:
        raise RecipeError(f"this version has no method {_name(name)}")
    values = {}
    for parameter, value in recipe["params"].items():
        try:
            values[parameter] = _made(value, known, run, depth + 1)
        except _UnrecordedError as error:
            raise RecipeError(f"{name} had {_name(parameter)[1:-1]}={error}, which no record can hold") from None
    takes = signature(known[name]).parameters
    if "random_state" in takes and values.get("random_state", takes["random_state"].default) is None:
        raise RecipeError(f"{name} drew random numbers without a seed (random_state=None), other ones each time")
    values |= {parameter: run[parameter] for parameter in OF_THE_RUN if parameter in run and parameter in takes}
    try:
        return known[name](**values)
    except (TypeError, ValueError) as error:  # a parameter that is gone, or a value that is no longer taken
        raise RecipeError(f"{name} has changed: {error}") from error


def _tagged(value: Mapping[str, Any]) -> tuple[str, Any]:
    return next(iter(value.items())) if len(value) == 1 else ("object", value)


def _is_pairs(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in content)


def _hashed(kind: Callable[[Any], Any], elements: Any) -> Any:
    try:
        return kind(elements)
    except TypeError as error:  # a list as a key
        raise RecipeError(str(error)) from error
