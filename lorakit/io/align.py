"""Adapters of one base model whose files name its modules differently, brought to one naming."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapter
from ..exceptions import UnsupportedAdapterError
from .convert import convert_adapter, refuse_second, what_is_known
from .expert_layouts import experts_alike
from .names.component import components_of
from .names.translate import candidates

__all__ = ["named_alike"]


def named_alike(adapters: Sequence[Adapter], component: str | None = None) -> tuple[list[Adapter], str | None]:
    """Bring adapters of several formats to the names of one of these formats, the first's if that can be done.

    The family of a diffusion transformer is the one that all of them can be of, so that one adapter whose names or
    metadata show it speaks for the others.

    Parameters
    ----------
    adapters : sequence of Adapter
        The adapters.
    component : str, optional
        The model of a pipeline to take of adapters that are for several.

    Returns
    -------
    adapters : list of Adapter
        As they are if they are of one format and layout already, or if there is no format in whose names they share
        modules. What was done is in ``provenance.conversions``.
    said : str or None
        What was renamed, split and joined, for people; None if nothing was.

    Raises
    ------
    UnsupportedAdapterError
        If an adapter is for the two transformers of a pipeline, another is of a format that names both alike, and
        nobody says which is meant.
    """
    given = list(adapters)
    if component is None and len({adapter.provenance.format for adapter in given}) > 1:
        for adapter in given:
            refuse_second(adapter)
    if component is not None:
        given = [convert_adapter(a, "diffusers", component=component) if _is_of_several(a) else a for a in given]
    named, said = _in_one_format(given, component)
    if len({adapter.provenance.format for adapter in named}) > 1:
        return named, said
    alike, done = experts_alike(named)
    if done:
        experts = f"experts were brought to the layout of {named[0].name!r}, exactly: {'; '.join(done)}"
        said = experts if said is None else f"{said}; {experts}"
    return alike, said


def _is_of_several(adapter: Adapter) -> bool:
    return adapter.provenance.format == "diffusers" and len(components_of(adapter)) > 1


def _in_one_format(given: list[Adapter], component: str | None) -> tuple[list[Adapter], str | None]:
    formats = list(dict.fromkeys(adapter.provenance.format for adapter in given))
    if len(formats) < 2:
        return given, None
    family = _family_of(given)
    for target in formats:
        try:
            made = [
                adapter
                if adapter.provenance.format == target
                else convert_adapter(adapter, target, family=family, component=component)
                for adapter in given
            ]
        except (UnsupportedAdapterError, ValueError):
            continue
        if not all(_share(made, i) for i in range(len(made))):
            continue
        renamed = [
            f"{len(old)} modules of {old.name!r}, which is {old.provenance.format}"
            for old, new in zip(given, made, strict=True)
            if new is not old
        ]
        layers = "" if family is None else f" of {family}"
        return made, f"modules were renamed to be merged, to the names{layers} in {target} files: {'; '.join(renamed)}"
    return given, None


def _share(adapters: Sequence[Adapter], i: int) -> bool:
    """Whether an adapter has a module that another one has."""
    others = {module for j, adapter in enumerate(adapters) if j != i for module in adapter}
    return not others.isdisjoint(adapters[i])


def _family_of(adapters: Sequence[Adapter]) -> str | None:
    """Return the one family that all adapters can be of; None if there is none, or several."""
    possible = [found.families for adapter in adapters if (found := candidates(what_is_known(adapter))).modules]
    common = [family for family in possible[0] if all(family in other for other in possible)] if possible else []
    return common[0].name if len(common) == 1 else None
