"""Checks that every reader makes on the tensors of a module, once it knows which of them is A and which is B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...adapters import ModuleInfo, ModuleKind
from ...exceptions import CorruptFileError, Note, Setting, UnsupportedAdapterError, Words
from ...factors import all_finite
from ...files.checks import FileStamp, require_unchanged
from ...files.safetensors import READ_DTYPES, TensorInfo
from ...files.tensors import read_whole

# Experts become modules, which take memory, while a file needs a few bytes for one; real models have tens of thousands.
MOST_MODULES = 500_000


def check_factors(where: str, keys: Sequence[str], header: Mapping[str, TensorInfo]) -> None:
    """Refuse factors that are not floating-point numbers or are empty; the message names ``where``."""
    for key in keys:
        dtype, shape = header[key]
        if dtype not in READ_DTYPES:
            raise UnsupportedAdapterError(
                f"{key!r} is stored as {dtype}",
                path=where,
                expected=f"one of {', '.join(READ_DTYPES)}",
                remedy="convert it to floating point (dequantize it) first",
            )
        if 0 in shape:
            raise CorruptFileError(
                f"{key!r} is empty, shape {shape}",
                path=where,
                remedy="save or download the file again",
            )


def read_checked(path: Path, key: str, opened: FileStamp, says: str, drop: Setting) -> Tensor:
    """Read a tensor that is no factor, whose header has been checked, as it is stored; one of fp8 as bfloat16.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        The tensor.
    opened : FileStamp
        Size and time of the file when it was opened.
    says : str
        What it is, for messages: '' or a clause between commas.
    drop : Setting
        What leaves it out.

    Raises
    ------
    CorruptFileError
        If the file has changed, or a value is not finite.
    """
    require_unchanged(path, opened)
    (tensor,) = read_whole(path, (key,), opened)
    if not all_finite(tensor):
        raise CorruptFileError(
            f"{key!r}{says} has NaN or infinite values",
            path=path,
            expected="finite weights",
            remedy=["use an earlier checkpoint, or ", drop],
        )
    return tensor


def refuse_extra_weights(path: Path, extra_weights: Sequence[str]) -> None:
    """Refuse a file that holds tensors which are not part of a LoRA."""
    if extra_weights:
        more = f", and {len(extra_weights) - 1} more" if extra_weights[1:] else ""
        raise UnsupportedAdapterError(
            f"{extra_weights[0]!r} is no part of a LoRA{more}",
            path=path,
            expected="factors only",
            remedy=[Setting("modules_to_save", "drop"), " to leave them out"],
        )


def asked_for(policy: str) -> Words:
    """Return the words for what decides about extra weights."""
    return Words(f"modules_to_save={policy!r}", f"--modules-to-save {policy}")


def left_out(path: Path, dropped: Sequence[str]) -> tuple[Note, ...]:
    """Return the warning about tensors that the options leave out; nothing if there are none."""
    return ((f"{path}: left out, because of ", asked_for("drop"), f": {', '.join(dropped)}"),) if dropped else ()


def info_of(where: str, a: Sequence[int], b: Sequence[int], embedding: bool, *, flat_b: bool = False) -> ModuleInfo:
    """Return rank, widths and kind of a module from the shapes of its A and B; raise if they do not fit.

    ``flat_b`` allows B of a convolution to be a matrix.
    """
    kernel = tuple(a[2:])
    alike = len(b) == len(a) or (flat_b and len(b) == 2)
    shapes = f"A {tuple(a)} and B {tuple(b)}"
    if not 2 <= len(a) <= 5 or not alike or set(b[2:]) - {1} or (embedding and kernel):
        raise CorruptFileError(
            shapes,
            path=where,
            expected="(r, in) and (out, r), or for convolutions (r, in, kernel...) and (out, r, 1...)",
            remedy="save or download the file again",
        )
    rank = a[0]
    if b[1] != rank:
        if kernel and rank % b[1] == 0:
            raise UnsupportedAdapterError(
                f"{shapes}: a grouped convolution, whose update is not B @ A",
                path=where,
                expected="one group",
                remedy="leave this module out when training",
            )
        raise CorruptFileError(
            f"{shapes}: their inner dimensions, {rank} and {b[1]}, should be one rank",
            path=where,
            remedy="save or download the file again",
        )
    kind = ModuleKind("conv", kernel) if kernel else ModuleKind("embedding" if embedding else "linear")
    return ModuleInfo(rank, a[1] * math.prod(kernel), b[0], kind)
