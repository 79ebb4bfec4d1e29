"""Writing adapters: choosing the format, and making the output appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from .._execution import one_thread
from ..adapters import Adapter
from ..exceptions import LorakitError, OutputError, Setting
from ..files import atomic as _atomic
from ..files.safetensors import FLOAT_DTYPES, close_files
from ._given import refuse
from .convert import convert_adapter
from .formats.about import About
from .formats.codec import Codec, Location, ReadOptions, WriteOptions
from .formats.registry import about, codec

__all__ = ["check_output", "save_adapter"]


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    layout: Literal["portable", "compact"] | None = None,
    pad_to: int | Literal["server"] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter, completely or not at all.

    The same adapter always gives the same bytes. Only one module is in memory at a time.

    Parameters
    ----------
    adapter : Adapter
        Read from files, merged or made in memory.
    path : str or PathLike
        Where to write: a directory for PEFT and MLX, a ``.safetensors`` file for the other formats. Missing parent
        directories are created.
    format : {'peft', 'kohya', 'diffusers', 'comfyui', 'mlx', 'bare', 'xlabs', 'control_lora'}, optional
        Format of the output. Defaults to the adapter's own, ``adapter.provenance.format``, which is 'peft' for an
        adapter made in memory. For another format, modules are renamed as :func:`~lorakit.convert_adapter` does.
    layout : {'portable', 'compact'}, optional
        'portable': all modules are padded with zeros to one rank, with ``lora_alpha = r``; every reader handles this
        correctly. 'compact': each module keeps its own rank, in PEFT by ``rank_pattern`` and ``alpha_pattern``. The
        file is smaller when ranks differ, and exact in PEFT; servers that ignore these patterns compute a wrong update
        without an error. Defaults to 'compact' for kohya, whose readers take each module's rank from its tensors, and
        to 'portable' for the other formats.
    pad_to : int or 'server', optional
        Rank to pad to in the portable layout: a number, or 'server' for the next rank that vLLM accepts as its largest
        (1, 8, 16, 32, 64, 128, 256, 320, 512). The update does not change. Defaults to the largest rank of a module.
    dtype : torch.dtype, optional
        Dtype of the file: float64, float32, bfloat16 or float16. Defaults to ``adapter.dtype``.
    overwrite : bool, default=False
        Replace an existing adapter. A directory that contains other files is never replaced.

    Returns
    -------
    Path
        What was made.

    Raises
    ------
    OutputError
        If the output exists, is a link or a device, the disk is full, or a value does not fit ``dtype``. What was at
        ``path`` before is then still there, and nothing else is.
    ValueError
        If ``format``, ``layout``, ``pad_to`` or ``dtype`` is not one of those above.

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
    if not isinstance(adapter, Adapter):
        refuse(adapter, "save_adapter")
    known = codec(adapter.provenance.format if format is None else format, written=True)
    options = WriteOptions(
        chosen_layout(known.about.name, layout), _dtype(adapter.dtype if dtype is None else dtype), _rank(pad_to)
    )
    output = Path(path)
    check_output(output, format=known.about.name, overwrite=overwrite)
    if not adapter:
        raise OutputError(
            f"adapter {adapter.name!r} has no modules",
            path=output,
            expected="at least one",
        )
    _check_holds(output, known.about, adapter)
    if adapter.provenance.format != known.about.name:
        adapter = convert_adapter(adapter, known.about.name)
    target = Path(os.path.realpath(output))
    if known.about.directory:
        replaced = _atomic.replaced_directory(target, overwrite=overwrite, own_files=frozenset(known.about.files))
    else:
        replaced = _atomic.replaced_file(target, overwrite=overwrite)
    # One thread: the work on one module takes less time than starting several threads
    with replaced as new, one_thread():
        assert known.write is not None  # codec(..., written=True) gives no others
        known.write(adapter, new, options)
        _check_readable(new, output, known, adapter)
    return output


def check_output(path: str | os.PathLike[str], *, format: str = "peft", overwrite: bool = False) -> None:
    """Refuse an output that :func:`save_adapter` would refuse, before any work is done.

    Parameters
    ----------
    path : str or PathLike
        Where the adapter is to be written.
    format : str, default='peft'
        As in :func:`save_adapter`.
    overwrite : bool, default=False
        Whether an existing adapter may be replaced.

    Raises
    ------
    OutputError
        If the output may not be replaced, or cannot be written there.

    Examples
    --------
    >>> from lorakit.io import check_output
    >>> check_output("merged")
    """
    output = Path(path)
    known = about(format, written=True)
    if known.directory:
        if output.suffix == ".safetensors" and not output.is_dir():
            raise OutputError(
                f"is the name of a file, and {format} is a directory",
                path=output,
                remedy="give the directory's name",
            )
        _atomic.check_directory(output, overwrite=overwrite, own_files=frozenset(known.files))
    else:
        if output.suffix != known.suffix:
            raise OutputError(
                f"has no .safetensors at its end, and {format} is one such file",
                path=output,
                remedy="give the file's name, or another format",
            )
        _atomic.check_file(output, overwrite=overwrite)


def _check_readable(new: Path, output: Path, known: Codec, adapter: Adapter) -> None:
    """Raise OutputError if lorakit could not read what was made, before it replaces anything."""
    weights = new / known.about.weights[0] if known.about.directory else new
    try:
        opened = known.open(
            Location(new), weights, ReadOptions(known.about.name, modules_to_save="first", differences="keep")
        )
    except LorakitError as error:
        seen = str(error).replace(str(new), str(output))
        raise OutputError(f"nothing was written, as it could not be read again: {seen}", path=output) from error
    finally:
        close_files()  # the new file is still to be renamed
    lost = next((module for module in adapter if module not in opened.modules.infos), None)
    if lost is None and adapter.differences is not None:
        again = {} if opened.provenance.differences is None else opened.provenance.differences.infos
        lost = next((name for name in adapter.differences.infos if name not in again), None)
    if lost is not None:
        raise OutputError(
            f"nothing was written, as module {lost!r} would not be read from a {known.about.name} file",
            path=output,
            module=lost,
            remedy="rename it with adapter.rename_modules, or write another format",
        )


def _check_holds(output: Path, known: About, adapter: Adapter) -> None:
    """Raise OutputError if the adapter has something that the format has no place for."""
    expert = next((module for module, info in adapter.infos.items() if info.kind.name == "expert"), None)
    extra_weights = adapter.provenance.extra_weights
    if expert is not None and not known.experts:
        raise OutputError(
            f"module {expert!r} is an expert of a parameter that holds several, which a {known.name} file cannot say",
            path=output,
            module=expert,
            remedy="write it as peft, or leave the experts out with Adapter.select",
        )
    if adapter.differences is not None and not known.differences:
        raise OutputError(
            f"the adapter also adds to {', '.join(map(repr, list(adapter.differences.infos)[:3]))}, parameters without "
            f"factors, which a {known.name} file has no place for",
            path=output,
            remedy=["write it as kohya or comfyui, or ", Setting("differences", "drop"), " when the inputs are read"],
        )
    if extra_weights is not None and not known.extra_weights:
        raise OutputError(
            f"the adapter carries {', '.join(extra_weights.names[:3])} beside its factors, which a "
            f"{known.name} file has no place for",
            path=output,
            remedy=["write it as peft, or ", Setting("modules_to_save", "drop"), " when the inputs are read"],
        )


def chosen_layout(format: str, layout: str | None) -> str:
    """Return the layout, or the format's first if there is none."""
    layouts = about(format, written=True).layouts
    if layout is not None and layout not in layouts:
        raise ValueError(f"layout must be {' or '.join(map(repr, layouts))} for {format}, got {layout!r}")
    return layouts[0] if layout is None else layout


def _dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in FLOAT_DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOAT_DTYPES.values()))}, got {dtype!r}")
    return dtype


def _rank(pad_to: int | Literal["server"] | None) -> int | Literal["server"] | None:
    if pad_to is not None and pad_to != "server" and (not isinstance(pad_to, int) or pad_to < 1):
        raise ValueError(f"pad_to must be a rank of 1 or more, or 'server', got {pad_to!r}")
    return pad_to
