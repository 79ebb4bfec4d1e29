"""Opening a checkpoint: one file, shards with an index, a folder of transformers or diffusers, a whole pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ..exceptions import CorruptFileError, UnsafeFileError, UnsupportedCheckpointError
from .checkpoint import Checkpoint, FileCheckpoint, MemoryCheckpoint, Shard
from .checks import file_version, require_path, stamp
from .json_text import read_json_object, shown
from .safetensors import read_header

Base: TypeAlias = "str | os.PathLike[str] | Mapping[str, Tensor]"

_INDEX = ".safetensors.index.json"
_USUAL = ("model", "diffusion_pytorch_model")  # transformers, diffusers
_PIPELINE = "model_index.json"


def open_checkpoint(base: Base) -> Checkpoint:
    """Open a checkpoint: only headers are read.

    Parameters
    ----------
    base : str, PathLike or mapping of str to Tensor
        A safetensors file; a folder with one, or with shards and their index; a folder of a diffusers pipeline, whose
        tensors get the name of their component in front; or the ``state_dict()`` of a live model.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    CorruptFileError
        If a file is damaged, a shard is missing, or the index says something else than the shards.
    UnsafeFileError
        If the weights are a pickle.
    UnsupportedCheckpointError
        If there are no weights, or it is not clear which.
    """
    if isinstance(base, Checkpoint):
        return base
    if isinstance(base, Mapping):
        return MemoryCheckpoint(base)
    path = Path(base)
    require_path(path)
    path = path.absolute()
    if path.name.endswith(_INDEX):
        return FileCheckpoint(path.parent, _indexed(path, path.parent, ""), _config(path.parent))
    if not path.is_dir():
        if path.suffix != ".safetensors":
            _refuse_file(path)
        return FileCheckpoint(path, [_shard(path, path.parent, "")], {})
    if (path / _PIPELINE).is_file():
        return FileCheckpoint(path, _pipeline(path), {})
    return FileCheckpoint(path, _weights(path, path, ""), _config(path))


def _weights(folder: Path, root: Path, prefix: str) -> list[Shard]:
    """Return the files that hold the weights of one model."""
    for stem in _USUAL:
        if (folder / f"{stem}.safetensors").is_file():
            return [_shard(folder / f"{stem}.safetensors", root, prefix)]
        if (folder / f"{stem}{_INDEX}").is_file():
            return _indexed(folder / f"{stem}{_INDEX}", root, prefix)
    names = sorted(entry.name for entry in folder.iterdir())
    if "adapter_model.safetensors" in names:
        raise UnsupportedCheckpointError("holds an adapter", path=folder, expected="the base model that it is for")
    indexes = [name for name in names if name.endswith(_INDEX)]
    files = [name for name in names if name.endswith(".safetensors")]
    if len(indexes) == 1:
        return _indexed(folder / indexes[0], root, prefix)
    if len(files) == 1 and not indexes:
        return [_shard(folder / files[0], root, prefix)]
    if files:
        raise UnsupportedCheckpointError(
            f"holds {', '.join((indexes or files)[:4])}, and none of the usual names (model.safetensors, "
            "diffusion_pytorch_model.safetensors, or an index of either)",
            path=folder,
            remedy="pass the path of one",
        )
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        _refuse_file(folder / pickled[0])
    raise UnsupportedCheckpointError(
        f"holds no weights in safetensors, it has {', '.join(names[:5]) or 'nothing'}",
        path=folder,
        expected=f"model.safetensors or {_USUAL[0]}{_INDEX}",
    )


def _pipeline(root: Path) -> list[Shard]:
    fields = read_json_object(root / _PIPELINE)
    shards: list[Shard] = []
    for name in fields:
        folder = root / name
        if not name.startswith("_") and folder.is_dir() and any(map(_is_weights, folder.iterdir())):
            shards += _weights(folder, root, f"{name}.")
    if not shards:
        raise UnsupportedCheckpointError(
            "is a pipeline whose components hold no weights", path=root, remedy="download them too"
        )
    return shards


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin")


def _indexed(index: Path, root: Path, prefix: str) -> list[Shard]:
    """Return the shards that an index names, if the index says what they hold."""
    placed = read_json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise CorruptFileError(f"its weight_map is {shown(placed)}", path=index, expected="a file for each tensor")
    shards = []
    seen: dict[str, str] = {}
    for file in dict.fromkeys(placed.values()):
        if Path(file).name != file or file in ("", ".", ".."):
            raise UnsafeFileError(f"names the shard {shown(file)}", path=index, expected="a file beside it")
        if not (index.parent / file).exists():
            missing = sum(other == file for other in placed.values())
            raise CorruptFileError(
                f"is missing, and the index says that {missing} tensors are in it",
                path=index.parent / file,
                remedy="download it",
            )
        shards.append(shard := _shard(index.parent / file, root, prefix, index.relative_to(root).as_posix()))
        for name in shard.header.tensors:
            if name in seen:
                raise CorruptFileError(
                    f"{name!r} is both in {seen[name]} and in {file}",
                    path=index,
                    expected="it once",
                    remedy="download them again",
                )
            seen[name] = file
    for name in (*placed, *seen):
        if placed.get(name) != seen.get(name):
            raise CorruptFileError(
                f"says that {name!r} is in {placed.get(name, 'no shard')}, and it is in "
                f"{seen.get(name, 'none of them')}",
                path=index,
                expected="an index of these very shards",
                remedy="download both again",
            )
    return shards


def _shard(file: Path, root: Path, prefix: str, index: str | None = None) -> Shard:
    before, version = stamp(file), file_version(file)
    return Shard(file, file.relative_to(root).as_posix(), before, read_header(file), prefix, index, version)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json_object(file) if file.is_file() else {}


def _refuse_file(path: Path) -> None:
    stamp(path)  # a device, a FIFO
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise UnsafeFileError(
            "is a pickle, which can run code when it is loaded",
            path=path,
            expected="safetensors",
            remedy="load the model where it is trusted, and save it with safe_serialization=True",
        )
    raise UnsupportedCheckpointError(
        "is no checkpoint in safetensors",
        path=path,
        expected="a .safetensors file, the folder of a model, or its index",
    )


def carried_files(root: Path, shards: Sequence[Shard]) -> tuple[list[str], list[str]]:
    """Return the other files of a checkpoint's folder: those that a result takes along, and those that it does not.

    The latter are weights in other formats, which would be taken for those of the result. Hidden files are neither.
    """
    own, indexes = {shard.relative for shard in shards}, {shard.index for shard in shards}
    carried: list[str] = []
    left: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                raise UnsafeFileError(
                    "is a link to a folder", path=Path(folder, name), expected="files", remedy="copy them there"
                )
        for name in sorted(files):
            relative = Path(folder, name).relative_to(root).as_posix()
            if name.startswith(".") or relative in own:
                continue
            stamp(Path(folder, name))  # refuses what is no regular file
            other = _is_other_weights(name) and relative not in indexes
            (left if other else carried).append(relative)
    return carried, left


def _is_other_weights(name: str) -> bool:
    endings = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz")
    return name.endswith((*endings, ".index.json"))
