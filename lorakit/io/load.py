"""Opening adapters: finding the format, and naming them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from ..adapter_set import AdapterSet
from ..adapters import Adapter, Source
from ..exceptions import UnsafeFileError, UnsupportedAdapterError
from ._checks import HOW_TO_CONVERT, require_path, stamp
from ._codec import Location, Opened, ReadOptions, by_name
from ._formats import CODECS

__all__ = ["load_adapter", "load_adapters"]

_EXPECTED = "adapter_model.safetensors and adapter_config.json"
_ALWAYS_NAMED_SO = ("adapter_model.safetensors", "adapters.safetensors", "pytorch_lora_weights.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_adapter(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    format: str | None = None,
    modules_to_save: Literal["refuse", "drop"] = "refuse",
    assume_alpha: float | None = None,
) -> Adapter:
    """Open a LoRA adapter.

    Only its config and the header of its weights are read and checked now; the weights of a module are read when it is
    asked for. The scale ``lora_alpha / r`` is folded into both factors, in float32 or better.

    Parameters
    ----------
    path : str or PathLike
        A PEFT directory, or the safetensors file in it.
    name : str, optional
        Defaults to the name of the directory, or of the file without its suffix.
    format : {'peft'}, optional
        The format of the files. Defaults to what their content shows.
    modules_to_save : {'refuse', 'drop'}, default='refuse'
        What to do with weights that were trained beside the LoRA factors: whole modules such as a classification head,
        single tokens, a resized embedding. 'drop' leaves them out and warns: the adapter alone then does not do what
        was trained.
    assume_alpha : float, optional
        ``lora_alpha`` where the files do not give it. Ignored where they do.

    Returns
    -------
    Adapter
        Lazy. It pickles as its path, and raises if its files have changed since it was opened.

    Raises
    ------
    FileNotFoundError
        If ``path`` does not exist.
    CorruptFileError
        If a file is damaged or contradicts itself.
    UnsafeFileError
        If a file is a pickle, or no regular file.
    UnsupportedAdapterError
        If it is something else than plain LoRA.

    Examples
    --------
    >>> import tempfile
    >>> from lorakit import load_adapter, save_adapter
    >>> from lorakit.testing import make_adapters
    >>> task = make_adapters(n_adapters=1, ranks=(4,), random_state=0)[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adapter = load_adapter(save_adapter(task, f"{folder}/task"), name="mine")
    ...     adapter["layer.0"]
    LoraFactors(rank=4, d_in=24, d_out=16, dtype=float32)
    """
    if modules_to_save not in ("refuse", "drop"):
        raise ValueError(f"modules_to_save must be 'refuse' or 'drop', got {modules_to_save!r}")
    location = Path(path)
    opened = open_path(location, ReadOptions(format, modules_to_save, assume_alpha))
    for note in opened.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    named = _parts(location)[-1] if name is None else name
    provenance = replace(opened.provenance, sources=(Source(named, opened.reader.weights),))
    return Adapter.from_reader(opened.reader, name=named, provenance=provenance)


def open_path(path: Path, options: ReadOptions) -> Opened:
    """Find the format of what is at a path, and open it."""
    require_path(path)
    location = Location(path.absolute())  # a worker may have another working directory
    if options.format is not None:
        codec = by_name(CODECS, options.format)
    else:
        codec = next((codec for codec in CODECS if codec.recognises(location)), None) or _raise_unrecognised(path)
    return codec.open(location, options)


def load_adapters(
    paths: Iterable[str | os.PathLike[str]],
    *,
    names: Sequence[str] | None = None,
    format: str | None = None,
    modules_to_save: Literal["refuse", "drop"] = "refuse",
    assume_alpha: float | None = None,
) -> AdapterSet:
    """Open several LoRA adapters as one set, the ``X`` of every estimator.

    Parameters
    ----------
    paths : iterable of str or PathLike
        What :func:`load_adapter` takes.
    names : sequence of str, optional
        One for each path, all different. Defaults to the names of directories or files, with as many
        parent folders as tell them apart.
    format : str, optional
        As in :func:`load_adapter`, for all of them.
    modules_to_save : {'refuse', 'drop'}, default='refuse'
        As in :func:`load_adapter`.
    assume_alpha : float, optional
        As in :func:`load_adapter`.

    Returns
    -------
    AdapterSet
        In the order of ``paths``.

    Raises
    ------
    FileNotFoundError, LorakitError
        As :func:`load_adapter` does.
    ValueError
        If ``names`` are not as many as ``paths``, or not all different.

    Examples
    --------
    >>> import tempfile
    >>> from lorakit import load_adapters, save_adapter
    >>> from lorakit.testing import make_adapters
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [save_adapter(task, f"{folder}/{task.name}") for task in make_adapters(n_adapters=2, ranks=(4, 8))]
    ...     load_adapters(paths)
    AdapterSet(['task0' r=4, 'task1' r=8], modules=2, dtype=float32)
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = (paths,)
    locations = [Path(path) for path in paths]
    chosen = distinct_names(locations) if names is None else list(names)
    if len(chosen) != len(locations) or len(set(chosen)) != len(chosen):
        raise ValueError(f"names must be {len(locations)} different names, one for each path; got {chosen}")
    return AdapterSet(
        load_adapter(path, name=name, format=format, modules_to_save=modules_to_save, assume_alpha=assume_alpha)
        for path, name in zip(locations, chosen, strict=True)
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name adapters by the last part of their paths, and by as many parts as needed where several share it.

    Examples
    --------
    >>> distinct_names([Path("runs/a/last"), Path("runs/b/last"), Path("runs/c")])
    ['a/last', 'b/last', 'c']
    """
    parts = [_parts(path) for path in paths]
    distinct = set(parts)

    def shortest(part: tuple[str, ...]) -> str:
        tails = (part[-depth:] for depth in range(1, len(part)))
        alone = (tail for tail in tails if sum(other[-len(tail) :] == tail for other in distinct) == 1)
        return "/".join(next(alone, part))

    names = [shortest(part) for part in parts]
    # What still shares a name is one path given twice.
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(names, counts, strict=True)]


def _parts(path: Path) -> tuple[str, ...]:
    folder = path
    if path.is_file():  # a file that is always named so says nothing, its directory does
        folder = path.parent if path.name in _ALWAYS_NAMED_SO else path.with_suffix("")
    absolute = folder.resolve() if ".." in folder.parts or not folder.name else folder.absolute()
    return absolute.parts


def _raise_unrecognised(path: Path) -> NoReturn:
    if not path.is_dir():
        stamp(path)
        if path.suffix in _PICKLES:
            raise UnsafeFileError(f"{path}: weights are a pickle; {HOW_TO_CONVERT}")
        raise UnsupportedAdapterError(
            f"{path}: is no adapter; expected a directory with {_EXPECTED}, or the safetensors file in it"
        )
    present = sorted(entry.name for entry in path.iterdir())
    pickled = [file for file in present if file == "adapter_model.bin"]
    if pickled:
        raise UnsafeFileError(f"{path}: its weights, {pickled[0]}, are a pickle; {HOW_TO_CONVERT}")
    candidates = [file for file in present if file.endswith(".safetensors")]
    if candidates:
        raise UnsupportedAdapterError(
            f"{path}: has no adapter_model.safetensors, but {', '.join(candidates)}; pick one and pass its path"
        )
    inside = [file for file in present if (path / file / "adapter_model.safetensors").is_file()]
    hint = f"adapters are in {', '.join(inside[:5])}" if inside else f"it has {', '.join(present[:5]) or 'nothing'}"
    raise UnsupportedAdapterError(f"{path}: holds no adapter; expected {_EXPECTED}; {hint}")
