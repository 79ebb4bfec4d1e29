"""Where the modules of an adapter lie in a checkpoint of another code: as rows of fused layers, or as their parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ..adapters import Adapter, ModuleInfo
from ..exceptions import UnsupportedAdapterError
from ..files.checkpoint import Checkpoint
from ..io.convert import what_is_known
from ..io.names.component import split_component
from ..io.names.families.family import DIFFUSERS, ORIGINAL, Family
from ..io.names.families.open_clip import OPEN_CLIP
from ..io.names.kohya import diffusers_names
from ..io.names.spelling import Spelling, filled, rows_of_part
from ..io.names.translate import Candidates, Known, candidates, family_plan
from ..pieces import Piece

# Before the names of a diffusion transformer: in single files of several models, of one; in folders of diffusers
TRANSFORMERS = tuple(
    Spelling(code, prefix)
    for code, prefixes in (
        (ORIGINAL, ("model.diffusion_model.", "diffusion_model.", "")),
        (DIFFUSERS, ("transformer.", "")),
    )
    for prefix in prefixes
)
# Before the names of transformers' text encoders in single files, and of OpenCLIP's
ENCODERS = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": ("text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer."),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
}
IN_OPEN_CLIP = {"text_encoder": ("cond_stage_model.model.",), "text_encoder_2": ("conditioner.embedders.1.model.",)}
PROJECTION = "text_projection"  # stored as (in, out), without .weight


class Place(NamedTuple):
    """Some rows of a tensor, and the outputs of a module that are added to them.

    Parameters
    ----------
    tensor : str
        The tensor.
    first_row : int, default=0
        Its first row.
    rows : tuple of int or None
        The outputs of the module; None for all.
    size : int or None
        How many rows the tensor has, by the widths of the module; None if as many as the module has outputs.
    turned : bool, default=False
        Whether the tensor holds (in, out).
    """

    tensor: str
    first_row: int = 0
    rows: tuple[int, int] | None = None
    size: int | None = None
    turned: bool = False

    def expected(self, info: ModuleInfo) -> tuple[int, int]:
        """Return the shape that the tensor must have."""
        shape = (info.d_out if self.size is None else self.size, info.d_in)
        return shape[::-1] if self.turned else shape


def find_places(adapter: Adapter, checkpoint: Checkpoint, missing: Iterable[str]) -> dict[str, tuple[Place, ...]]:
    """Return the places of modules that have no tensor under the names of their own.

    Parameters
    ----------
    adapter : Adapter
        The adapter, in names of diffusers, of kohya or of the models' own codes.
    checkpoint : Checkpoint
        The base.
    missing : iterable of str
        Modules that were not found there.

    Returns
    -------
    dict of str to tuple of Place
        For those that are found, all their places; modules of which a part has no place are not in it.
    """
    wanted = list(missing)
    found = dict(_in_text_encoders(adapter, checkpoint, wanted))
    rest = [module for module in wanted if module not in found]
    return found | _in_transformer(adapter, checkpoint, rest) if rest else found


def _in_text_encoders(
    adapter: Adapter, checkpoint: Checkpoint, wanted: list[str]
) -> Iterator[tuple[str, tuple[Place, ...]]]:
    flat = diffusers_names(wanted) if adapter.provenance.format == "kohya" else {}
    for module in wanted:
        component, local = split_component(flat.get(module) or module)
        full = split_component(f"{component}.{local}").full.removeprefix(f"{component}.") if component else local
        for prefix in ENCODERS.get(component, ()):
            found = next((n for n in (f"{prefix}{local}", f"{prefix}{full}") if f"{n}.weight" in checkpoint), None)
            if found is not None:
                yield module, (Place(f"{found}.weight"),)
                break
        else:
            place = _in_open_clip(component, full.removeprefix("text_model."), adapter.infos[module], checkpoint)
            if place is not None:
                yield module, (place,)


def _in_open_clip(component: str, part: str, info: ModuleInfo, checkpoint: Checkpoint) -> Place | None:
    for match in rows_of_part(OPEN_CLIP, ORIGINAL, part):
        for prefix in IN_OPEN_CLIP.get(component, ()):
            name = prefix + filled(match.row.name, match.numbers)
            tensor = next((t for t in (f"{name}.weight", f"{name}_weight", name) if t in checkpoint), None)
            if tensor is None:
                continue
            before = [name for name, _ in match.parts()].index(part)
            return Place(
                tensor,
                before * info.d_out,
                size=len(match.row.parts) * info.d_out,
                turned=part == PROJECTION and tensor == name,
            )
    return None


def _in_transformer(adapter: Adapter, checkpoint: Checkpoint, missing: list[str]) -> dict[str, tuple[Place, ...]]:
    known = what_is_known(adapter)
    found = candidates(known) if known.spellings else Candidates((), (), False)
    if not set(missing) & set(found.modules):
        return {}
    best: dict[str, tuple[Place, ...]] = {}
    for family in found.families:
        for spelling in TRANSFORMERS:
            places = _under(spelling, family, known, found, checkpoint)
            now = {module: places[module] for module in missing if module in places}
            if len(now) > len(best):
                best = now
    return best


def _under(
    spelling: Spelling, family: Family, known: Known, found: Candidates, checkpoint: Checkpoint
) -> dict[str, tuple[Place, ...]]:
    """Return the places that modules have if the checkpoint spells the layers of a family in this way."""
    if not any(name.startswith(spelling.prefix) for name in checkpoint.modules):
        return {}
    try:
        plan, _ = family_plan(known, found._replace(families=(family,), certain=True), (spelling,))
    except UnsupportedAdapterError:  # its widths are not those of the family, or a layer has no name there
        return {}
    return _inverted(plan, checkpoint, known.infos)


def _inverted(
    plan: Mapping[str, tuple[Piece, ...]], checkpoint: Checkpoint, infos: Mapping[str, ModuleInfo]
) -> dict[str, tuple[Place, ...]]:
    """From what makes each layer to where each module goes; modules with a part that has no tensor are left out."""
    places: dict[str, list[Place]] = {}
    lost: set[str] = set()
    for name, pieces in plan.items():
        tensor = f"{name}.weight"
        size = sum(piece.stop - piece.start for piece in pieces)
        row = 0
        for piece in pieces:
            if piece.module is not None:
                if tensor in checkpoint:
                    whole = (piece.start, piece.stop) == (0, infos[piece.module].d_out)
                    rows = None if whole else (piece.start, piece.stop)
                    places.setdefault(piece.module, []).append(Place(tensor, row, rows, size))
                else:
                    lost.add(piece.module)
            row += piece.stop - piece.start
    return {module: tuple(found) for module, found in places.items() if module not in lost}
