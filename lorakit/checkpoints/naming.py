"""The modules that trainers know the tensors of a checkpoint by: names of kohya's or diffusers' files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from ..adapters import ModuleInfo
from ..exceptions import Setting, UnsupportedCheckpointError
from ..files.checkpoint import Checkpoint
from ..io.names.families.family import DIFFUSERS, ORIGINAL
from ..io.names.families.open_clip import OPEN_CLIP
from ..io.names.in_checkpoints import single_file_names
from ..io.names.kohya import kohya_names
from ..io.names.spelling import Spelling, matches
from ..io.names.translate import Known, candidates, family_plan
from .places import ENCODERS, IN_OPEN_CLIP, PROJECTION, TRANSFORMERS

Format = Literal["kohya", "diffusers"]
Spans = tuple[tuple[int, int], ...]

_AS_OPEN_CLIP = (Spelling(ORIGINAL),)
_AS_WRITTEN = {
    "kohya": Spelling(ORIGINAL, "lora_unet_", flat=True),
    "diffusers": Spelling(DIFFUSERS, "transformer."),
}


class Named(NamedTuple):
    """A module, and the rows of a tensor that it is.

    Parameters
    ----------
    module : str
        Its name.
    spans : tuple of (int, int) or None
        The rows, in the order of the module's outputs; None for all.
    turned : bool or None
        Whether the tensor holds (in, out); None where its name and shape tell.
    """

    module: str
    spans: Spans | None = None
    turned: bool | None = None


def trainer_names(checkpoint: Checkpoint, format: Format) -> dict[str, tuple[Named, ...]]:
    """Return the modules of every tensor that files of a format have names for.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of a diffusion model: a single file, or a folder of diffusers.
    format : {'kohya', 'diffusers'}
        Whose names.

    Raises
    ------
    UnsupportedCheckpointError
        If it has no layer with such a name, or a layer of the format is several here.
    UnsupportedAdapterError
        If the names can be of several models, which the format names differently.
    """
    found = _of_transformer(checkpoint, format)
    others = list(_of_others(checkpoint))
    if format == "kohya":
        flat = kohya_names([named.module for _, named in others], {}, bool(found))
        others = [(t, named._replace(module=name)) for t, named in others if (name := flat[named.module]) is not None]
    for tensor, named in others:
        found[tensor] = (*found.get(tensor, ()), named)
    if not found:
        raise UnsupportedCheckpointError(
            f"has no layer that {format} files have a name for",
            path=checkpoint.name,
            expected="a diffusion model",
            remedy="leave out format, and the modules are called as the tensors are",
        )
    return found


def _of_others(checkpoint: Checkpoint) -> Iterator[tuple[str, Named]]:
    """Yield the tensors of UNets and text encoders, under diffusers' names."""
    table = single_file_names(checkpoint)
    places = [(prefix, part) for part, prefixes in ENCODERS.items() for prefix in (*prefixes, f"{part}.")]
    for tensor in checkpoint.infos:
        layer = tensor.removesuffix(".weight")
        name = None if table is None else table.right_of(layer)
        if name is not None or (layer != tensor and layer.startswith("unet.")):
            yield tensor, Named(name or layer)
            continue
        found = next(((prefix, part) for prefix, part in places if tensor.startswith(prefix)), None)
        if found is not None and layer != tensor:
            yield tensor, Named(f"{found[1]}.{layer.removeprefix(found[0])}")
        for part, prefixes in IN_OPEN_CLIP.items():
            for prefix in prefixes:
                if tensor.startswith(prefix):
                    yield from ((tensor, named) for named in _of_open_clip(checkpoint, tensor, prefix, part))


def _of_open_clip(checkpoint: Checkpoint, tensor: str, prefix: str, component: str) -> Iterator[Named]:
    local = tensor.removeprefix(prefix).removesuffix(".weight").removesuffix("_weight")
    for match in matches(OPEN_CLIP, _AS_OPEN_CLIP, local):
        parts = match.parts()
        rows = checkpoint.matrix_shape(tensor)[0] // len(parts)
        for i, (part, _) in enumerate(parts):
            inside = "" if part == PROJECTION else "text_model."
            spans = ((i * rows, (i + 1) * rows),) if len(parts) > 1 else None
            turned = True if part == PROJECTION and tensor == prefix + PROJECTION else None
            yield Named(f"{component}.{inside}{part}", spans, turned)


def _of_transformer(checkpoint: Checkpoint, format: Format) -> dict[str, tuple[Named, ...]]:
    infos = {
        tensor.removesuffix(".weight"): ModuleInfo(1, shape[1], shape[0])
        for tensor, (_, shape) in checkpoint.infos.items()
        if tensor.endswith(".weight") and len(shape) == 2
    }
    known = Known(checkpoint.name, infos, TRANSFORMERS)
    found = candidates(known)
    if not found.modules:
        return {}
    plan, _ = family_plan(known, found, (_AS_WRITTEN[format],))
    return _by_tensor(checkpoint, plan, infos, format)


def _by_tensor(
    checkpoint: Checkpoint,
    plan: Mapping[str, tuple[tuple[str | None, int, int], ...]],
    infos: Mapping[str, ModuleInfo],
    format: Format,
) -> dict[str, tuple[Named, ...]]:
    made: dict[str, tuple[Named, ...]] = {}
    for name, pieces in plan.items():
        layers = {module for module, _, _ in pieces}
        if len(layers) > 1:
            raise UnsupportedCheckpointError(
                f"{name!r} of {format} files is several layers here: {', '.join(sorted(filter(None, layers))[:3])}",
                path=checkpoint.name,
                expected="a layer for each module",
                remedy=[Setting("format", "diffusers"), ", and convert the adapter"],
            )
        (layer,) = layers
        assert layer is not None
        spans = tuple((start, stop) for _, start, stop in pieces)
        whole = spans == ((0, infos[layer].d_out),)
        tensor = f"{layer}.weight"
        made[tensor] = (*made.get(tensor, ()), Named(name, None if whole else spans))
    return made
