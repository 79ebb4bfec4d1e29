"""From the text of an operation to the estimator that did it: parsed, never run, and nothing but plain values in it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

# Where and how fast it ran, not what it did: the options of the command say that.
_OF_THE_RUN = ("device", "n_jobs", "verbose")
_NUMBERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("float64", "float32", "float16"), float),
    **dict.fromkeys(("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"), int),
}
_NAMES = {"inf": float("inf"), "nan": float("nan"), "True_": True, "False_": False}


class CannotTell(Exception):
    """Something that was recorded cannot be done again."""


def rebuild(text: str, *, device: str | None, n_jobs: int | None) -> Any:
    """Make the estimator that a recorded operation names.

    Parameters
    ----------
    text : str
        Class and parameters, as in ``Provenance.operations``.
    device : str or None
        Where it is to run now.
    n_jobs : int or None
        Modules at a time.

    Raises
    ------
    CannotTell
        If there is no such estimator in this version, or a parameter is no plain value.

    Examples
    --------
    >>> rebuild("SVDMerger(k=RankBudget(mean=4, max_rank=None), weights={'law': 2})", device=None, n_jobs=2)
    SVDMerger(k=RankBudget(mean=4, max_rank=None), n_jobs=2, weights={'law': 2})
    >>> rebuild("Isotropizer(merger=TiesMerger(density=0.3), k=4)", device=None, n_jobs=2)
    Isotropizer(k=4, merger=TiesMerger(density=0.3), n_jobs=2)
    >>> rebuild("open('secrets')", device=None, n_jobs=None)
    Traceback (most recent call last):
    lorakit.cli._rebuild.CannotTell: this version has no method 'open'
    """
    from ..discovery import all_estimators

    found = (all_estimators("merger"), all_estimators("pruner"), all_estimators("transformer"))
    known = {cls.__name__: cls for classes in found for cls in classes.values()}
    call = _call(text)
    name = _plain_name(call.func)
    if name not in known:
        raise CannotTell(f"this version has no method {ast.unparse(call.func)!r}")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise CannotTell(f"the operation {_short(text)} does not name its parameters")
    values = {}
    for parameter, node in ((str(keyword.arg), keyword.value) for keyword in call.keywords):
        if parameter == "merger" and isinstance(node, ast.Call):  # what another merger's result was made from
            values[parameter] = rebuild(ast.unparse(node), device=None, n_jobs=None)
        elif parameter not in _OF_THE_RUN:
            try:
                values[parameter] = _value(node)
            except ValueError as error:
                raise CannotTell(f"{name} had {parameter}={error}, which no text can give back") from error
    estimator = known[name]()
    if {"random_state": getattr(estimator, "random_state", 0), **values}["random_state"] is None:
        raise CannotTell(f"{name} drew random numbers without a seed (random_state=None), other ones each time")
    try:
        for parameter, value in (("device", device), ("n_jobs", n_jobs)):
            if parameter in estimator.get_params(deep=False):
                values[parameter] = value
        return estimator.set_params(**values)
    except ValueError as error:
        raise CannotTell(f"{name} has changed: {error}") from error


def _call(text: str) -> ast.Call:
    """Return the operation as the call that it reads as."""
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CannotTell(f"the operation {_short(text)} had a parameter that no text can give back") from error
    if not isinstance(call, ast.Call):
        raise CannotTell(f"the operation {_short(text)} is no estimator with its parameters")
    return call


def _value(node: ast.expr) -> Any:
    """Return a literal, a number of NumPy's, an array as a list, or a RankBudget.

    Raises
    ------
    ValueError
        With the text of anything else.
    """
    if isinstance(node, ast.Call):
        return _called(node)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        kinds = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
        return kinds[type(node)](_value(element) for element in node.elts)
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        if isinstance(number, int | float):
            return -number
    name = _plain_name(node)
    if name in _NAMES:
        return _NAMES[name]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    raise ValueError(_short(ast.unparse(node)))


def _called(node: ast.Call) -> Any:
    from .._ranks import RankBudget

    name = _plain_name(node.func)
    if name == "RankBudget":
        try:
            return RankBudget(*map(_value, node.args), **{str(k.arg): _value(k.value) for k in node.keywords})
        except TypeError as error:
            raise ValueError(_short(ast.unparse(node))) from error
    if name == "array" and len(node.args) == 1 and all(keyword.arg == "dtype" for keyword in node.keywords):
        return _value(node.args[0])
    if name in _NUMBERS and len(node.args) == 1 and not node.keywords:
        number = _value(node.args[0])
        if isinstance(number, int | float):
            return _NUMBERS[name](number)
    raise ValueError(_short(ast.unparse(node)))


def _plain_name(node: ast.expr) -> str | None:
    """Return ``x`` of ``x`` and of ``np.x``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
        return node.attr
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
