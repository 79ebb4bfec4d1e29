"""Reading tensors of an opened file by name, from safetensors or a pickle: whole tensors, or the part of one expert.

Those of fp8 become bfloat16, which holds each of their values: torch does not compute in fp8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checks import FileStamp, FileVersion, file_version, is_pickled
from .pickled import read_pickled
from .safetensors import FP8_DTYPES, read_rows, read_tensors

# The B of stacked experts that was read last from each file. The columns of one expert lie far apart, so the whole
# tensor is read. The modules that are read next are usually its other experts, which would each read it again.
_last_stack: dict[Path, tuple[FileVersion | None, str, Tensor]] = {}
_MOST_STACKS = 128  # files, as many as are kept open


def read_whole(path: Path, names: Sequence[str], opened: FileStamp) -> list[Tensor]:
    """Read tensors by name, as they are stored; those of fp8 as bfloat16.

    Parameters
    ----------
    path : Path
        The file; a pickle if its name says so.
    names : sequence of str
        Names of its tensors.
    opened : FileStamp
        Size and time of the file whose header was checked.
    """
    return list(map(widened, (read_pickled if is_pickled(path) else read_tensors)(path, names, opened)))


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor of fp8 as bfloat16, and any other as it is."""
    return tensor.to(torch.bfloat16) if tensor.dtype in FP8_DTYPES.values() else tensor


def read_expert(path: Path, names: Sequence[str], index: int, of: int, opened: FileStamp) -> list[Tensor]:
    """Read one expert's A and B out of the stacks of all experts, as PEFT or mlx-lm stores them.

    Parameters
    ----------
    path, opened
        As in :func:`read_whole`.
    names : sequence of str
        Names of the stack of A, (experts * r, d_in), and of B, (d_out, r * experts).
    index, of : int
        The expert, and the number of experts. Its A are the rows ``index * r`` to ``(index + 1) * r``, its B every
        ``of``-th column from ``index`` on. Where the stacks have an axis for the experts, it is the first of both.
    """
    if is_pickled(path):
        a, b = read_whole(path, names, opened)
        rows = a.shape[0] // of
        return [a[index * rows : (index + 1) * rows], b[:, index::of]]
    key_a, key_b = names
    a = widened(read_rows(path, key_a, index, of, opened))
    if a.ndim == 3:
        return [a[0], widened(read_rows(path, key_b, index, of, opened)[0])]
    return [a, _stack(path, key_b, opened)[:, index::of]]


def _stack(path: Path, name: str, opened: FileStamp) -> Tensor:
    known, version = _last_stack.get(path), file_version(path)
    if known is not None and known[:2] == (version, name):
        return known[2]
    (tensor,) = read_whole(path, (name,), opened)
    if len(_last_stack) >= _MOST_STACKS:
        _last_stack.clear()
    _last_stack[path] = (version, name, tensor)  # two threads may both read it; either tensor is right
    return tensor
