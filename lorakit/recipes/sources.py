"""Whether what a recipe begins with is where, and what, it says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..adapters import Adapter
from ..exceptions import SourceError
from ..files.checkpoint import headers_digest
from ..files.open_checkpoint import open_checkpoint
from ..io.formats.record import file_digest
from ..io.hub import hub_id
from .recipe import Recipe, RecipeSource


def require_places(recipe: Recipe, sources: Sequence[RecipeSource]) -> None:
    """Raise SourceError if there is nothing where a recipe says that a source is."""
    for source in sources:
        if hub_id(source.path) is None and not os.path.lexists(source.path):
            raise _error(recipe, source, "is not there")


def check_adapters(recipe: Recipe, adapters: Sequence[Adapter]) -> None:
    """Raise SourceError if an adapter is another than the recipe says, by the hashes of its files.

    Raises
    ------
    SourceError
        Naming the first that is another.
    """
    if not recipe.sources:  # nothing is said of them
        return
    for source, adapter in zip(recipe.sources, adapters, strict=True):
        known = adapter.provenance.sources[0]
        first = known.initial
        for what, expected, path, opened in (
            ("sha256", source.sha256, known.path, known.opened[0]),
            ("config_sha256", source.config_sha256, known.config, known.opened[1]),
            (
                "initial_sha256",
                source.initial_sha256,
                first.path if first else None,
                first.opened[0] if first else None,
            ),
        ):
            seen = None if expected is None else file_digest(path, opened)
            if seen != expected:
                raise _changed(recipe, source, what, seen, expected, where=str(path or known.path))


def check_checkpoint(recipe: Recipe, source: RecipeSource | None, path: str) -> None:
    """Raise SourceError if the tensors of a checkpoint have other names, dtypes or shapes than the recipe says."""
    if source is not None and source.headers_sha256 is not None:
        seen = headers_digest(open_checkpoint(path))
        if seen != source.headers_sha256:
            raise _changed(recipe, source, "headers_sha256", seen, source.headers_sha256, where=path)


def _changed(
    recipe: Recipe, source: RecipeSource, what: str, seen: str | None, expected: str | None, *, where: str
) -> SourceError:
    return _error(
        recipe,
        source,
        f"{where} is another file than it was: its {what} is {seen or 'that of no file'}",
        expected=expected,
        seen=seen,
        more=f", or take {what} out of the recipe if the new one is meant",
    )


def _error(
    recipe: Recipe,
    source: RecipeSource,
    text: str,
    *,
    expected: str | None = None,
    seen: str | None = None,
    more: str = "",
) -> SourceError:
    name = source.name or source.path
    line = "" if source.node is None else f": line {source.node.line}"
    wanted = expected or source.sha256
    return SourceError(
        f"source {name!r} {text if expected else f'({source.path}) {text}'}",
        path=f"{recipe.file}{line}",
        name=name,
        seen_sha256=seen,
        expected_sha256=wanted,
        expected=None if wanted is None else (wanted if expected else f"a file with the sha256 {wanted}"),
        remedy="say where it is now: change its path in the recipe, or give all sources on the command line in the "
        f"order of the recipe{more}",
    )
