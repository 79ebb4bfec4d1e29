"""The steps of a recipe: what each kind of them may be, and the way between a step and its estimator."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from sklearn.pipeline import Pipeline

from .._ranks import RANK_WORDS, RankBudget, RankRule, rank_of_words, words_of_rank
from .._recipes import OF_THE_RUN, RecipeError, recipe_of, value_from
from ..cluster import MSUKMeans
from ..discovery import all_estimators
from ..exceptions import InvalidRecipeError
from ..pruning.svd import SVDPruner
from .text import Node

# What is left out of a step is as on the command line, where it differs from the class
_METHODS = {"merge": "tsv", "prune": "svd", "calibrate": "svc_calibrator"}
_OWN_NORM = "distill"  # training finds the norm, so that its scale is 1
_TAGS = ("tuple", "set", "dict", "array", "float")
_SHARES = ("weights", "strengths", "factors", "blocks")
_RANK = re.compile(rf"({'|'.join(RANK_WORDS)}):([^,]+)(?:,max:(\d+))?")


@cache
def kinds() -> dict[str, dict[str, Any]]:
    """Return the classes of each kind of step by their method; a kind with one class needs no method.

    Examples
    --------
    >>> list(kinds())
    ['select', 'prune', 'balance', 'join', 'pico', 'scale', 'split', 'merge', 'calibrate']
    >>> list(kinds()["calibrate"])
    ['isotropizer', 'svc_calibrator']
    """
    mergers, others = all_estimators("merger"), dict(all_estimators("transformer"))
    calibrators = {name: cls for name, cls in mergers.items() if "merger" in inspect.signature(cls).parameters}
    first = {"select": {"select": others.pop("select")}, "prune": all_estimators("pruner")}
    return {**first, **{name: {name: cls} for name, cls in others.items()}, "merge": mergers, "calibrate": calibrators}


@cache
def known_classes() -> dict[str, Callable[..., Any]]:
    """Return every class that a recipe can name."""
    classes = [cls for by_method in kinds().values() for cls in by_method.values()]
    return {cls.__name__: cls for cls in (*classes, MSUKMeans, RankBudget, RankRule)}


def make_pipeline(nodes: Sequence[tuple[str, Node]], strengths: Sequence[float] | None = None) -> Pipeline:
    """Make the pipeline that steps describe.

    Parameters
    ----------
    nodes : sequence of (str, Node)
        Kind and parameters of each step.
    strengths : sequence of float, optional
        Of the sources, for the merge.

    Raises
    ------
    InvalidRecipeError
        If a method or a parameter does not exist, a value is wrong, or the order has no meaning.
    """
    steps: list[tuple[str, Any]] = []
    for i, (kind, node) in enumerate(nodes):
        merged = next((earlier for earlier, _ in nodes[:i] if earlier == "merge"), None)
        calibrated = i + 1 < len(nodes) and nodes[i + 1][0] == "calibrate"
        if kind == "merge" and merged:
            raise node.error("is a second merge", expected="one: a merge leaves one adapter")
        if kind == "calibrate":
            if i == 0 or nodes[i - 1][0] != "merge":
                raise node.error("does not follow a merge", expected="calibrate right after the merge that it changes")
            name, merger = steps.pop()
            steps.append((name, _estimator(kind, node, merger=merger, strengths=strengths)))
        else:
            own = strengths if kind == "merge" and not calibrated else None
            steps.append((_step_name(kind, steps), _estimator(kind, node, inside=calibrated, strengths=own)))
    return Pipeline(steps)


def _step_name(kind: str, steps: Sequence[tuple[str, Any]]) -> str:
    count = sum(name.partition("-")[0] == kind for name, _ in steps)
    return f"{kind}-{count + 1}" if count else kind


def steps_of(estimator: Any) -> list[dict[str, dict[str, Any]]]:
    """Return the steps of a pipeline, or the one step that an estimator is, as a recipe writes them.

    Raises
    ------
    InvalidRecipeError
        If a step is none of lorakit's, or has a parameter that a recipe cannot hold.
    """
    if isinstance(estimator, Pipeline):
        parts = [part for _, part in estimator.steps if part is not None and part != "passthrough"]
        return [step for part in parts for step in steps_of(part)]
    for kind, by_method in kinds().items():
        if type(estimator) in by_method.values() and kind != "calibrate":
            return _steps_of(kind, estimator)
    raise InvalidRecipeError(
        f"{type(estimator).__name__} is no step of lorakit",
        expected=f"a pipeline of {', '.join(sorted(known_classes()))}",
        remedy="take that step out of the pipeline, and do it before or after",
    )


def left_out_of(estimator: Any) -> list[str]:
    """Return the parameters that a recipe of an estimator does not hold: data, models and functions."""
    if isinstance(estimator, Pipeline):
        return [name for _, part in estimator.steps for name in left_out_of(part)]
    if not getattr(estimator, "needs_data", False):
        return []
    params = recipe_of(estimator)["params"]
    return [name for name, value in params.items() if _has_unrecorded(value)]


def _has_unrecorded(value: Any) -> bool:
    if isinstance(value, dict):
        return "unrecorded" in value or any(map(_has_unrecorded, value.values()))
    return isinstance(value, list) and any(map(_has_unrecorded, value))


def _steps_of(kind: str, estimator: Any) -> list[dict[str, dict[str, Any]]]:
    changes = tuple(kinds()["calibrate"].values())
    if isinstance(estimator, changes) and estimator.merger is not None and not isinstance(estimator.merger, changes):
        own = _written("calibrate", estimator)
        own.pop("merger")
        return [*steps_of(estimator.merger), {"calibrate": own}]
    return [{kind: _written(kind, estimator)}]


def _written(kind: str, estimator: Any) -> dict[str, Any]:
    """Return the parameters of a step: all but those that are None, as they are when nothing is said."""
    cls = type(estimator)
    method = {"method": estimator.method} if kind in _METHODS else {}
    left_out = {*OF_THE_RUN, *left_out_of(estimator)}
    filled = _defaults(kind, cls, inside=False)
    params = {name: value for name, value in recipe_of(estimator)["params"].items() if name not in left_out}
    defaults = inspect.signature(cls).parameters
    return method | {
        name: _readable(name, value, cls.__name__)
        for name, value in params.items()
        if value is not None or defaults[name].default is not None or name in filled
    }


def _readable(name: str, value: Any, owner: str) -> Any:
    """Return a recorded value as a person would write it."""
    if isinstance(value, list):
        return [_readable(name, element, owner) for element in value]
    if not isinstance(value, dict):
        return value
    if "unrecorded" in value:
        raise InvalidRecipeError(
            f"{owner} has {name}={value['unrecorded']}",
            expected="numbers, texts, lists and estimators of lorakit",
            remedy="a recipe holds no data and no functions; set it on the pipeline that lorakit.load_recipe returns",
        )
    if value.get("class") in ("RankBudget", "RankRule"):
        return words_of_rank(value["params"])
    if "class" in value:
        mergers = {cls.__name__: method for method, cls in kinds()["merge"].items()}
        inner = {key: _readable(key, item, value["class"]) for key, item in value["params"].items()}
        inner = {key: item for key, item in inner.items() if item is not None and key not in OF_THE_RUN}
        if name == "merger" and value["class"] in mergers:
            return {"method": mergers[value["class"]]} | inner
        return {"class": value["class"]} | inner
    kind, content = next(iter(value.items()))
    if kind == "array":
        return content
    plain = kind == "dict" and all(isinstance(key, str) for key, _ in content)
    if plain and content and not {key for key, _ in content} & {"class", "method", *_TAGS}:
        return {key: _readable(name, item, owner) for key, item in content}
    return value


def readable_rank(k: Any) -> Any:
    """Return a rank as a recipe writes it.

    Examples
    --------
    >>> readable_rank(16), readable_rank(RankBudget(size="50MiB", max_rank=64))
    (16, 'size:50MiB,max:64')
    """
    return _readable("k", recipe_of(SVDPruner(k=k))["params"]["k"], "SVDPruner")


def _estimator(
    kind: str, node: Node, *, merger: Any = None, inside: bool = False, strengths: Sequence[float] | None = None
) -> Any:
    """Make the estimator of a step; ``inside``, of a merge that a calibration takes."""
    fields = dict(node.mapping())
    by_method = kinds()[kind]
    named = fields.pop("method", None) if kind in _METHODS else None
    method = named.choice(by_method) if named is not None else _METHODS.get(kind, kind)
    cls = by_method[method]
    values = _values(cls, fields, more=("method",) if kind in _METHODS else ())
    if merger is not None:
        if "merger" in fields:
            raise fields["merger"].error("stands here, and a merge before", expected="one of them")
        values["merger"] = merger
    if strengths is not None:
        for name in ("strengths", "weights"):
            if values.get(name) is not None:
                raise fields[name].error(f"{name} stand here, and strengths beside the sources", expected="one of them")
        values["strengths"] = list(strengths)
    strong = values.get("strengths") is not None
    made = cls(**{**_defaults(kind, cls, inside=inside or strong), **values})
    _check(made, fields, node)
    return made


def _defaults(kind: str, cls: Any, *, inside: bool) -> dict[str, Any]:
    """Return the parameters that are other than the class's where a step does not name them."""
    takes = inspect.signature(cls).parameters
    matched = kind in ("merge", "calibrate") and "scale" in takes and not inside and cls.method != _OWN_NORM
    seeded = {"random_state": 0} if "random_state" in takes else {}
    return seeded | ({"scale": "match"} if matched else {})


def _values(cls: Any, fields: Mapping[str, Node], *, more: tuple[str, ...] = ()) -> dict[str, Any]:
    takes = [name for name in inspect.signature(cls).parameters if name not in OF_THE_RUN]
    values = {}
    for name, node in fields.items():
        if name in OF_THE_RUN:
            raise node.error(f"{name!r} is of the run and changes no result", remedy="take it out of the recipe")
        if name not in takes:
            raise node.unknown(name, [*takes, *more])
        value = _value(name, node)
        values[name] = _floats(value) if name in _SHARES else value
    return values


def _value(name: str, node: Node) -> Any:
    """Return the value of a parameter."""
    if isinstance(node.value, dict):
        if name == "merger":
            return _nested_merger(node)
        if "class" in node.value:
            return _nested(node)
        if len(node.value) == 1 and next(iter(node.value)) in _TAGS and not _is_number(next(iter(node.value.values()))):
            try:
                return value_from(node.plain(), known_classes())
            except RecipeError as error:
                raise node.error(f"is {node.plain()}: {error}") from error
        return {key: _value("", inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_value("", element) for element in node.value]
    if name == "k" and isinstance(node.value, str) and (found := _RANK.fullmatch(node.value)):
        return _rank(node, *found.groups())
    return node.value


def _floats(value: Any) -> Any:
    """Return numbers as floats, as the command line reads them: the record of a result tells 2 from 2.0."""
    if isinstance(value, dict):
        return {name: _floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if type(value) is int else value


def _is_number(node: Node) -> bool:
    return isinstance(node.value, int | float)  # then it is the weight of an adapter called "float"


def _rank(node: Node, word: str, amount: str, highest: str | None) -> RankBudget | RankRule:
    try:
        return rank_of_words(word, amount, None if highest is None else int(highest))
    except (ValueError, OverflowError) as error:
        raise node.error(f"is {node.value!r}", expected=f"{word}:N or {word}:N,max:M", remedy=str(error)) from error


def _nested_merger(node: Node) -> Any:
    fields = dict(node.mapping(needed=["method"]))
    cls = kinds()["merge"][fields.pop("method").choice(kinds()["merge"])]
    made = cls(**{**_defaults("merge", cls, inside=True), **_values(cls, fields, more=("method",))})
    _check(made, fields, node)
    return made


def _nested(node: Node) -> Any:
    fields = dict(node.mapping())
    cls = known_classes()[fields.pop("class").choice(known_classes())]
    try:
        return cls(**_values(cls, fields, more=("class",)))
    except ValueError as error:
        raise node.error(str(error)) from error


def _check(estimator: Any, fields: Mapping[str, Node], node: Node) -> None:
    """Have the estimator look at its parameters, and say at which line a wrong one stands."""
    try:
        estimator._validate_params()
    except (ValueError, TypeError) as error:
        named = next((field for name, field in fields.items() if f"'{name}'" in str(error)), node)
        raise named.error(str(error)) from error
