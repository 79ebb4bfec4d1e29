"""Adding adapters to a base checkpoint: ``W + sum_i c_i B_i A_i``, tensor by tensor."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._execution import one_thread
from ..adapters import Adapter
from ..exceptions import Setting, UnsupportedAdapterError
from ..files.checkpoint import MemoryCheckpoint
from ..files.open_checkpoint import Base, open_checkpoint
from .baked import Baked
from .fitting import check_fit
from .writing import write_baked

__all__ = ["bake"]


def bake(
    base: Base,
    adapters: Adapter | Sequence[Adapter],
    output: str | os.PathLike[str] | None = None,
    *,
    strengths: Sequence[float] | Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Baked:
    """Add adapters to a base model: ``W + sum_i c_i B_i A_i`` for each of its tensors.

    What an adapter adds to biases and norms without factors (``adapter.differences``) is added too, times its strength.
    The sum is computed in float64 (in float32 for tensors in half precision) and rounded once to the dtype of the
    tensor. No model is built; a few rows of one tensor are in memory at a time. The result has the same files as the
    base, shard by shard, and everything else of its folder; only its weights in other formats are left out.

    Parameters
    ----------
    base : str, PathLike or mapping of str to Tensor
        A safetensors file; a folder with one, or with shards and their index; a folder of a diffusers pipeline; or the
        ``state_dict()`` of a live model.
    adapters : Adapter or sequence of Adapter
        What to add. Every one of their modules must have a tensor in the base.
    output : str or PathLike, optional
        Where to write the result: a folder if the base is one, else a ``.safetensors`` file. Without it nothing is
        written, and the result is computed as it is asked for.
    strengths : sequence of float, or mapping of str to float, optional
        A factor for each adapter, as it is: factors are neither normalized nor averaged. A mapping gives them by the
        names of adapters. Defaults to 1 for each.
    overwrite : bool, default=False
        Replace a result that is there; never a folder with other files, and never the base.

    Returns
    -------
    Baked
        The tensors of the result by name, and what rounding took from each update.

    Raises
    ------
    IncompatibleAdaptersError
        If a module of an adapter has no tensor in the base, or one of another shape.
    UnsupportedAdapterError
        If an adapter carries extra weights beside its factors.
    UnsupportedCheckpointError
        If the base is quantized, or not in safetensors.
    CorruptFileError
        If a file is damaged, a shard is missing, or the index does not say what the shards hold.
    OutputError
        If the output may not be replaced, the disk is full, or a sum does not fit the dtype. What was there before is
        then still there, and nothing else is.
    ValueError
        If the strengths are not one finite number for each adapter.

    Warns
    -----
    UserWarning
        If tensors of a state dict share memory, and only one of them is changed.

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, bake
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    >>> adapter = Adapter({"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1))})
    >>> baked = bake(model.state_dict(), adapter, strengths=[0.5])
    >>> (baked["0.weight"] - model[0].weight).detach().round(decimals=3)
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    >>> model.load_state_dict(dict(baked))
    <All keys matched successfully>
    """
    given = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    if not given:
        raise ValueError("bake needs at least one adapter")
    factors = _strengths(strengths, given)
    checkpoint = open_checkpoint(base)
    fits = []
    for adapter in given:
        _refuse_extra_weights(adapter)
        fits.append(check_fit(checkpoint, adapter))
        fits[-1].require()
    baked = Baked(checkpoint, given, factors, fits)
    if isinstance(checkpoint, MemoryCheckpoint):
        _warn_of_shared(checkpoint, baked.changed)
    if output is not None:
        with one_thread():
            baked.output = write_baked(baked, Path(output), overwrite=overwrite)
    return baked


def _strengths(given: Sequence[float] | Mapping[str, float] | None, adapters: Sequence[Adapter]) -> list[float]:
    names = [adapter.name for adapter in adapters]
    if given is None:
        return [1.0] * len(adapters)
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"strengths names {unknown or 'adapters'}; expected different names: {', '.join(names)}")
        given = [given.get(name, 1.0) for name in names]
    try:
        factors = [float(factor) for factor in given]
    except (TypeError, ValueError, OverflowError) as error:  # a text, or a number of 400 digits
        raise ValueError(
            f"strengths must be one finite number for each of {len(adapters)} adapters; {error}"
        ) from error
    if len(factors) != len(adapters) or not all(map(math.isfinite, factors)):
        raise ValueError(f"strengths must be one finite number for each of {len(adapters)} adapters; got {factors}")
    return factors


def _refuse_extra_weights(adapter: Adapter) -> None:
    extra = adapter.provenance.extra_weights
    if extra is not None:
        raise UnsupportedAdapterError(
            f"carries extra weights beside its factors, {', '.join(extra.names[:3])}",
            adapters=[adapter.name],
            expected="factors only",
            remedy=[Setting("modules_to_save", "drop"), " to leave them out, and put them into the result yourself"],
        )


def _warn_of_shared(checkpoint: MemoryCheckpoint, changed: Sequence[str]) -> None:
    places: dict[int, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        if tensor.numel() and not tensor.is_meta:
            places.setdefault(tensor.data_ptr(), []).append(name)
    for name in changed:
        shared = places.get(checkpoint.tensors[name].data_ptr(), ()) if name in checkpoint else ()
        others = [other for other in shared if other not in changed]
        if others:
            warnings.warn(
                f"{name!r} shares its memory with {others[0]!r} (tied weights), and only the first is changed: untie "
                "them in the model before the result is loaded into it",
                UserWarning,
                stacklevel=3,
            )
