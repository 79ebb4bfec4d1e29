"""From the record of an adapter to a command, and to lines of Python, that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

from .._ranks import words_of_rank
from .._recipes import OF_THE_RUN, RecipeError, expression_of, from_recipe, is_recipe
from ..discovery import all_estimators
from ..exceptions import InvalidRecipeError
from ..recipes.recipe import FORM
from ..recipes.steps import known_classes, steps_of
from ..recipes.text import dump

_PRINTED = (bool, int, float, str)


def in_order(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the parameters of its estimators in the order of their classes.

    A record in memory has that order and one from a file has the alphabet's: a report is to be the same of both.
    """

    def ordered(value: Any) -> Any:
        if not is_recipe(value):
            return value
        cls = _class(value["class"])
        known = [] if cls is None else [name for name in signature(cls).parameters if name in value["params"]]
        names = dict.fromkeys([*known, *sorted(value["params"])])
        return {**value, "params": {name: ordered(value["params"][name]) for name in names}}

    return {**record, "operations": [ordered(operation) for operation in record["operations"]]}


class Chain(NamedTuple):
    """Estimators one after the other, and the adapters that the first of them took."""

    steps: list[Mapping[str, Any]]  # recipes
    names: list[str]


def chain_of(records: Sequence[Mapping[str, Any]]) -> Chain | None:
    """Return what made some results, if it was one chain of estimators; else None.

    Parameters
    ----------
    records : sequence of mapping
        As :func:`~lorakit.io.formats.record.make_record` returns them: of a merge, or of each adapter of a prune.
    """
    chains = [_chain(record) for record in records]
    found = [chain for chain in chains if chain is not None]
    if not found or len(found) < len(chains) or any(chain.steps != found[0].steps for chain in found):
        return None
    if len(found) > 1 and any(len(chain.names) != 1 for chain in found):
        return None
    return Chain(found[0].steps, [name for chain in found for name in chain.names])


def _chain(record: Mapping[str, Any]) -> Chain | None:
    """Follow a record from its result back to its sources."""
    operations, here = record["operations"], record.get("result")
    if not here or here.get("output") != 0:
        return None
    steps: list[Mapping[str, Any]] = []
    places = [here]
    while all("operation" in place for place in places):
        made_by = [operations[place["operation"]] for place in places]
        outputs = [place["output"] for place in places]
        whole = len({place["operation"] for place in places}) == 1 and outputs == list(range(len(places)))
        # a pruner takes each adapter by itself
        each = not any(outputs) and all(len(one["inputs"] or ()) == 1 for one in made_by)
        recipes = [{"class": one.get("class"), "params": one.get("params")} for one in made_by]
        if not (whole or each) or not is_recipe(recipes[0]) or any(recipe != recipes[0] for recipe in recipes):
            return None
        steps.insert(0, recipes[0])
        places = list(made_by[0]["inputs"] or ()) if whole else [one["inputs"][0] for one in made_by]
        if not places:
            return None
    if [place.get("source") for place in places] != list(range(len(record["sources"]))):
        return None
    return Chain(steps, [str(place["name"]) for place in places])


def command_of(chain: Chain) -> str | None:
    """Return the command line that runs a chain; None if no single command does.

    The names of the adapters stand for their paths.
    """
    found = _method(chain.steps[0])
    if len(chain.steps) > 1 or found is None or any(name.startswith("-") for name in chain.names):
        return None  # such a name would be an option
    verb, method, cls = found
    params = dict(chain.steps[0]["params"])
    adapters = _with_strengths(chain.names, params.pop("strengths", None))
    options = _options(params, cls)
    if options is None or adapters is None:
        return None
    out = "merged" if verb == "merge" else "pruned"
    return " ".join(map(shlex.quote, ["lorakit", verb, *adapters, "-o", out, "--method", method, *options]))


def recipe_of_chain(chain: Chain, sources: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a chain as a recipe in YAML; None if PyYAML is not installed, or a recipe cannot hold it."""
    try:
        estimators = [from_recipe(step, known_classes()) for step in chain.steps]
        steps = [step for estimator in estimators for step in steps_of(estimator)]
        given = [
            {"path": name, **{key: source[key] for key in ("sha256", "config_sha256") if source.get(key)}}
            for name, source in zip(chain.names, sources, strict=True)
        ]
        return dump({"recipe": FORM, "sources": given, "steps": steps})
    except (RecipeError, InvalidRecipeError, ImportError, ValueError):
        return None


def _with_strengths(names: list[str], strengths: Any) -> list[str] | None:
    """Return the adapters as the command line has them; None if it cannot say a strength."""
    if strengths is None:
        return names
    found = next(iter(strengths.values()), None) if isinstance(strengths, dict) else strengths
    if isinstance(found, list) and found and all(isinstance(pair, list) for pair in found):
        by_name = {str(name): strength for name, strength in found}
        found = [by_name.get(name) for name in names]
    if not isinstance(found, list) or len(found) != len(names) or any(":" in name for name in names):
        return None
    if not all(isinstance(strength, (int, float)) for strength in found):
        return None
    return [f"{name}:{strength}" for name, strength in zip(names, found, strict=True)]


def python_of(chain: Chain) -> str | None:
    """Return the lines of Python that run a chain; None if this version lacks a class, or a value was only named."""
    made = [expression for step in chain.steps if (expression := expression_of(step, known_classes())) is not None]
    if len(made) < len(chain.steps):
        return None
    imports = sorted({step["class"] for step in chain.steps} | _nested(chain.steps) | {"load_adapters", "save_adapter"})
    estimator = made[0] if len(made) == 1 else "make_pipeline(\n    " + ",\n    ".join(made) + ",\n)"
    save = ['save_adapter(results[0], "result")']
    if len(chain.names) > 1 and _class(chain.steps[-1]["class"]) not in all_estimators("merger").values():
        save = ["for adapter in results:", '    save_adapter(adapter, f"pruned/{adapter.name}")']
    return "\n".join(
        [
            *(["from sklearn.pipeline import make_pipeline", ""] if len(made) > 1 else []),
            f"from lorakit import {', '.join(imports)}",
            "",
            f"adapters = load_adapters({chain.names!r})",
            f"estimator = {estimator}",
            "results = estimator.fit_transform(adapters)",
            *save,
        ]
    )


def _method(operation: Mapping[str, Any]) -> tuple[str, str, Any] | None:
    for verb, known in (("merge", all_estimators("merger")), ("prune", all_estimators("pruner"))):
        for method, cls in known.items():
            if is_recipe(operation) and cls.__name__ == operation["class"]:
                return verb, method, cls
    return None


def _class(name: str) -> Any:
    found = [all_estimators("merger"), all_estimators("pruner"), all_estimators("transformer")]
    return next((cls for by_method in found for cls in by_method.values() if cls.__name__ == name), None)


def _options(params: Mapping[str, Any], cls: Any) -> list[str] | None:
    """Return the options that set these parameters; None if the command line cannot say one of them."""
    defaults = {name: parameter.default for name, parameter in signature(cls).parameters.items()}
    words: list[str] = []
    for name, value in params.items():
        if name in OF_THE_RUN:
            continue
        if name == "scale":  # the command line has another default than Python
            said: list[str] | None = ["--scale", f"{value:g}" if value == 1 else str(value)]
        elif name == "random_state":
            said = ["--seed", str(value)] if type(value) is int else None
        elif value is None and name in ("k", "weights"):
            said = []
        elif name == "k":
            said = _rank(value)
        elif name == "weights":
            said = _weights(value)
        elif name in defaults and _same(value, defaults[name]):
            said = []
        else:
            said = _parameter(name, value)
        if said is None:
            return None
        words += said
    return words


def _rank(value: Any) -> list[str] | None:
    if isinstance(value, (int, float, str)):
        return ["-k", str(value)]
    if not (is_recipe(value) and value["class"] in ("RankBudget", "RankRule")):
        return None
    return ["-k", words_of_rank(value["params"])]


def _weights(value: Any) -> list[str] | None:
    content = value
    if isinstance(value, dict) and len(value) == 1:
        kind, content = next(iter(value.items()))
        if kind == "dict" and isinstance(content, list):
            pairs = [f"{name}={weight}" for name, weight in content]
            bad = any("," in str(name) or "=" in str(name) for name, _ in content)
            return None if bad else ["--weights", ",".join(pairs)]
    if isinstance(content, list) and all(isinstance(weight, (int, float)) for weight in content):
        return ["--weights", ",".join(map(str, content))]
    return None


def _parameter(name: str, value: Any) -> list[str] | None:
    if is_recipe(value):  # of a merger whose result another one changes
        inner = _method(value)
        if name != "merger" or inner is None or inner[0] != "merge":
            return None
        words = ["-p", f"merger={inner[1]}"]
        defaults = {key: parameter.default for key, parameter in signature(inner[2]).parameters.items()}
        for key, given in value["params"].items():
            if _same(given, defaults.get(key)) or key == "random_state":
                continue
            if not isinstance(given, _PRINTED):
                return None
            words += ["-p", f"merger__{key}={given}"]
        return words
    return ["-p", f"{name}={value}"] if value is None or isinstance(value, _PRINTED) else None


def _same(value: Any, default: Any) -> bool:
    return (
        type(value) in (*_PRINTED, type(None))
        and value == default
        and isinstance(value, bool) == isinstance(default, bool)
    )


def _nested(operations: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the classes of estimators, and of budgets of ranks, that are parameters of others."""
    found: set[str] = set()
    for operation in operations:
        for value in operation["params"].values():
            if is_recipe(value):
                found |= {value["class"], *_nested([value])}
    return found
