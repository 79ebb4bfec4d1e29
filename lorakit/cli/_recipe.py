"""What commands do with ``--recipe`` and ``--save-recipe``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from .. import Adapter
    from ..recipes.recipe import Recipe

Command = Callable[..., Any]
# What is for the run to say; all else that bears on the result stands in the recipe
_OF_THE_RUN = {
    *("recipe", "save_recipe", "paths", "path", "base", "tuned", "given", "output", "rename", "names"),
    *("overwrite", "dry_run", "as_json", "quiet", "strict", "allow_pickle", "jobs", "device", "engine", "address"),
    *("model", "heads", "prompts", "initial", "with_report"),
}
_COMMANDS = {"rename": "fit"}  # of the other steps it is the name


class Saving:
    """Where a command puts the recipe of what it did; nowhere if nobody asked for one."""

    def __init__(self, file: str | None, *, overwrite: bool) -> None:
        self.file, self.overwrite = None if file is None else Path(file), overwrite

    def check(self) -> None:
        """Refuse a file that may not be replaced, before any work is done."""
        if self.file is not None:
            from ..files.atomic import check_file
            from ..recipes.text import require_yaml

            require_yaml()
            check_file(self.file, overwrite=self.overwrite)

    def write(
        self,
        steps: Callable[[], Sequence[Mapping[str, Any]]],
        adapters: Iterable[Adapter],
        *,
        output: str,
        written: Mapping[str, Any] | None = None,
        reading: Mapping[str, Any] | None = None,
        strengths: Sequence[float] | None = None,
        tuned: str | None = None,
        base: str | None = None,
        left_out: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Write the recipe.

        Parameters
        ----------
        steps : callable
            Returns them as a recipe has them; called only if somebody asked for a recipe.
        adapters : iterable of Adapter
            The sources, as they were read.
        output : str
            Where the result was written.
        written, reading : mapping of str to object
            Options of the output, and of reading; those that are None were not given.
        strengths : sequence of float, optional
            One for each adapter.
        tuned, base : str, optional
            Checkpoints.
        left_out : callable, default=tuple
            Returns the parameters that a recipe cannot hold.
        """
        if self.file is None:
            return
        from ..recipes.files import adapter_source, checkpoint_source, portable_path, write_recipe

        folder = self.file.parent
        given = list(adapters)
        factors: Sequence[float | None] = strengths or [None] * len(given)
        sources = [adapter_source(a, folder, strength=factor) for a, factor in zip(given, factors, strict=True)]
        began = (reading or {}).get("initial") or {}
        for source in sources:
            first = began.get(source["name"]) if isinstance(began, dict) else began
            source |= {"initial": portable_path(first, folder)} if first else {}
        base = base or (reading or {}).get("base")
        if tuned is not None:
            sources = [checkpoint_source(tuned, folder)]
        read = {
            name: value
            for name, value in (reading or {}).items()
            if name in ("format", "assume_alpha", "component") and value
        }
        for name in ("modules_to_save", "differences"):
            if (reading or {}).get(name, "refuse") != "refuse":
                read[name] = (reading or {})[name]
        form = {name: value for name, value in (written or {}).items() if value is not None}
        recipe = {
            "sources": sources,
            **({} if base is None else {"base": checkpoint_source(base, folder)}),
            **({"reading": read} if read else {}),
            "steps": list(steps()),
            "output": {"path": portable_path(output, folder)} | form,
        }
        write_recipe(recipe, self.file, left_out=left_out(), overwrite=self.overwrite)


def with_recipe(*steps: str) -> Callable[[Command], Command]:
    """Return the decorator of a command that runs recipes with these steps.

    The command gets ``recipe``, a Recipe or None, and ``saving``; and what a recipe says in place of its options.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(*args: Any, recipe: str | None, save_recipe: str | None, **params: Any) -> Any:
            ctx = click.get_current_context()
            # nothing is written by a dry run
            saving = Saving(None if params.get("dry_run") else save_recipe, overwrite=params.get("overwrite", False))
            saving.check()
            found = None
            if recipe is not None:
                found = _read(ctx, recipe, steps)
                params |= _of_recipe(found, params)
            return command(*args, recipe=found, saving=saving, **params)

        return run

    return decorate


def _read(ctx: click.Context, file: str, steps: Sequence[str]) -> Recipe:
    from ..recipes.recipe import read_recipe

    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if given and param.expose_value and param.name not in _OF_THE_RUN:
            raise click.UsageError(f"{param.opts[-1]}: a recipe says it itself; change it in {file}")
    recipe = read_recipe(file)
    if recipe.step not in steps:
        command = _COMMANDS.get(recipe.step, recipe.step)
        raise click.UsageError(f"{file}: is a recipe of {recipe.step}; run it with lorakit {command} --recipe {file}")
    return recipe


def _of_recipe(recipe: Recipe, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a recipe stands for; sources and output that are given stand for its own."""
    from ..recipes.sources import require_places

    found: dict[str, Any] = {**recipe.reading, **{k: v for k, v in recipe.output.items() if k != "path"}}
    for name in {"modules_to_save", "differences"} & set(params):
        found[name] = recipe.reading.get(name, "refuse")
    here = [source.path for source in recipe.sources]
    base = None if recipe.base is None else recipe.base.path
    if "base" in params:
        found["base"] = params["base"] or base
    if any(source.initial for source in recipe.sources):
        found["initial"] = params["initial"] or _initial(recipe)
    several = "given" if "given" in params else "paths"  # what a command calls its adapters
    if recipe.step in ("merge", "prune", "bake", "rename"):
        found |= {several: _instead(recipe, params[several], here)}
    elif recipe.step == "convert":
        found |= {"path": (_instead(recipe, [params["path"]] if params["path"] else [], here))[0]}
        found |= {"target": recipe.options.get("to"), "component": recipe.options.get("component")}
        found |= {"family": recipe.options.get("family")}
        found |= {"k": recipe.options.get("k")}
    elif recipe.step == "extract":
        tuned = params["tuned"]
        if tuned and not params["base"]:
            raise click.UsageError("give both TUNED and BASE in place of those of the recipe, or none")
        found |= {"tuned": _instead(recipe, [tuned] if tuned else [], here)[0]}
        found |= {name: recipe.options[name] for name in ("k", "rest", "format", "exact") if name in recipe.options}
        found |= {"patterns": recipe.options.get("modules", ()), "seed": recipe.options.get("random_state", 0)}
    output = "rename" if recipe.step == "rename" else "output"
    found[output] = params[output] or recipe.output.get("path")
    _require(recipe, found, output)
    if "names" in params and not params["names"] and all(source.name for source in recipe.sources):
        found["names"] = tuple(source.name for source in recipe.sources)
    own = [source for source in recipe.sources if source.path in found.get(several, ())]
    own += [s for s in recipe.sources if s.path in (found.get("path"), found.get("tuned"))]
    require_places(recipe, own + [s for s in [recipe.base] if s is not None and s.path == found.get("base")])
    return found


def strengths_of(recipe: Recipe, given: list[float] | None, *, in_steps: bool = False) -> list[float] | None:
    """Return the strengths of the sources of a recipe; with ``in_steps`` its pipeline has them.

    Raises
    ------
    click.UsageError
        If there are others on the command line.
    """
    if given is not None and (in_steps or recipe.sources):
        raise click.UsageError(f"ADAPTER:STRENGTH: a recipe says it itself; change it in {recipe.file}")
    if in_steps or not recipe.sources:
        return None
    return [1.0 if source.strength is None else source.strength for source in recipe.sources]


def _initial(recipe: Recipe) -> dict[str, str]:
    """Return the adapters as they were before training, by the names of those that were trained."""
    named = {source.name: source.initial for source in recipe.sources if source.initial}
    if None in named:
        raise click.UsageError(f"{recipe.file}: a source with initial needs a name")
    return {str(name): str(path) for name, path in named.items()}


def _instead(recipe: Recipe, given: Sequence[str], here: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that are given, else those of the recipe."""
    if not given and not here:
        raise click.UsageError(f"{recipe.file} has no sources; give them on the command line")
    if given and here and len(given) != len(here):
        raise click.UsageError(
            f"{recipe.file} has {len(here)} sources, and {len(given)} are given; give as many, in the same order"
        )
    return tuple(given or here)


def _require(recipe: Recipe, found: Mapping[str, Any], output: str) -> None:
    if found[output] is None:
        raise click.UsageError(f"{recipe.file} has no output; give it on the command line")
    if recipe.step in ("extract", "bake", "rename") and found["base"] is None:
        raise click.UsageError(f"{recipe.file} has no base; give it on the command line")
