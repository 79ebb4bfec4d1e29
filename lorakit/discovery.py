"""Find the estimators of lorakit, so that neither the command line nor the test suites keep lists of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from inspect import isabstract
from typing import Any, Literal

import lorakit

from ._sklearn import StrOptions
from .base import BaseMerger, BasePruner, BaseTransformer

Kind = Literal["merger", "pruner", "transformer"]
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


@dataclass(frozen=True)
class MethodInfo:
    """One entry of the registry: what a method is and what it needs, with its default parameters.

    Parameters
    ----------
    kind : {'merger', 'pruner', 'transformer'}
        What it is.
    method : str
        Its name on the command line.
    name : str
        Its class.
    summary : str
        First line of its docstring.
    paper : str or None
        Where it comes from.
    needs_equal_ranks, needs_data : bool
        Whether the adapters must share one rank; whether it takes more than adapters.
    spaces : tuple of str
        Values of its parameter ``space``, if it has one.
    invariances : frozenset of str
        Reparametrizations of the factors, of :data:`lorakit.base.GAUGES`, that leave its result as it is.
    parameters : dict
        Parameters and their defaults.
    """

    kind: Kind
    method: str
    name: str
    summary: str
    paper: str | None
    needs_equal_ranks: bool
    needs_data: bool
    spaces: tuple[str, ...]
    invariances: frozenset[str]
    parameters: dict[str, Any]


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
    )


def _plain(text: str) -> str:
    """Drop reStructuredText's marks.

    Examples
    --------
    >>> _plain("As :class:`LegoMerger` does [1]_, *directly*.")
    'As LegoMerger does, directly.'
    """
    text = re.sub(r"\s*\[\w+\]_", "", text)
    return re.sub(r":\w+:|`|\*", "", text)
