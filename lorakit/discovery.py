"""Find the estimators of lorakit, so that neither the command line nor the test suites keep lists of them."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from inspect import isabstract
from typing import Any

import lorakit

from ._listing import FOLDERS, Kind, MethodInfo
from ._sklearn import StrOptions
from .base import BaseMerger, BasePruner, BaseTransformer

__all__ = ["Kind", "MethodInfo", "all_estimators", "all_methods", "estimator_named"]

_KINDS = {"merger": BaseMerger, "pruner": BasePruner, "transformer": BaseTransformer}


def all_estimators(kind: Kind) -> dict[str, Any]:
    """Return the public estimators of one kind by method name.

    Parameters
    ----------
    kind : {'merger', 'pruner', 'transformer'}
        Which kind. 'transformer' stands for the other steps that give as many adapters as they take.

    Returns
    -------
    dict of str to type
        In alphabetical order of the method names.

    Examples
    --------
    >>> from lorakit.discovery import all_estimators
    >>> all_estimators("pruner")
    {'lego': <class 'lorakit.pruning.lego.LegoPruner'>, 'svd': <class 'lorakit.pruning.svd.SVDPruner'>}
    """
    public = (getattr(lorakit, name) for name in dir(lorakit))
    found = [obj for obj in public if isinstance(obj, type) and issubclass(obj, _KINDS[kind]) and not isabstract(obj)]
    if kind == "transformer":
        found = [cls for cls in found if not issubclass(cls, BasePruner)]
    return {cls.method: cls for cls in sorted(found, key=lambda cls: cls.method)}


def estimator_named(kind: Kind, method: str) -> Any | None:
    """Return the public estimator of one name, importing no other; None if there is none.

    Parameters
    ----------
    kind : {'merger', 'pruner', 'transformer'}
        What it is.
    method : str
        The name by which the command line knows it.

    Examples
    --------
    >>> from lorakit.discovery import estimator_named
    >>> estimator_named("merger", "svd")
    <class 'lorakit.merging.svd.SVDMerger'>
    """
    # the class of a method is in the file of its name
    home = f"lorakit.{FOLDERS[kind]}.{method}"
    if method.isidentifier() and not method.startswith("_") and find_spec(home) is not None:
        for obj in vars(import_module(home)).values():
            if isinstance(obj, type) and obj.__module__ == home and getattr(obj, "method", None) == method:
                return obj
    return all_estimators(kind).get(method)


def all_methods(kind: Kind) -> list[MethodInfo]:
    """Describe every public estimator of one kind.

    Parameters
    ----------
    kind : {'merger', 'pruner', 'transformer'}
        Which kind.

    Returns
    -------
    list of MethodInfo
        In alphabetical order of the method names.

    Examples
    --------
    >>> from lorakit.discovery import all_methods
    >>> [info.method for info in all_methods("merger") if "sign" not in info.invariances]
    ['average', 'fisher', 'lego']
    """
    return [_describe(kind, cls) for cls in all_estimators(kind).values()]


def _describe(kind: Kind, cls: Any) -> MethodInfo:
    estimator = cls()
    spaces = [c for c in cls._parameter_constraints.get("space", ()) if isinstance(c, StrOptions)]
    return MethodInfo(
        kind=kind,
        method=cls.method,
        name=cls.__name__,
        summary=_plain((cls.__doc__ or "").strip().partition("\n")[0]),
        paper=cls.paper,
        needs_equal_ranks=getattr(estimator, "needs_equal_ranks", False),
        needs_data=getattr(estimator, "needs_data", False),
        spaces=tuple(sorted(spaces[0].options)) if spaces else (),
        invariances=getattr(estimator, "invariances", frozenset()),
        parameters=estimator.get_params(deep=False),
        default_rank=_default_rank(cls.__doc__ or ""),
    )


def _default_rank(docstring: str) -> str:
    r"""Return the sentence of a docstring that says what ``k=None`` is.

    Examples
    --------
    >>> _default_rank("    k : int\n        Rank. None: as\n        before (or less). More.\n    scale : float\n")
    'None: as before (or less).'
    """
    entry = re.search(r"^    k : .*\n((?:        .*\n)+)", docstring, re.MULTILINE)
    found = re.search(r"\bNone\b.*?\.(?= [A-Z]|$)", " ".join(entry[1].split())) if entry else None
    return _plain(found[0]) if found else ""


def _plain(text: str) -> str:
    """Drop reStructuredText's marks.

    Examples
    --------
    >>> _plain("As :class:`LegoMerger` does [1]_, *directly*.")
    'As LegoMerger does, directly.'
    """
    text = re.sub(r"\s*\[\w+\]_", "", text)
    return re.sub(r":\w+:|`|\*", "", text)
