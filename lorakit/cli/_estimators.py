"""From options to an estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import click

from .._nearest import nearest

# Parameters that have an option of their own, so that one thing is said in one way.
OWN_OPTIONS = {
    "k": "-k",
    "weights": "--weights",
    "strengths": "ADAPTER:STRENGTH",
    "scale": "--scale",
    "random_state": "--seed",
    "n_jobs": "--jobs",
    "device": "--device",
    "verbose": "--quiet",
}
_INNER = ("merger", "start")  # parameters that take another merger


def make_estimator(
    kind: Literal["merger", "pruner"],
    method: str,
    *,
    given: Mapping[str, Any],
    params: Mapping[str, Any],
    seed: int,
) -> Any:
    """Make the estimator of a method.

    Parameters
    ----------
    kind : {'merger', 'pruner'}
        What the command needs.
    method : str
        Its name, as the user typed it.
    given : mapping of str to value
        Parameters from options of their own; None stands for an option that was not given.
    params : mapping of str to value
        Those from ``--param``. Of a method that changes what another one made, ``merger`` is the name of that one, and
        ``merger__NAME`` are its parameters, ``merger__k`` and ``merger__scale`` too; ``start`` likewise of a merge that
        is trained.
    seed : int
        For ``random_state``, where the method has one.

    Raises
    ------
    click.UsageError
        If there is no such method or parameter, naming what is near.
    """
    from ._late import load_late

    load_late()
    from ..discovery import all_estimators, estimator_named

    found = estimator_named(kind, method)
    if found is None:
        methods = all_estimators(kind)
        raise click.UsageError(
            f"there is no {kind} {method!r}{nearest(method, list(methods))} The {kind}s are {', '.join(methods)}."
        )
    estimator = found()
    known = sorted(estimator.get_params(deep=False))
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in known:
            raise click.UsageError(f"{kind} {method!r} takes no {OWN_OPTIONS[name]}")
    params, nested = _without_nested(params)
    for name, value in params.items():
        _check_name(name, known, f"{kind} {method!r}")
        values[name] = value
    for inner, its in nested.items():
        if inner in known and (its or isinstance(values.get(inner), str)):
            values[inner] = _nested_merger(inner, values.get(inner), its, seed)
        elif its:
            _check_name(f"{inner}__{next(iter(its))}", known, f"{kind} {method!r}")
    if "random_state" in known:
        values["random_state"] = seed
    _check_device(values.get("device"))
    return estimator.set_params(**values)


def _without_nested(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split off the parameters of other mergers, without the ``merger__`` or ``start__`` before their names."""
    nested: dict[str, dict[str, Any]] = {inner: {} for inner in _INNER}
    own = {}
    for name, value in params.items():
        inner, _, its = name.partition("__")
        if its and inner in nested:
            nested[inner][its] = value
        else:
            own[name] = value
    return own, nested


def _nested_merger(inner: str, method: Any, params: Mapping[str, Any], seed: int) -> Any:
    if not isinstance(method, str):
        raise click.UsageError(
            f"{inner}__{next(iter(params), 'NAME')} needs a method to belong to: --param {inner}=METHOD"
        )
    # the options of these are of the outer merger alone; those of others are passed on
    given = {name: value for name, value in params.items() if name in ("k", "scale")}
    free = {name: value for name, value in params.items() if name not in given}
    return make_estimator("merger", method, given=given, params=free, seed=seed)


def _check_name(name: str, known: list[str], which: str) -> None:
    free = [other for other in known if other not in OWN_OPTIONS]
    if name not in known:
        raise click.UsageError(
            f"{which} has no parameter {name!r}{nearest(name, free)} It has {', '.join(free) or 'none'}."
        )
    if name not in free:
        raise click.UsageError(f"parameter {name!r} has an option of its own: {OWN_OPTIONS[name]}")


def _check_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of these
        reason = str(error).partition("\n")[0]
        raise click.UsageError(f"device {device!r} cannot be used: {reason}") from error
