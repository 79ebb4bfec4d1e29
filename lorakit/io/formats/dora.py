"""DoRA: rows of ``W + s B A`` brought to a trained length (Liu et al. 2024). Its update has full rank and needs W."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...exceptions import CorruptFileError, UnsupportedAdapterError
from ...files.safetensors import TensorInfo
from ...linalg.structured import with_identity
from ._bases import open_base
from ._factors import check_factors
from ._modules import Form, Stored
from .codec import ReadOptions

__all__ = ["DORA", "rescaled", "split_magnitudes"]

DORA = "DoRA"
_MAGNITUDE = re.compile(r"(?P<module>.+)\.(?:dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?)")
_OF_LYCORIS = ".dora_scale"  # LyCORIS and ComfyUI add the smallest step at 1 to a length; PEFT and MLX do not


def split_magnitudes(
    header: Mapping[str, TensorInfo], options: ReadOptions, module_of: Callable[[str], str] = str
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Part the lengths that DoRA trains from the other tensors, if there is a base to which they apply.

    Parameters
    ----------
    header : mapping of str to TensorInfo
        The tensors of a file.
    options : ReadOptions
        What the user chose. Without a base all tensors are returned as they are, and DoRA is refused by its tensors.
    module_of : callable
        From what stands before the mark in a key to the name of the module.

    Returns
    -------
    magnitudes : dict of str to str
        From modules to keys.
    rest : dict of str to TensorInfo
        The other tensors.
    """
    if options.base is None:
        return {}, dict(header)
    found = {key: match["module"] for key in header if (match := _MAGNITUDE.fullmatch(key))}
    rest = {key: info for key, info in header.items() if key not in found}
    return {module_of(module): key for key, module in found.items()}, rest


class Rescaling(NamedTuple):
    """What makes the update of a module of its tensors.

    Parameters
    ----------
    form, arguments
        Of the factors that are added to the weight before it is rescaled.
    n_keys : int
        How many tensors of the file these take; the magnitude follows them, and the weight is the last tensor of all.
    scale : float
        The factor on them.
    turned : bool
        Whether the weight is stored as (in, out).
    channels : int or None
        The inputs of which each has a length, as LyCORIS has it with ``wd_on_output=False``; None for the outputs.
    eps : float
        What is added to a length.
    """

    form: Form
    arguments: tuple[Any, ...]
    n_keys: int
    scale: float
    turned: bool
    channels: int | None
    eps: float


def rescale(*given: Any) -> tuple[Tensor, Tensor]:
    """A and B of ``diag(m / |V|) V - W`` for ``V = W + s B A``: one of them is the identity.

    It is computed in float64, as the update is a small difference of large numbers.
    """
    *tensors, how = given
    keys, magnitude, others, weight = (
        tensors[: how.n_keys],
        tensors[how.n_keys],
        tensors[how.n_keys + 1 : -1],
        given[-2],
    )
    a, b = how.form(*keys, *others, *how.arguments)
    w = (weight.mT if how.turned else weight.flatten(1)).double()
    change = how.scale * (b.double() @ a.double())
    v, m = w + change, magnitude.double()
    if how.channels is None:
        length = torch.linalg.vector_norm(v, dim=1)[:, None] + how.eps
        m = m.reshape(-1, 1)
    else:
        lengths = torch.linalg.vector_norm(v.reshape(len(v), how.channels, -1), dim=(0, 2)) + how.eps
        each = v.shape[1] // how.channels
        length, m = lengths.repeat_interleave(each), m.reshape(-1).repeat_interleave(each)
    return with_identity(((m - length) / length * w + m / length * change).to(a.dtype))


def rescaled(
    path: Path,
    header: Mapping[str, TensorInfo],
    stored: Mapping[str, Stored],
    magnitudes: Mapping[str, str],
    options: ReadOptions,
    *,
    format: str,
    metadata: Mapping[str, str],
    told: bool = False,
) -> dict[str, Stored]:
    """Return the modules of a file, those with a trained length as the change that DoRA makes to their weight.

    Parameters
    ----------
    path : Path
        The file.
    header : mapping of str to TensorInfo
        Its tensors.
    stored : mapping of str to Stored
        Its modules, without the lengths.
    magnitudes : mapping of str to str
        From modules to the keys of the lengths.
    options : ReadOptions
        What the user chose.
    format, metadata
        As in :func:`~lorakit.io.formats._bases.open_base`.
    told : bool, default=False
        Whether square weights are stored as (in, out).

    Raises
    ------
    CorruptFileError
        If a length belongs to no module, or has another shape than the module's outputs or inputs.
    LorakitError
        If the base does not fit.
    """
    if not magnitudes:
        return dict(stored)
    kinds = {module: place.info.kind.name for module, place in stored.items()}
    base = open_base(options, path, kinds, format=format, metadata=metadata, why="is a DoRA")
    made = dict(stored)
    for module, key in magnitudes.items():
        if module not in stored:
            raise CorruptFileError(
                f"has {key!r} and no factors", path=path, module=module, remedy="save or download the file again"
            )
        place = stored[module]
        if place.expert is not None:
            raise UnsupportedAdapterError(
                f"has {key!r} and is one of several experts", path=path, module=module, remedy="train a plain LoRA"
            )
        check_factors(f"{path}: module {module!r}", (key,), header)
        turned = base.turned(module, place.info, told)
        channels = _channels(path, module, key, header[key].shape, place, base.shape(module))
        eps = torch.finfo(torch.float32).eps if key.endswith(_OF_LYCORIS) else 0.0
        how = Rescaling(place.form, place.arguments, len(place.keys), place.scale, turned, channels, eps)
        made[module] = Stored(
            (*place.keys, key),
            place.info._replace(rank=min(place.info.d_in, place.info.d_out)),
            1.0,
            rescale,
            (how,),
            kind=DORA if place.kind == "LoRA" else f"{DORA} of {place.kind}",
            others=(*place.others, base.weight(module)),
        )
    return made


def _channels(
    path: Path, module: str, key: str, shape: tuple[int, ...], place: Stored, of_weight: tuple[int, ...]
) -> int | None:
    """Return None for lengths of the outputs, or the number of inputs that have one each."""
    size, d_out = math.prod(shape), place.info.d_out
    of_inputs = key.endswith(_OF_LYCORIS) and len(shape) > 1 and shape[0] == 1
    if size == d_out and not (of_inputs and d_out > 1):
        return None
    if of_inputs and len(of_weight) > 1 and size == shape[1] == of_weight[1]:
        return size
    raise CorruptFileError(
        f"{key!r} has the shape {shape}",
        path=path,
        module=module,
        expected=f"a length for each of {d_out} outputs",
        remedy="save or download the file again",
    )
