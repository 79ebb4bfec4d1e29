"""Records of the first form, whose operations are texts such as ``SVDMerger(k=4, weights=None)``, brought to today's.

The text is parsed and never run. It was a ``repr``, so a value that no text gives back is only named.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

# Of NumPy's, as NumPy 1 and 2 write them.
_NUMBERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("float64", "float32", "float16"), float),
    **dict.fromkeys(("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"), int),
}
_NAMES: dict[str, Any] = {"inf": {"float": "inf"}, "nan": {"float": "nan"}, "True_": True, "False_": False}
_SHORT = 60


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of version 1 as one of version 2.

    Parameters
    ----------
    record : mapping
        Well formed; ``version`` is lorakit's, and each operation has its text as ``estimator``.
    """
    operations = [
        {**read_operation(operation["estimator"]), "inputs": operation.get("inputs")}
        for operation in record["operations"]
    ]
    rest = {key: value for key, value in record.items() if key != "version"}
    return {**rest, "record": 2, "versions": {"lorakit": record["version"]}, "operations": operations}


def read_operation(text: str) -> dict[str, Any]:
    """Return class and parameters; the text itself where it is no call that names its parameters.

    Examples
    --------
    >>> read_operation("SVDMerger(k=4, weights=array([0.5, 0.5]))")
    {'class': 'SVDMerger', 'params': {'k': 4, 'weights': {'array': [0.5, 0.5]}}}
    >>> read_operation("open('secrets')")
    {'text': "open('secrets')"}
    """
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"text": text}
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        return {"text": text}
    name = _plain_name(call.func)
    if name is None:
        return {"text": text}
    try:
        return {"class": name, "params": {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}}
    except RecursionError:
        return {"text": text}


def _value(node: ast.expr) -> Any:
    """Return a value as records hold it now."""
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple | ast.Set):
        return {type(node).__name__.lower(): [_value(element) for element in node.elts]}
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {"dict": [[_value(key), _value(item)] for key, item in zip(node.keys, node.values, strict=True) if key]}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _negative(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Call):
        return _called(node)
    name = _plain_name(node)
    return _NAMES[name] if name in _NAMES else _unrecorded(node)


def _negative(node: ast.UnaryOp) -> Any:
    number = _value(node.operand)
    if number == {"float": "inf"}:
        return {"float": "-inf"}
    return -number if isinstance(number, int | float) else _unrecorded(node)


def _called(node: ast.Call) -> Any:
    """Return the value of a call in a ``repr``: of RankBudget, of an array, of a number of NumPy's."""
    name = _plain_name(node.func)
    if name == "RankBudget":
        params = dict(zip(("mean", "max_rank"), map(_value, node.args), strict=False))
        params |= {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        return {"class": name, "params": params}
    if len(node.args) == 1:
        value = _value(node.args[0])
        if name == "array" and isinstance(value, list) and all(keyword.arg == "dtype" for keyword in node.keywords):
            return {"array": value}
        if name in _NUMBERS and not node.keywords:
            if isinstance(value, int | float):
                return _NUMBERS[name](value)
            if isinstance(value, dict) and "float" in value and _NUMBERS[name] is float:
                return value
    return _unrecorded(node)


def _unrecorded(node: ast.expr) -> dict[str, str]:
    text = ast.unparse(node)
    return {"unrecorded": text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."}


def _plain_name(node: ast.expr) -> str | None:
    """Return ``x`` of ``x`` and of ``np.x``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
        return node.attr
    return None
