"""Ranks, padding, the cast to the dtype of the file and its check, shared by the writers of all formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...adapters import Adapter, ModuleInfo
from ...exceptions import OutputError, ParameterError, Setting, Words
from ...factors import all_finite, dtype_name
from ...files.safetensors import FLOAT_NAMES, TensorInfo

# The values that vLLM accepts for max_lora_rank. A server that is started with one of them accepts ranks up to it.
SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def written_ranks(
    infos: Mapping[str, ModuleInfo], layout: str, pad_to: int | Literal["server"] | None
) -> dict[str, int]:
    """Return the rank that each module is written with: one for all if portable, its own if compact, never 0."""
    own = {module: max(info.rank, 1) for module, info in infos.items()}
    if layout == "compact":
        if pad_to is not None:
            raise ParameterError(
                Words("pad_to goes with layout='portable'", "--pad-to goes with --layout portable"),
                remedy="the compact layout writes each module with its own rank",
            )
        return own
    return dict.fromkeys(own, _padded_rank(max(own.values(), default=1), pad_to))


def _padded_rank(widest: int, pad_to: int | Literal["server"] | None) -> int:
    """Return the one rank of the portable layout, for modules of at most rank ``widest``."""
    if pad_to is None:
        return widest
    allowed = SERVER_RANKS if pad_to == "server" else (int(pad_to),)
    padded = next((rank for rank in allowed if rank >= widest), None)
    if padded is None:
        raise OutputError(
            f"there are modules of rank {widest}, to be padded to {allowed[-1]}",
            remedy="choose a lower k",
        )
    return padded


def plain_shapes(info: ModuleInfo, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and B as PEFT and kohya store them, kernels of convolutions unflattened."""
    kernel = info.kind.kernel
    return (rank, info.d_in // math.prod(kernel), *kernel), (info.d_out, rank, *(1 for _ in kernel))


def plain_infos(info: ModuleInfo, rank: int, dtype: torch.dtype) -> tuple[TensorInfo, TensorInfo]:
    """Return what the header of a file says of A and B, in the shapes of :func:`plain_shapes`."""
    a, b = plain_shapes(info, rank)
    return TensorInfo(FLOAT_NAMES[dtype], a), TensorInfo(FLOAT_NAMES[dtype], b)


def plain_factors(adapter: Adapter, module: str, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Read one module as :func:`padded_factors` does; return A and B in the shapes of :func:`plain_shapes`."""
    a, b = padded_factors(adapter, module, rank, dtype)
    shape_a, shape_b = plain_shapes(adapter.infos[module], rank)
    return a.reshape(shape_a), b.reshape(shape_b)


def padded_factors(adapter: Adapter, module: str, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Read one module; return A (rank, d_in) and B (d_out, rank), padded with zeros, cast and checked.

    Raises
    ------
    OutputError
        If a value is not finite, or does not fit ``dtype``.
    """
    factors = adapter[module].to(device="cpu")
    extra = rank - factors.rank
    a = _checked(adapter.name, module, pad(factors.A, (0, 0, 0, extra)), dtype)
    return a, _checked(adapter.name, module, pad(factors.B, (0, extra)), dtype)


def _checked(name: str, module: str, factor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = factor.to(dtype)
    if not all_finite(cast):
        if not all_finite(factor):
            raise OutputError(
                f"module {module!r} holds NaN or infinite values",
                adapters=[name],
                module=module,
                remedy="find out which step made them",
            )
        raise OutputError(
            f"module {module!r} has values up to {factor.abs().max().item():.3g}, {dtype_name(dtype)} "
            f"holds at most {torch.finfo(dtype).max:.3g}",
            adapters=[name],
            module=module,
            remedy=[Setting("dtype", torch.bfloat16, torch.float32)],
        )
    return cast
