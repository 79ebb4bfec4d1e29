"""A base checkpoint: a mapping from the names of tensors to tensors, each read when it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..exceptions import CorruptFileError, UnsupportedCheckpointError
from .checks import FileStamp, FileVersion, require_unchanged
from .safetensors import DTYPE_NAMES, Header, TensorInfo

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

# What a checkpoint calls the matrix from which tokens get their vectors, and which the output head may share.
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared", "token_embedding")
HEAD = "lm_head"
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # GPT-2's names for linear layers


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a base model, by name.

    Parameters
    ----------
    name : str
        What messages call it.
    infos : mapping of str to TensorInfo
        Dtype and shape of every tensor.
    config : mapping
        Its ``config.json``; empty where there is none.
    """

    def __init__(self, name: str, infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
        self.name, self.infos, self.config = name, infos, config

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, 0, self.matrix_shape(name)[0]).reshape(self.infos[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read some rows of a tensor, seen as a matrix.

        Its first axis gives the rows, except where it has three axes and no ``.weight`` in its name: the matrices of
        the experts lie in one parameter, one below the other.

        Returns
        -------
        Tensor of shape (stop - start, n_cols)
            As it is stored.
        """

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return the shape of the matrix that :meth:`rows` reads from."""
        shape = self.infos[name].shape
        if is_stack(name, shape):
            return shape[0] * shape[1], shape[2]
        return (shape[0] if shape else 1), math.prod(shape[1:])

    @cached_property
    def modules(self) -> dict[str, None]:
        """The names of all modules: what stands before a dot in the name of a tensor."""
        found: dict[str, None] = {}
        for name in self.infos:
            while (end := name.rfind(".")) > 0 and (name := name[:end]) not in found:
                found[name] = None
        return found

    @cached_property
    def tied_embedding(self) -> str | None:
        """The tensor that also serves as the output head, which itself is not stored; None if there is none."""
        if self.config.get("tie_word_embeddings") is False or f"{HEAD}.weight" in self.infos:
            return None
        architecture = " ".join(self.config.get("architectures") or ())
        found = [name for name in self.infos if name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS]
        with_head = "CausalLM" in architecture or "LMHead" in architecture
        return found[0] if with_head and len(found) == 1 else None

    @cached_property
    def stores_in_out(self) -> bool:
        """Whether linear layers are stored as (in, out), as GPT-2's are; a bias is as long as the outputs are many."""
        for layer in self.modules:
            if layer.rpartition(".")[2] in CONV1D and f"{layer}.weight" in self and f"{layer}.bias" in self:
                rows, cols = self.matrix_shape(f"{layer}.weight")
                if rows != cols and self.infos[f"{layer}.bias"].shape == (cols,):
                    return True
        return False


def headers_digest(checkpoint: Checkpoint) -> str:
    """Return a hash of the names, dtypes and shapes of all tensors."""
    listed = sorted([name, *info] for name, info in checkpoint.infos.items())
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def is_stack(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor holds the matrices of several experts."""
    return len(shape) == 3 and not name.endswith(".weight")


class MemoryCheckpoint(Checkpoint):
    """Tensors in memory, such as the ``state_dict()`` of a live model."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"a checkpoint in memory maps names to tensors; {name!r} is a {type(tensor).__name__}")
        infos = {n: TensorInfo(DTYPE_NAMES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()}
        super().__init__("the state dict", infos, {})
        self.tensors = tensors

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return some rows; no copy."""
        return self.tensors[name].detach().reshape(self.matrix_shape(name))[start:stop]


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint.

    Parameters
    ----------
    path : Path
        The file.
    relative : str
        Its path below the checkpoint's folder, with ``/`` between parts; of a single file, its name.
    stamp : FileStamp
        Its size and time when the header was read.
    header : Header
        What it holds.
    prefix : str
        What stands before the names of its tensors: the component of a pipeline, such as ``unet.``; else nothing.
    index : str or None
        The path of its index, relative like its own; None for a file without one.
    version : FileVersion or None
        Which version of the file the header was read from.
    """

    path: Path
    relative: str
    stamp: FileStamp
    header: Header
    prefix: str = ""
    index: str | None = None
    version: FileVersion | None = None


class FileCheckpoint(Checkpoint):
    """Tensors in safetensors files.

    Parameters
    ----------
    path : Path
        The folder, or the single file.
    shards : sequence of Shard
        The files with tensors.
    config
        As in :class:`Checkpoint`.
    """

    def __init__(self, path: Path, shards: Sequence[Shard], config: Mapping[str, Any]) -> None:
        self.path, self.shards = path, tuple(shards)
        self.shard_of = {shard.prefix + key: (shard, key) for shard in shards for key in shard.header.tensors}
        super().__init__(str(path), {n: s.header.tensors[k] for n, (s, k) in self.shard_of.items()}, config)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and not one file."""
        return self.path.is_dir()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read some rows from the file, and nothing else."""
        shard, key = self.shard_of[name]
        with shard.path.open("rb", buffering=0) as file:
            rows = read_rows(file, shard, key, self.matrix_shape(name), start, stop)
        require_unchanged(shard.path, shard.stamp)
        return rows


def read_rows(file: BinaryIO, shard: Shard, key: str, shape: tuple[int, int], start: int, stop: int) -> Tensor:
    """Read rows of one tensor of an open file."""
    info = shard.header.tensors[key]
    if info.dtype not in _DTYPES:
        raise unsupported_dtype(shard.path, f"{key!r} is stored as {info.dtype}")
    dtype = _DTYPES[info.dtype]
    first = shard.header.spans[key][0]
    width = shape[1] * dtype.itemsize
    raw = read_span(file, shard, first + start * width, first + stop * width)
    return torch.frombuffer(raw, dtype=dtype).reshape(stop - start, shape[1])


def read_span(file: BinaryIO, shard: Shard, begin: int, end: int) -> bytearray:
    """Read bytes of an open file."""
    raw = bytearray(end - begin)
    view, got = memoryview(raw), 0
    file.seek(begin)
    while got < len(raw):
        n = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not n:
            raise CorruptFileError(
                f"ends at byte {begin + got}",
                path=shard.path,
                expected=f"{end} bytes or more",
                remedy="copy or download it again",
            )
        got += n
    return raw


def unsupported_dtype(path: str | Path, seen: str) -> UnsupportedCheckpointError:
    """Return the error for a base that is quantized, with the way out."""
    return UnsupportedCheckpointError(
        seen,
        path=path,
        expected="float64, float32, float16 or bfloat16",
        remedy="a quantized base would have to be quantized anew, with other scales: take the base that it was made "
        "from, and quantize the result",
    )
