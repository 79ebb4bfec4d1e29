"""The safetensors container: a header checked by us, so that messages are specific; tensors read through safetensors.

Layout: 8 bytes of header length (little endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..exceptions import CorruptFileError
from ._checks import FileStamp, foreign_bytes, stamp

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOAT_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_BITS |= {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64}

# pread, because a memory-mapped file that is truncated by someone else kills the process with SIGBUS
_BACKEND = {"backend": "pread"} if "backend" in (getattr(safe_open, "__text_signature__", None) or "") else {}


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to TensorInfo
        In the order of the header, without ``__metadata__``.

    Raises
    ------
    UnsafeFileError
        If it is not a regular file, or is a pickle.
    CorruptFileError
        If it is anything else than one whole safetensors file.
    """
    size, _ = stamp(path)
    if size == 0:
        raise CorruptFileError(f"{path}: is empty (0 bytes); expected a safetensors file, copy or download it again")
    with path.open("rb") as file:
        head = file.read(512)
        length = int.from_bytes(head[:8], "little")
        # A header of 640 bytes starts like a pickle: look for foreign bytes only where no header follows the length.
        if head[8:9] != b"{":
            error = foreign_bytes(path, head)
            if error is not None:
                raise error
        if size < 8 or length > _MAX_HEADER:
            raise CorruptFileError(
                f"{path}: is no safetensors file ({size} bytes, header length {length}; the limit is {_MAX_HEADER}); "
                "copy or download it again"
            )
        if 8 + length > size:
            raise _truncated(path, size, 8 + length)
        file.seek(8)
        raw = file.read(length)
    entries = _parse(path, raw)
    end = _check_offsets(path, entries)
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise CorruptFileError(
            f"{path}: {size - 8 - length - end} bytes follow the data; have {size} bytes, header says "
            f"{8 + length + end}; copy or download it again"
        )
    return {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def read_tensors(path: Path, names: Sequence[str], opened: FileStamp) -> list[Tensor]:
    """Read tensors by name, as they are stored.

    Parameters
    ----------
    path : Path
        The file.
    names : sequence of str
        Names of its tensors.
    opened : FileStamp
        Size and time of the file whose header was checked.
    """
    try:
        file = _handle(path, opened)
        return [file.get_tensor(name) for name in names]
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path}: cannot read {names[0]!r}: {error}; copy or download it again") from error


# safetensors parses the whole header when it opens a file, which takes longer than reading a module of it. Files, not
# adapters, are kept open, and no more than the usual limits of open files allow.
@lru_cache(maxsize=128)
def _handle(path: Path, opened: FileStamp) -> Any:
    return safe_open(path, framework="pt", **_BACKEND)


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, data: Iterable[Tensor]
) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    safetensors' own writer holds all of them, orders several metadata keys at random and makes files that only their
    owner can read. This one writes the same bytes as it does for one metadata key.

    Parameters
    ----------
    path : Path
        The file to make; it must not exist.
    shapes : mapping of str to tuple of int
        Name and shape of every tensor, in the order of ``data``.
    dtype : torch.dtype
        That of all tensors.
    data : iterable of Tensor
        The tensors, asked for one by one.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _FLOAT_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # the data starts at a multiple of 8
    with path.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for (name, shape), tensor in zip(shapes.items(), data, strict=True):
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise RuntimeError(f"{name}: announced {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _parse(path: Path, raw: bytes) -> dict[str, dict[str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise CorruptFileError(f"{path}: the header names {twice!r} twice; expected each key once, save it again")
        return found

    try:
        entries = json.loads(raw, object_pairs_hook=unique)
    except CorruptFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: the header is not JSON ({error}); copy or download the file again") from error
    if not isinstance(entries, dict):
        raise CorruptFileError(f"{path}: the header is a JSON {type(entries).__name__}, expected an object")
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    return entries


def _check_entry(path: Path, name: str, entry: Any) -> None:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = fields.get("shape", ()), fields.get("data_offsets", ()), fields.get("dtype")
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and isinstance(dtype, str)
    if not whole or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise CorruptFileError(f"{path}: {name!r}: the header says {entry}; expected dtype, shape and two data_offsets")
    bits = _BITS.get(
        fields["dtype"]
    )  # of the dtypes that we do not know, the caller refuses the ones that it would read
    if bits is not None and (offsets[1] - offsets[0]) * 8 != math.prod(shape) * bits:
        raise CorruptFileError(
            f"{path}: {name!r}: {offsets[1] - offsets[0]} bytes of data for shape {tuple(shape)} of {dtype}; "
            "copy or download the file again"
        )


def _check_offsets(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> int:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end or stop < begin:
            raise CorruptFileError(
                f"{path}: {name!r} lies at bytes {begin} to {stop}, expected to begin at {end}: overlap or hole; "
                "copy or download the file again"
            )
        end = stop
    return end


def _truncated(path: Path, have: int, need: int) -> CorruptFileError:
    return CorruptFileError(
        f"{path}: is truncated: have {have} bytes, header says {need}; copy or download the file again"
    )
