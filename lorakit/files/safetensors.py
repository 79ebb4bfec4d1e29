"""The safetensors container: a header checked by us, so that messages are specific; tensors read through safetensors.

Layout: 8 bytes of header length (little endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, the data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..exceptions import CorruptFileError, OutputError
from .checks import FileStamp, FileVersion, file_version, foreign_bytes, require_openable, require_unchanged, stamp
from .json_text import parse_json, shown

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MAX_TENSORS, _MAX_NAME, _MAX_AXES = 500_000, 1_000, 64  # far above what any model has; torch has no more axes
_KEPT_OPEN = 128  # files
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
FP8_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# Dtypes in which the tensors of adapters are read. torch does not compute in fp8; bfloat16 holds each of its values.
READ_DTYPES = FLOAT_DTYPES | dict.fromkeys(FP8_DTYPES, torch.bfloat16)
DTYPE_NAMES = FLOAT_NAMES | {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16"}
DTYPE_NAMES |= {torch.int32: "I32", torch.int64: "I64", torch.complex64: "C64"}
DTYPE_NAMES |= {dtype: name for name, dtype in FP8_DTYPES.items()}
_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_BITS |= {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8}

_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,19}")  # also those that are to come

# pread, because a memory-mapped file that is truncated by someone else kills the process with SIGBUS
_BACKEND = {"backend": "pread"} if "backend" in (getattr(safe_open, "__text_signature__", None) or "") else {}


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What a file says of itself: its tensors, in the order of the header, and free text by key.

    ``spans``: the bytes of the file, first and past the last, at which each tensor lies; in the order of the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    spans: Mapping[str, tuple[int, int]] = MappingProxyType({})


def read_header(path: Path) -> Header:
    """Read and check the header.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Header
        Tensors and metadata.

    Raises
    ------
    UnsafeFileError
        If it is not a regular file, or is a pickle.
    CorruptFileError
        If it is anything else than one whole safetensors file.
    """
    size, _ = stamp(path)
    if size == 0:
        raise CorruptFileError(
            "is empty (0 bytes)",
            path=path,
            expected="a safetensors file, copy or download it again",
        )
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
                f"is no safetensors file ({size} bytes, header length {length}; the limit is {_MAX_HEADER})",
                path=path,
                remedy="copy or download it again",
            )
        if 8 + length > size:
            raise _truncated(path, size, 8 + length)
        file.seek(8)
        raw = file.read(length)
    entries, metadata = _parse(path, raw)
    end = _check_offsets(path, entries)
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise CorruptFileError(
            f"{size - 8 - length - end} bytes follow the data; have {size} bytes, header says {8 + length + end}",
            path=path,
            remedy="copy or download it again",
        )
    tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    in_order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    spans = {name: tuple(8 + length + offset for offset in entries[name]["data_offsets"]) for name in in_order}
    return Header(tensors, metadata, spans)


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
        file = _handle(path, file_version(path))
        tensors = [file.get_tensor(name) for name in names]
        require_unchanged(path, opened)  # it may have been replaced between the check before and the opening
        return tensors
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, names[0], error, opened) from error


def read_rows(path: Path, name: str, index: int, of: int, opened: FileStamp) -> Tensor:
    """Read part ``index`` of a tensor whose rows are split into ``of`` equal parts; no other rows are read.

    Otherwise as :func:`read_tensors`.
    """
    try:
        part = _handle(path, file_version(path)).get_slice(name)
        rows = part.get_shape()[0] // of
        tensor: Tensor = part[index * rows : (index + 1) * rows]
        require_unchanged(path, opened)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, name, error, opened) from error
    return tensor


def _most_open() -> int:
    """Return how many files may be kept open: a quarter of what the process may open, or less."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return _KEPT_OPEN
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _KEPT_OPEN if limit == resource.RLIM_INFINITY else max(min(limit // 4, _KEPT_OPEN), 1)


# safetensors parses the whole header when it opens a file, which takes longer than reading a module of it. Another file
# of the same size and time is opened anew.
@lru_cache(maxsize=_most_open())
def _handle(path: Path, _: FileVersion | None) -> Any:
    return safe_open(path, framework="pt", **_BACKEND)


def close_files() -> None:
    """Close the files that are kept open; a file is opened again when a tensor of it is read."""
    _handle.cache_clear()


def _unreadable(path: Path, name: str, error: Exception, opened: FileStamp) -> Exception:
    """Return the error to raise instead of safetensors' own, which calls every file that it cannot open missing."""
    require_openable(path)
    require_unchanged(path, opened)
    return CorruptFileError(f"cannot read {name!r}: {error}", path=path, remedy="copy or download it again")


def write_tensors(
    path: Path, tensors: Mapping[str, TensorInfo], data: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    safetensors' own writer holds all of them, orders several metadata keys at random and makes files that only their
    owner can read. This one writes the same bytes as it does for one metadata key.

    Parameters
    ----------
    path : Path
        The file to make; it must not exist.
    tensors : mapping of str to TensorInfo
        Name, dtype and shape of every tensor, in the order of ``data``.
    data : iterable of Tensor
        The tensors, asked for one by one.
    metadata : mapping of str to str, optional
        Free text, written in the order of its keys. ``format`` is always 'pt', which readers look for.

    Raises
    ------
    OutputError
        If :func:`read_header` would refuse the file: too many tensors, a name or a header that is too long.
    """
    sizes = {name: math.prod(shape) * FLOAT_DTYPES[dtype].itemsize for name, (dtype, shape) in tensors.items()}
    write_parts(path, tensors, sizes, _bytes_of(tensors, data), {"format": "pt"} | dict(metadata or {}))


def write_parts(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    sizes: Mapping[str, int],
    parts: Iterable[memoryview],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file from the bytes of its tensors, which may be of dtypes that torch does not know.

    Parameters
    ----------
    path : Path
        The file to make; it must not exist.
    tensors : mapping of str to TensorInfo
        Name, dtype and shape of every tensor, in the order of the data.
    sizes : mapping of str to int
        Bytes of every tensor.
    parts : iterable of memoryview
        The data, one tensor after the other, in pieces of any length. They are asked for one by one.
    metadata : mapping of str to str
        Free text, written in the order of its keys.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + sizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # the data starts at a multiple of 8
    _check_written(path, tensors, len(raw))
    with path.open("xb", buffering=0) as file:
        _write_all(file, memoryview(len(raw).to_bytes(8, "little") + raw))
        written = 0
        for part in parts:
            _write_all(file, part)
            written += part.nbytes
    if written != end:
        raise RuntimeError(f"{path}: announced {end} bytes of data, got {written}")


def _write_all(file: Any, part: memoryview) -> None:
    while part.nbytes:  # without a buffer of Python's, a write may take a part only
        part = part[file.write(part) :]


def _bytes_of(tensors: Mapping[str, TensorInfo], data: Iterable[Tensor]) -> Iterator[memoryview]:
    for (name, info), tensor in zip(tensors.items(), data, strict=True):
        if tuple(tensor.shape) != info.shape or FLOAT_NAMES[tensor.dtype] != info.dtype:
            raise RuntimeError(f"{name}: announced {info}, got {tuple(tensor.shape)} {tensor.dtype}")
        yield bytes_of(tensor)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU, as a file holds them; not copied if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _check_written(path: Path, names: Iterable[str], length: int) -> None:
    """Raise OutputError for names, numbers and sizes that :func:`read_header` refuses."""
    names = list(names)
    if length > _MAX_HEADER:
        raise OutputError(
            f"its header would have {length} bytes",
            path=path.name,
            expected=f"{_MAX_HEADER} at most, which is what readers take",
            remedy="write fewer modules to a file, or less metadata",
        )
    if len(names) > _MAX_TENSORS:
        raise OutputError(
            f"would hold {len(names)} tensors",
            path=path.name,
            expected=f"{_MAX_TENSORS} at most, which is what lorakit reads",
            remedy="write fewer modules to a file",
        )
    for name in names:
        reason = wrong_name(name)
        if reason is not None:
            raise OutputError(
                f"{name[:60]!a}... would be {reason}",
                path=path.name,
                remedy="rename the module with adapter.rename_modules",
            )


def wrong_name(name: str) -> str | None:
    """Say why a text cannot be a tensor's name; None if it can."""
    if len(name) > _MAX_NAME:
        return f"a name of {len(name)} characters, expected {_MAX_NAME} at most"
    if not name.isprintable():
        return "a name that cannot be printed"
    return None


def _parse(path: Path, raw: bytes) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    try:
        entries = parse_json(raw)
    except ValueError as error:
        raise CorruptFileError(
            f"the header is not JSON as expected ({error})",
            path=path,
            remedy="copy or download the file again",
        ) from error
    if not isinstance(entries, dict):
        raise CorruptFileError(
            f"the header is a JSON {type(entries).__name__}",
            path=path,
            expected="an object",
        )
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CorruptFileError(
            "__metadata__ is no object of texts",
            path=path,
            remedy="save the file again",
        )
    if len(entries) > _MAX_TENSORS:
        raise CorruptFileError(
            f"names {len(entries)} tensors",
            path=path,
            expected=f"{_MAX_TENSORS} at most",
            remedy="save it again",
        )
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    return entries, metadata


def _check_entry(path: Path, name: str, entry: Any) -> None:
    reason = wrong_name(name)
    if reason is not None:
        raise CorruptFileError(f"{name[:60]!a}... is {reason}", path=path, remedy="save it again")
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = fields.get("shape", ()), fields.get("data_offsets", ()), fields.get("dtype", "")
    whole = isinstance(shape, list) and isinstance(offsets, list) and isinstance(dtype, str) and _DTYPE.fullmatch(dtype)
    if not whole or len(shape) > _MAX_AXES or len(offsets) != 2 or not all(map(_is_size, (*shape, *offsets))):
        raise CorruptFileError(
            f"{name!r}: the header says {shown(entry)}",
            path=path,
            expected="dtype, shape and two data_offsets, save the file again",
        )
    bits = _BITS.get(dtype)  # of the dtypes that we do not know, the caller refuses the ones that it would read
    if bits is not None and (offsets[1] - offsets[0]) * 8 != math.prod(shape) * bits:
        raise CorruptFileError(
            f"{name!r}: {offsets[1] - offsets[0]} bytes of data for shape {tuple(shape)} of {dtype}",
            path=path,
            remedy="copy or download the file again",
        )


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _check_offsets(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> int:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end or stop < begin:
            raise CorruptFileError(
                f"{name!r} lies at bytes {begin} to {stop}",
                path=path,
                expected=f"to begin at {end}: overlap or hole",
                remedy="copy or download the file again",
            )
        end = stop
    return end


def _truncated(path: Path, have: int, need: int) -> CorruptFileError:
    return CorruptFileError(
        f"is truncated: have {have} bytes, header says {need}",
        path=path,
        remedy="copy or download the file again",
    )
