"""How an adapter lies in a kohya file: names, shapes and order of the tensors, the training metadata, its hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ....adapters import Adapter
from ....exceptions import OutputError
from ....factors import promoted_dtype
from ....files.safetensors import FLOAT_DTYPES, FLOAT_NAMES, TensorInfo
from .._differences import written_differences
from .._padding import plain_factors, plain_infos
from .._pairs import kept_metadata
from .keys import ALPHA, DOWN, UP, network_args
from .uniting import united

MODEL_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
_HASH_LENGTHS = {MODEL_HASH: 64, LEGACY_HASH: 8}
_LEGACY_BEGIN, _LEGACY_END = 0x100000, 0x110000  # the part of a file that the first web UIs told models by


def common_alpha(ranks: Mapping[str, int]) -> int:
    """Return the one alpha that all modules are written with: the rank that most of them have.

    Each could have its own, its rank, with factors as they are. But where alphas differ, diffusers (0.42.1) takes some
    modules with the alpha of others: linear layers of attention in the UNet, and of text encoders.
    """
    counts = Counter(ranks.values())
    return max(counts, key=lambda rank: (counts[rank], rank))


def metadata_of(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, str]:
    """Return the metadata to write, with placeholders for the hashes."""
    said = adapter.provenance.source_metadata
    texts = kept_metadata(united(said) if said else adapter.provenance.metadata)
    args = network_args(texts)
    kernels = {module for module, info in adapter.infos.items() if set(info.kind.kernel) - {1}}
    dims = [rank for module, rank in ranks.items() if module not in kernels]
    if kernels and dims and "conv_dim" in args:  # then network_dim is for the others
        args |= {"conv_dim": _common([ranks[module] for module in kernels]), "conv_alpha": str(common_alpha(ranks))}
    else:
        dims = list(ranks.values())
        for name in ("conv_dim", "conv_alpha"):
            args.pop(name, None)
    args.pop("split_qkv", None)  # what is written has no zeros to rely on
    if "ss_network_args" in texts:
        texts["ss_network_args"] = json.dumps(args)
    texts |= {"ss_network_dim": _common(dims), "ss_network_alpha": str(common_alpha(ranks))}
    base = adapter.provenance.base_model
    if base and not {"ss_base_model_version", "ss_sd_model_name"} & set(texts):
        texts["ss_sd_model_name"] = base
    return texts | {key: "0" * length for key, length in _HASH_LENGTHS.items()}


def tensor_infos(adapter: Adapter, ranks: Mapping[str, int], dtype: torch.dtype) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor in the order of safetensors: wide dtypes first, then by name.

    The order matters: ``sshs_model_hash`` is of the tensors as safetensors would order them.

    Raises
    ------
    OutputError
        If the file cannot hold a module.
    """
    infos: dict[str, TensorInfo] = {}
    for module, info in adapter.infos.items():
        if info.kind.name not in ("linear", "conv"):
            raise OutputError(
                f"module {module!r} is an {info.kind.name}, and a kohya file holds linear layers and convolutions",
                adapters=[adapter.name],
                module=module,
                remedy="leave it out, or write the adapter as peft",
            )
        if "." in module:
            raise _dotted(adapter, module)
        for part, stored in zip((DOWN, UP), plain_infos(info, ranks[module], dtype), strict=True):
            infos[f"{module}.{part}"] = stored
        infos[f"{module}.{ALPHA}"] = TensorInfo(FLOAT_NAMES[torch.float32], ())
    for key, (shape, _) in written_differences(adapter, dtype).items():
        if "." in key.rpartition(".")[0]:
            raise _dotted(adapter, key.rpartition(".")[0])
        infos[key] = TensorInfo(FLOAT_NAMES[dtype], shape)
    return dict(sorted(infos.items(), key=lambda item: (-FLOAT_DTYPES[item[1].dtype].itemsize, item[0])))


def _dotted(adapter: Adapter, module: str) -> OutputError:
    return OutputError(
        f"module {module!r} has a dot in its name, and kohya's are flat, such as "
        "'lora_unet_mid_block_attentions_0_proj_in'",
        adapters=[adapter.name],
        module=module,
        remedy="rename it with adapter.rename_modules",
    )


def tensors(
    adapter: Adapter, ranks: Mapping[str, int], dtype: torch.dtype, infos: Mapping[str, TensorInfo]
) -> Iterator[Tensor]:
    """Read, pad, cast and check the tensors, in the order of ``infos``, one module in memory at a time."""
    alpha = common_alpha(ranks)
    waiting: dict[str, Tensor] = {}
    whole = written_differences(adapter, dtype)
    for key in infos:
        if key in whole:
            yield whole[key][1]()
            continue
        module, _, part = key.partition(".")
        if part == ALPHA:
            yield torch.tensor(float(alpha))
            continue
        if key not in waiting:
            rank = ranks[module]
            scaled = adapter
            if rank != alpha:  # readers multiply by alpha / rank
                factors = adapter[module]
                factors = factors.to(promoted_dtype((torch.float32, factors.dtype))).scaled(rank / alpha)
                scaled = Adapter({module: factors}, name=adapter.name, kinds={module: adapter.infos[module].kind})
            stored = plain_factors(scaled, module, rank, dtype)
            waiting = dict(zip((f"{module}.{DOWN}", f"{module}.{UP}"), stored, strict=True))
        yield waiting.pop(key)


def write_hashes(file: Path) -> None:
    """Replace the placeholders in the header of a file by its hashes, as sd-scripts computes them.

    ``sshs_model_hash`` is of the tensors' bytes alone. ``sshs_legacy_hash`` is of 64 KiB that lie 1 MiB from the start
    of the file as it would be with no metadata but the ``ss_`` ones, because those never change.
    """
    model, legacy = hashlib.sha256(), hashlib.sha256()
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length)
        head = _head_of_training_metadata(raw)
        legacy.update(head[_LEGACY_BEGIN:_LEGACY_END])
        position = len(head)
        while chunk := stream.read(1 << 20):
            model.update(chunk)
            legacy.update(chunk[max(_LEGACY_BEGIN - position, 0) : max(_LEGACY_END - position, 0)])
            position += len(chunk)
        for key, digest in ((MODEL_HASH, model.hexdigest()), (LEGACY_HASH, legacy.hexdigest()[:8])):
            placeholder = f'"{key}":"{"0" * len(digest)}"'.encode()
            raw = raw.replace(placeholder, f'"{key}":"{digest}"'.encode(), 1)
        stream.seek(8)
        stream.write(raw)


def _head_of_training_metadata(raw: bytes) -> bytes:
    header = json.loads(raw)
    header["__metadata__"] = {k: text for k, text in header["__metadata__"].items() if k.startswith("ss_")}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _common(ranks: list[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else "Dynamic"
