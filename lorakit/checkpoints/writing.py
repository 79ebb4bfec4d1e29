"""Writing a checkpoint as a stream: each file of the base again, with some tensors replaced."""

from __future__ import annotations

import filecmp
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from torch import Tensor

from ..exceptions import OutputError
from ..files import atomic
from ..files.checkpoint import FileCheckpoint, Shard, read_rows, read_span
from ..files.checks import require_unchanged
from ..files.json_text import read_json_object
from ..files.open_checkpoint import carried_files
from ..files.safetensors import FLOAT_DTYPES, bytes_of, write_parts
from .baked import Baked
from .baked_record import KEY, make_record

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_FOR_PEOPLE = (".md", ".rst", ".png", ".jpg", ".jpeg", ".gif", ".webp")
_CHUNK = 2**22  # bytes that are copied at a time
_FICLONE = 0x40049409  # ioctl of Linux: share the blocks of another file until one of the two is written


def write_baked(baked: Baked, output: Path, *, overwrite: bool) -> Path:
    """Write the result of :func:`lorakit.bake`, whole or not at all."""
    base = baked.base
    target = Path(os.path.realpath(output))
    if not isinstance(base, FileCheckpoint):
        _check_single(output, overwrite)
        with atomic.replaced_file(target, overwrite=overwrite) as new:
            _write_memory(baked, new)
        return output
    _refuse_overlap(base, target, output)
    if not base.is_folder:
        _check_single(output, overwrite)
        with atomic.replaced_file(target, overwrite=overwrite) as new:
            _write_shard(baked, base.shards[0], new)
        return output
    carried, left = carried_files(base.path, base.shards)
    own = frozenset([*carried, *(shard.relative for shard in base.shards)])
    atomic.check_directory(output, overwrite=overwrite, own_files=own)
    with atomic.replaced_directory(target, overwrite=overwrite, own_files=own) as new:
        for name in carried:
            _carry(baked, base.path / name, name, new / name)
        for shard in base.shards:
            (new / shard.relative).parent.mkdir(parents=True, exist_ok=True)
            _write_shard(baked, shard, new / shard.relative)
    baked.left_out = tuple(left)
    return output


def differing_files(baked: Baked, result: Path) -> list[str]:
    """Return the files beside the weights that are not as :func:`write_baked` brings them from the base's folder.

    Model cards and the like, which say something to people alone, may be others.
    """
    base = baked.base
    if not isinstance(base, FileCheckpoint) or not base.is_folder or not result.is_dir():
        return []
    found = []
    with TemporaryDirectory(prefix="lorakit-") as scratch:
        for name in carried_files(base.path, base.shards)[0]:
            if Path(name).suffix.lower() in _FOR_PEOPLE:
                continue
            expected = base.path / name
            if baked.added and (name == "config.json" or any(shard.index == name for shard in base.shards)):
                expected = Path(scratch) / name
                _carry(baked, base.path / name, name, expected)
            seen = result / name
            if not seen.is_file() or not filecmp.cmp(seen, expected, shallow=False):
                found.append(name)
    return found


def check_output(baked: Baked, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that :func:`write_baked` would refuse."""
    base = baked.base
    if isinstance(base, FileCheckpoint):
        _refuse_overlap(base, Path(os.path.realpath(output)), output)
        if base.is_folder:
            carried, left = carried_files(base.path, base.shards)
            own = frozenset([*carried, *(shard.relative for shard in base.shards)])
            atomic.check_directory(output, overwrite=overwrite, own_files=own)
            baked.left_out = tuple(left)
            return
    _check_single(output, overwrite)


def _check_single(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise OutputError(
            "has no .safetensors at its end, and the base is one file, so that the result is one too",
            path=output,
            remedy="give a name with .safetensors",
        )
    atomic.check_file(output, overwrite=overwrite)


def _refuse_overlap(base: FileCheckpoint, target: Path, output: Path) -> None:
    own = Path(os.path.realpath(base.path))
    if target == own or own in target.parents or target in own.parents or target in map(_real, base.shards):
        raise OutputError(
            "is the base, in it or around it",
            path=output,
            expected="another place, as the base would be gone",
            remedy="give another path",
        )


def _real(shard: Shard) -> Path:
    return Path(os.path.realpath(shard.path))


def _write_shard(baked: Baked, shard: Shard, new: Path) -> None:
    """Write one file again; bytes of tensors that do not change are copied as they are."""
    spans, header = shard.header.spans, shard.header
    names = {shard.prefix + key: key for key in spans}
    added = [name for name, source in baked.added.items() if source in names]
    if not added and not any(name in baked.contributions for name in names):
        copy_file(shard.path, new)
        require_unchanged(shard.path, shard.stamp)
        return
    tensors = {key: header.tensors[key] for key in spans}
    sizes = {key: end - begin for key, (begin, end) in spans.items()}
    for name in added:
        source = names[baked.added[name]]
        tensors[name.removeprefix(shard.prefix)] = tensors[source]
        sizes[name.removeprefix(shard.prefix)] = sizes[source]
    metadata = dict(header.metadata) | {KEY: json.dumps(make_record(baked), sort_keys=True, separators=(",", ":"))}
    with shard.path.open("rb", buffering=0) as file:
        parts = _parts(baked, shard, file, [*names, *added])
        write_parts(new, tensors, sizes, parts, metadata)
    require_unchanged(shard.path, shard.stamp)


def _parts(baked: Baked, shard: Shard, file: BinaryIO, names: list[str]) -> Iterator[memoryview]:
    for name in names:
        key = baked.added.get(name, name).removeprefix(shard.prefix)
        if name in baked.contributions:
            for block in baked.blocks(name, _reader(baked, shard, file, key)):
                yield bytes_of(block)
        else:
            begin, end = shard.header.spans[key]
            for start in range(begin, end, _CHUNK):
                yield memoryview(read_span(file, shard, start, min(start + _CHUNK, end)))


def _reader(baked: Baked, shard: Shard, file: BinaryIO, key: str) -> Callable[[int, int], Tensor]:
    shape = baked.base.matrix_shape(shard.prefix + key)
    return lambda start, stop: read_rows(file, shard, key, shape, start, stop)


def _write_memory(baked: Baked, new: Path) -> None:
    tensors = {name: baked.base.infos[baked.added.get(name, name)] for name in baked}
    sizes = {name: baked.base[baked.added.get(name, name)].nbytes for name in baked}
    metadata = {"format": "pt", KEY: json.dumps(make_record(baked), sort_keys=True, separators=(",", ":"))}
    write_parts(new, tensors, sizes, (bytes_of(baked[name].cpu()) for name in baked), metadata)


def _carry(baked: Baked, source: Path, name: str, new: Path) -> None:
    """Bring another file of the base to the result; what it says of tied weights is corrected."""
    new.parent.mkdir(parents=True, exist_ok=True)
    untied = dict(baked.added)
    if untied and name == "config.json":
        fields = read_json_object(source) | {"tie_word_embeddings": False}
        new.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    elif untied and any(shard.index == name for shard in baked.base.shards):  # type: ignore[attr-defined]
        new.write_text(json.dumps(_with_added(baked, source), indent=2) + "\n", encoding="utf-8", newline="\n")
    else:
        copy_file(source, new)


def _with_added(baked: Baked, index: Path) -> dict[str, object]:
    fields = read_json_object(index)
    placed = dict(fields["weight_map"])
    more = 0
    for name, source in baked.added.items():
        placed[name] = placed[source]
        dtype, shape = baked.base.infos[source]
        more += math.prod(shape) * FLOAT_DTYPES[dtype].itemsize
    metadata = dict(fields.get("metadata") or {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += more
    return fields | {"metadata": metadata, "weight_map": dict(sorted(placed.items()))}


def copy_file(source: Path, new: Path) -> None:
    """Copy a file; where the file system can, the two share their blocks until one of them is written to.

    Never a hard link: what is done to one of the two later would be done to both.
    """
    if fcntl is not None:
        with source.open("rb") as old, new.open("xb") as file, suppress(OSError):
            fcntl.ioctl(file.fileno(), _FICLONE, old.fileno())
            return
        new.unlink()
    shutil.copyfile(source, new)
