"""A recipe: sources, steps and output, checked against what a recipe can say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from ..files.safetensors import FLOAT_DTYPES
from ..io.formats.registry import abouts
from ..io.hub import hub_id
from ..io.names.component import COMPONENTS
from ..io.names.families import FAMILIES
from .steps import kinds, make_pipeline
from .text import Node, read_text

FORM = 1  # of the file
# Steps that stand alone: commands that no estimator does. What each of them takes.
ALONE: dict[str, tuple[str, ...]] = {
    "convert": ("to", "component", "family", "k"),
    "extract": ("k", "modules", "rest", "format", "exact", "random_state"),
    "bake": (),
    "rename": (),
}
_SHA256 = re.compile("[0-9a-f]{64}")
_SOURCE = ("path", "name", "sha256", "config_sha256", "headers_sha256", "strength", "initial", "initial_sha256")
_READING = ("format", "modules_to_save", "differences", "assume_alpha", "component", "allow_pickle")
_OUTPUT = ("path", "layout", "pad_to", "dtype")
_LARGEST_RANK = 100_000


@dataclass(frozen=True)
class RecipeSource:
    """An adapter, or a checkpoint, that a recipe begins with.

    Parameters
    ----------
    path : str
        Where it is: as it stands in the recipe, but relative paths are from the folder of the recipe.
    name : str or None
        What the adapter is called.
    sha256, config_sha256 : str or None
        Hashes of its weights, and of the config beside them.
    headers_sha256 : str or None
        For a checkpoint: a hash of the names, dtypes and shapes of its tensors.
    strength : float or None
        The factor of its update, for `bake` and for a merge.
    initial : str or None
        The adapter as it was saved before training, as `initial` of :func:`lorakit.load_adapter`.
    initial_sha256 : str or None
        Hash of its weights.
    node : Node or None
        Its place in the recipe.
    """

    path: str
    name: str | None = None
    sha256: str | None = None
    config_sha256: str | None = None
    headers_sha256: str | None = None
    strength: float | None = None
    initial: str | None = None
    initial_sha256: str | None = None
    node: Node | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Parameters
    ----------
    step : str
        'merge' or 'prune', which a pipeline does; or the one step of another command: 'convert', 'extract', 'bake',
        'rename'.
    pipeline : Pipeline or None
        The estimators, for 'merge' and 'prune'.
    options : mapping of str to object
        What the step of another command takes.
    sources : tuple of RecipeSource
        What it begins with; of 'extract' the tuned checkpoint.
    base : RecipeSource or None
        The base checkpoint: of 'extract', 'bake' and 'rename', and where it is needed to read the adapters.
    reading, output : mapping of str to object
        How adapters are read, and how and where the result is written: options as on the command line.
    file : str
        The recipe's own path.
    """

    step: str
    pipeline: Pipeline | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[RecipeSource, ...] = ()
    base: RecipeSource | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe and check all of it.

    Raises
    ------
    FileNotFoundError, InvalidRecipeError, ImportError
        See :func:`lorakit.load_recipe`.
    """
    file = Path(path)
    return recipe_from(read_text(file), file.parent)


def recipe_from(root: Node, folder: Path) -> Recipe:
    """Check what a recipe says; its relative paths are from a folder."""
    fields = root.mapping(["recipe", "made_by", "sources", "base", "reading", "steps", "output"], needed=["steps"])
    form = fields.get("recipe")
    if form is not None and (type(form.value) is not int or form.value != FORM):
        raise form.error(f"is {form.described()}", expected=f"{FORM}, the form of recipes that this lorakit reads")
    nodes = _steps(fields["steps"])
    alone = nodes[0][0] if nodes[0][0] in ALONE else None
    step = alone or ("merge" if any(kind == "merge" for kind, _ in nodes) else "prune")
    given = fields["sources"].elements() if "sources" in fields else []
    strong = step in ("merge", "bake")
    sources = tuple(_source(node, folder, checkpoint=step == "extract", strength=strong) for node in given)
    _check_names(sources)
    if step in ("extract", "convert", "rename") and len(sources) > 1:
        raise fields["sources"].error(f"are {len(sources)}", expected=f"one, of a recipe that has the step {step}")
    base = _source(fields["base"], folder, checkpoint=True) if "base" in fields else None
    return Recipe(
        step,
        None if alone else make_pipeline(nodes, _strengths(sources)),
        _options(alone, nodes[0][1]) if alone else {},
        sources,
        base,
        _reading(fields["reading"]) if "reading" in fields else {},
        _output(fields["output"], folder) if "output" in fields else {},
        root.file,
    )


def _steps(node: Node) -> list[tuple[str, Node]]:
    known = [*kinds(), *ALONE]
    steps: list[tuple[str, Node]] = []
    for element in node.elements():
        if isinstance(element.value, str):  # '- balance' alone
            steps.append((element.choice(known), Node(None, element.file, element.line, element.key)))
            continue
        found = element.mapping(known)
        if len(found) != 1:
            raise element.error(f"has {', '.join(found) or 'nothing'}", expected="one kind of step after each '- '")
        steps += found.items()
    if not steps:
        raise node.error("is empty", expected="one step or more")
    for kind, step in steps:
        if kind in ALONE and len(steps) > 1:
            raise step.error(f"stands among others, and {kind} is a recipe by itself", expected="no other step")
    return steps


def _source(node: Node, folder: Path, *, checkpoint: bool = False, strength: bool = False) -> RecipeSource:
    if isinstance(node.value, str):
        return RecipeSource(_place(node.text(), folder, file=checkpoint), node=node)
    left_out = {"sha256", "config_sha256", "name", "initial", "initial_sha256"} if checkpoint else {"headers_sha256"}
    left_out |= set() if strength else {"strength"}
    fields = node.mapping([key for key in _SOURCE if key not in left_out], needed=["path"])
    hashes = {key: _sha256(fields[key]) for key in fields if key.endswith("sha256")}
    factor = fields.get("strength")
    if factor is not None and (isinstance(factor.value, bool) or not isinstance(factor.value, int | float)):
        raise factor.error(f"is {factor.described()}", expected="a number")
    return RecipeSource(
        _place(fields["path"].text(), folder, file="sha256" in fields or checkpoint),
        fields["name"].text() if "name" in fields else None,
        **hashes,
        strength=None if factor is None else float(factor.value),
        initial=_from(folder, fields["initial"].text()) if "initial" in fields else None,
        node=node,
    )


def _place(text: str, folder: Path, *, file: bool) -> str:
    """Return a path from the folder of the recipe; a name on the Hub stays one.

    With ``file`` only ``hf://`` names one: what has a hash was a file, and checkpoints are files always.
    """
    if text.startswith("hf://"):
        return text
    path = _from(folder, text)
    # where there is such a folder, it was meant
    on_hub = not file and hub_id(text) is not None and not os.path.lexists(path) and not Path(path).parent.is_dir()
    return text if on_hub else path


def _from(folder: Path, text: str) -> str:
    # the folders' names alone count, as when a recipe is written: links are not followed
    return os.path.normpath(folder / text)


def _sha256(node: Node) -> str:
    found = str(node.value) if isinstance(node.value, str | int) else ""
    if not _SHA256.fullmatch(found):
        raise node.error(f"is {node.described()}", expected="a SHA-256: 64 digits of 0-9 and a-f, in quotes")
    return found


def _check_names(sources: Sequence[RecipeSource]) -> None:
    named = [source for source in sources if source.name is not None]
    for i, source in enumerate(named):
        if source.name in [other.name for other in named[:i]] and source.node is not None:
            raise source.node.error(f"is called {source.name!r} as another one is", expected="names that differ")


def _strengths(sources: Sequence[RecipeSource]) -> list[float] | None:
    """Return the strengths of adapters, 1 where one has none; None if no adapter has one."""
    if all(source.strength is None for source in sources):
        return None
    return [1.0 if source.strength is None else source.strength for source in sources]


def _options(step: str, node: Node) -> dict[str, Any]:
    fields = node.mapping(ALONE[step])
    options: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "to":
            options[name] = value.choice([known.name for known in abouts()])
        elif name == "component":
            options[name] = value.choice(COMPONENTS)
        elif name == "family":
            options[name] = value.choice([known.name for known in FAMILIES])
        elif name == "rest":
            options[name] = value.choice(["refuse", "drop"])
        elif name == "format":
            options[name] = value.choice(["kohya", "diffusers"])
        elif name == "modules":
            listed = value.elements() if isinstance(value.value, list) else [value]
            options[name] = tuple(element.text() for element in listed)
        elif name == "k":
            options[name] = _rank(value)
        else:
            wanted = bool if name == "exact" else int
            if type(value.value) is not wanted:
                raise value.error(f"is {value.described()}", expected="true or false" if wanted is bool else "a number")
            options[name] = value.value
    if step == "extract" and "k" not in options:
        raise node.error("has no 'k'", expected="the rank of each module, such as k: 16")
    return options


def _rank(node: Node) -> Any:
    """Return a rank, as a pruner takes it."""
    step = Node({"k": node}, node.file, node.line, node.key)
    return make_pipeline([("prune", step)])[0].k


def _reading(node: Node) -> dict[str, Any]:
    fields = node.mapping(_READING)
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "format":
            found[name] = value.choice([known.name for known in abouts()])
        elif name == "modules_to_save":
            found[name] = value.choice(["refuse", "drop", "first"])
        elif name == "differences":
            found[name] = value.choice(["refuse", "keep", "drop"])
        elif name == "component":
            found[name] = value.choice(COMPONENTS)
        elif name == "allow_pickle":
            # whoever runs a recipe decides which files are trusted, not who wrote it
            raise value.error("is for who runs the recipe to say", remedy="pass --allow-pickle")
        elif isinstance(value.value, bool) or not isinstance(value.value, int | float):
            raise value.error(f"is {value.described()}", expected="a number")
        else:
            found[name] = float(value.value)
    return found


def _output(node: Node, folder: Path) -> dict[str, Any]:
    if isinstance(node.value, str):
        return {"path": _from(folder, node.text())}
    found: dict[str, Any] = {}
    for name, value in node.mapping(_OUTPUT).items():
        if name == "path":
            found[name] = _from(folder, value.text())
        elif name == "layout":
            found[name] = value.choice(["portable", "compact"])
        elif name == "dtype":
            found[name] = value.choice([str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES.values()])
        elif value.value != "server" and not (type(value.value) is int and 1 <= value.value <= _LARGEST_RANK):
            raise value.error(f"is {value.described()}", expected=f"server, or a rank from 1 to {_LARGEST_RANK}")
        else:
            found[name] = value.value
    return found
