"""The PEFT directory: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from .._execution import one_thread
from ..adapters import Adapter, Provenance
from ..exceptions import OutputError
from ._atomic import check_output, replaced_directory
from ._card import model_card
from ._codec import Codec, Opened, ReadOptions
from ._peft_reader import PeftReader
from ._peft_writer import config_text, tensor_shapes, tensors, written_ranks
from ._safetensors import FLOAT_DTYPES, write_tensors

__all__ = ["CODEC", "save_adapter"]

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


def _weights_file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _recognises(path: Path) -> bool:
    return _weights_file(path).suffix == ".safetensors" and _weights_file(path).exists()


def _open(path: Path, options: ReadOptions) -> Opened:
    weights = _weights_file(path).absolute()  # a worker may have another working directory
    reader = PeftReader(weights, options)
    config = reader.config
    notes = []
    if reader.dropped:
        notes.append(f"{weights}: left out, because of modules_to_save='drop': {', '.join(reader.dropped)}")
    if config.unknown:
        notes.append(
            f"{config.path}: sets {', '.join(config.unknown)}, which this version of lorakit does not know; if that "
            "changes how B @ A acts, what is made of it is wrong"
        )
    provenance = Provenance(
        format="peft",
        base_model=config.base_model,
        task_type=config.task_type,
        fan_in_fan_out=config.fan_in_fan_out,
    )
    return Opened(reader, weights, provenance, tuple(notes))


CODEC = Codec(_recognises, _open)


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    layout: Literal["portable", "compact"] = "portable",
    pad_to: int | Literal["server"] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as a PEFT directory, whole or not at all.

    The same adapter always gives the same bytes. One module is in memory at a time.

    Parameters
    ----------
    adapter : Adapter
        Read from files, merged or made in memory.
    path : str or PathLike
        The directory to make. Missing parents are made too.
    layout : {'portable', 'compact'}, default='portable'
        'portable': all modules padded with zeros to one rank, ``lora_alpha = r``; every reader of PEFT files gets it
        right. 'compact': each module with its own rank, in ``rank_pattern`` and ``alpha_pattern``; smaller when ranks
        differ, exact in PEFT, silently wrong in servers that ignore patterns.
    pad_to : int or 'server', optional
        In the portable layout, the rank to pad to: a number, or the next one that vLLM takes as its largest rank (1,
        8, 16, 32, 64, 128, 256, 320, 512). The update stays the same. Defaults to the largest rank of a module.
    dtype : torch.dtype, optional
        Of the file: float64, float32, bfloat16 or float16. Defaults to ``adapter.dtype``.
    overwrite : bool, default=False
        Replace an adapter that is there. A directory that contains other files is never replaced.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    OutputError
        If the output exists, is a link or a device, the disk is full, or a value does not fit ``dtype``. What was at
        ``path`` before is then still there, and nothing else is.
    ValueError
        If ``layout``, ``pad_to`` or ``dtype`` is not one of those above.

    Examples
    --------
    >>> import tempfile
    >>> from lorakit import load_adapter, save_adapter
    >>> from lorakit.testing import make_adapters
    >>> adapter = make_adapters(n_adapters=1, ranks=(4,), random_state=0)[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_adapter(adapter, f"{folder}/merged")
    ...     load_adapter(path)
    Adapter('merged', modules=2, rank=4, dtype=float32)
    """
    if layout not in ("portable", "compact"):
        raise ValueError(f"layout must be 'portable' or 'compact', got {layout!r}")
    stored = adapter.dtype if dtype is None else dtype
    if stored not in FLOAT_DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOAT_DTYPES.values()))}, got {stored!r}")
    if pad_to is not None and pad_to != "server" and (not isinstance(pad_to, int) or pad_to < 1):
        raise ValueError(f"pad_to must be a rank of 1 or more, or 'server', got {pad_to!r}")
    folder = Path(path)
    check_output(folder, overwrite=overwrite, own_files=frozenset((WEIGHTS, CONFIG, CARD)))
    if not adapter:
        raise OutputError(f"{folder}: adapter {adapter.name!r} has no modules; expected at least one")
    ranks = written_ranks(adapter, layout, pad_to)
    # one thread: what is done to a module is too small to be worth the start of several
    with replaced_directory(folder.resolve()) as new, one_thread():
        write_tensors(new / WEIGHTS, tensor_shapes(adapter, ranks), stored, tensors(adapter, ranks, stored))
        (new / CONFIG).write_text(config_text(adapter, ranks), encoding="utf-8", newline="\n")
        card = model_card(adapter, layout=layout, rank=max(ranks.values()), dtype=stored)
        (new / CARD).write_text(card, encoding="utf-8", newline="\n")
    return folder
