"""Weights that are a pickle (``adapter_model.bin``): only when the user says so, and without running what is in it.

torch's ``weights_only`` unpickler makes tensors and plain containers and refuses everything else. Reading is lazy all
the same: a file of the kind that torch has written since 1.6 is mapped into memory, and its tensors read when used.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exceptions import CorruptFileError, LorakitError, UnsafeFileError, UnsupportedAdapterError
from .checks import HOW_TO_CONVERT, FileStamp, FileVersion, file_version, foreign_bytes, require_openable, stamp
from .json_text import shown
from .safetensors import FLOAT_NAMES, FP8_DTYPES, Header, TensorInfo, wrong_name

# Before this version a crafted file gets past weights_only: CVE-2025-32434 (fixed in 2.6), CVE-2026-24747 (in 2.10).
_SAFE_TORCH = (2, 10)
_ZIP, _PICKLES = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_pickled_header(path: Path) -> Header:
    """Return names, dtypes and shapes of the tensors in a pickle.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Header
        Its tensors; it has no metadata.

    Raises
    ------
    UnsafeFileError
        If it asks for anything else than tensors and plain containers, is no regular file, or torch is too old.
    CorruptFileError
        If it is not one whole file as ``torch.save`` makes it.
    UnsupportedAdapterError
        If it holds something else than a dictionary of tensors.
    """
    tensors = _contents(path, stamp(path), file_version(path))
    return Header({name: TensorInfo(_dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}, {})


def read_pickled(path: Path, names: Sequence[str], opened: FileStamp) -> list[Tensor]:
    """Return tensors by name, as they are stored. They may share memory with the file: do not change them."""
    tensors = _contents(path, opened, file_version(path))
    return [tensors[name] for name in names]


# As many files as safetensors keeps open. A mapped file takes no memory; a file from before torch 1.6 is held whole.
@lru_cache(maxsize=128)
def _contents(path: Path, opened: FileStamp, _: FileVersion | None) -> dict[str, Tensor]:
    _check_torch(path)
    require_openable(path)
    zipped = _check_container(path, opened[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols that it might not read: then it says so
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"asks for more than tensors, and nothing of it was run ({_reason(error)})",
            path=path,
            expected=("a plain dictionary of tensors. Do not load it otherwise unless you trust where it came from"),
            remedy="get a safetensors file of it instead",
        ) from error
    except Exception as error:  # whatever a broken file makes the unpickler stumble over
        require_openable(path)
        raise CorruptFileError(
            f"cannot be unpickled ({type(error).__name__}: {_reason(error)})",
            path=path,
            expected="a file as torch.save makes it",
            remedy="copy or download it again",
        ) from error
    return _checked(path, found, opened[0])


def _check_torch(path: Path) -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        needed = ".".join(map(str, _SAFE_TORCH))
        raise UnsafeFileError(
            f"is a pickle, and torch {torch.__version__} can be made to run code by one in spite of weights_only",
            path=path,
            remedy=f"install torch {needed} or later, or convert it elsewhere: {HOW_TO_CONVERT}",
        )


def _check_container(path: Path, size: int) -> bool:
    """Return whether it is torch's zip archive; raise if it is neither that nor a bare pickle."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_PICKLES):
        return False
    if not head.startswith(_ZIP):
        known = foreign_bytes(path, head)
        if known is None and head[8:9] == b"{":
            known = CorruptFileError(
                "is a safetensors file, whatever its name says",
                path=path,
                remedy="rename it",
            )
        if size == 0:
            known = CorruptFileError(
                "is empty (0 bytes)",
                path=path,
                remedy="copy or download it again",
            )
        raise known or CorruptFileError(
            f"is no pickle: it begins with {head[:8]!r}",
            path=path,
            expected="a file as torch.save makes it",
            remedy="copy or download it again",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile has no one error for what is wrong with a file
        require_openable(path)
        raise CorruptFileError(
            f"is a broken zip archive ({error})",
            path=path,
            remedy="copy or download it again",
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafeFileError(
            "is compressed, which torch.save never does: it could be far larger than it looks",
            path=path,
            remedy="save it again with torch.save, where it is trusted",
        )
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise UnsupportedAdapterError(
            "is a TorchScript program",
            path=path,
            expected="the weights of an adapter",
            remedy="save its state_dict instead",
        )
    return True


def _checked(path: Path, found: Any, size: int) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise UnsupportedAdapterError(
            f"holds a {type(found).__name__}",
            path=path,
            expected="a dictionary of tensors by name",
            remedy="save the adapter with PEFT's save_pretrained, or its state_dict",
        )
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UnsupportedAdapterError(
                f"holds a {type(tensor).__name__} under {shown(name)}",
                path=path,
                expected="tensors by name and nothing else",
                remedy=("save the adapter's state_dict alone (of a training checkpoint, the part with the weights)"),
            )
        reason = wrong_name(name)
        if reason is not None:
            raise CorruptFileError(f"{name[:60]!a}... is {reason}", path=path, remedy="save it under another name")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
            raise UnsupportedAdapterError(
                f"{name!r} is a {tensor.layout} tensor on {tensor.device}, quantized: "
                f"{tensor.is_quantized}, nested: {tensor.is_nested}",
                path=path,
                expected="a dense one",
                remedy="convert it (tensor.to_dense(), dequantize())",
            )
        if tensor.numel() * tensor.element_size() > size:  # a view that repeats few bytes endlessly
            raise _too_large(path, name, tensor, size)
    return {name: tensor.detach() for name, tensor in found.items()}


def _too_large(path: Path, name: str, tensor: Tensor, size: int) -> LorakitError:
    return CorruptFileError(
        f"{name!r} claims shape {tuple(tensor.shape)} in a file of {size} bytes",
        path=path,
        expected="as many numbers as are stored",
        remedy="save it again with torch.save",
    )


def _dtype_name(dtype: torch.dtype) -> str:
    names = FLOAT_NAMES | {fp8: name for name, fp8 in FP8_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def _reason(error: Exception) -> str:
    """Return why torch refused, without its advice on how to switch the protection off."""
    advice = ("Weights only load failed", "In PyTorch", "Check the documentation", "(1)", "(2)", "Please file")
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(advice)]
    return lines[0].removeprefix("WeightsUnpickler error: ")[:200] if lines else type(error).__name__
