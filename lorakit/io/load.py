"""Opening adapters: finding the format, and naming them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from .._base_models import differing_bases
from .._nearest import nearest
from ..adapter_set import AdapterSet
from ..adapters import Adapter, Source
from ..exceptions import IncompatibleAdaptersError, LorakitWarning, Setting, Words
from ..files._scratch import half_replaced
from ..files.checks import require_path
from .align import named_alike
from .beside import base_used, initial_used
from .formats.codec import ReadOptions
from .formats.registry import abouts, codecs
from .hub import fetch, hub_id
from .names.component import COMPONENTS
from .opening import file_reader, open_path

__all__ = ["load_adapter", "load_adapters"]


def load_adapter(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    format: str | None = None,
    modules_to_save: Literal["refuse", "drop", "first"] = "refuse",
    assume_alpha: float | None = None,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    initial: str | os.PathLike[str] | None = None,
    differences: Literal["refuse", "keep", "drop"] = "refuse",
) -> Adapter:
    """Open a LoRA adapter.

    Only its config and the header of its weights are read and checked now; the weights of a module are read when it is
    asked for. The scale ``lora_alpha / r`` is folded into both factors, in float32 or better.

    Parameters
    ----------
    path : str or PathLike
        The directory or the single safetensors file of an adapter, in any of the formats below; for a directory, the
        file with its weights will do. A text that is no such path may name an adapter on the Hugging
        Face Hub, ``org/name`` or ``hf://org/name[@revision][/folder]``, if huggingface_hub is installed (``pip install
        'lorakit[hub]'``); its config and weights are then fetched, or found in the cache.
    name : str, optional
        Defaults to the name of the directory, or of the file without its suffix.
    format : {'peft', 'kohya', 'diffusers', 'comfyui', 'mlx', 'bare', 'xlabs', 'control_lora'}, optional
        The format of the files. Defaults to what their content shows.
    modules_to_save : {'refuse', 'drop', 'first'}, default='refuse'
        What to do with extra weights, which were trained beside the LoRA factors: whole modules such as a
        classification head, single tokens, a resized embedding. 'drop' leaves them out: the adapter alone then does not
        do what was trained. 'first' carries them along, and they are written with what is made of the adapter: a merge
        takes those of the first of its adapters that has some, and does not merge them. Both warn.
    assume_alpha : float, optional
        ``lora_alpha`` where the files do not give it. Ignored where they do.
    allow_pickle : bool, default=False
        Read weights that are a pickle, such as ``adapter_model.bin``, where there is no safetensors file. Nothing in it
        is run: what is no tensor is refused. Needs torch 2.10 or later.
    base : str, PathLike or mapping of str to Tensor, optional
        The model that the adapter was trained on: safetensors files, a folder, or a state dict, as :func:`lorakit.bake`
        takes it. Used only where the files do not say all of the update: VeRA and MiSS need the widths of the modules,
        DoRA the weights; PiSSA and OLoRA began with factors of the base weights, which are computed again.
    initial : str or PathLike, optional
        The PEFT directory that was saved before training. Its update is taken away from the adapter's, which gives
        that of PiSSA, OLoRA, CorDA and LoRA-GA on the published base, at twice the rank.
    differences : {'refuse', 'keep', 'drop'}, default='refuse'
        What to do with differences of whole parameters, which have no factors: of biases (``diff_b``, PEFT's
        ``lora_bias``) and of norms (``w_norm``, ``b_norm``). 'keep' holds them in ``adapter.differences``: methods that
        add updates up add them up too, with the same factors, and others refuse the adapter. 'drop' leaves them out
        and warns. Differences of matrices and kernels (``diff``) are updates of their modules, and need no option.

    Returns
    -------
    Adapter
        Lazy. It pickles as its path, and raises if its files have changed since it was opened.

    Raises
    ------
    FileNotFoundError
        If ``path`` does not exist, here or on the Hub, or the Hub cannot be reached.
    CorruptFileError
        If a file is damaged or contradicts itself.
    UnsafeFileError
        If a file is a pickle, or no regular file.
    UnsupportedAdapterError
        If its update is no product of thin factors, or not all that it adds to the base model.

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
    if modules_to_save not in ("refuse", "drop", "first"):
        raise ValueError(f"modules_to_save must be 'refuse', 'drop' or 'first', got {modules_to_save!r}")
    if differences not in ("refuse", "keep", "drop"):
        raise ValueError(f"differences must be 'refuse', 'keep' or 'drop', got {differences!r}")
    location, hub = _fetched(path, allow_pickle)
    options = ReadOptions(
        format,
        modules_to_save,
        assume_alpha,
        allow_pickle,
        _absolute(base),
        None if initial is None else str(Path(initial).absolute()),
        differences,
    )
    opened = open_path(location, options)
    for note in opened.notes:
        parts = (note,) if isinstance(note, str) else note
        warnings.warn(LorakitWarning(*parts), stacklevel=2)
    named = _parts(spoken_path(path))[-1] if name is None else name
    reader = file_reader(location, options, opened.modules)
    said = () if assume_alpha is None else (("assume_alpha", float(assume_alpha)),)
    source = Source(named, reader.weights, reader.config, hub, opened.versions, said)
    if base is not None or initial is not None:
        kinds = opened.provenance.stored_as
        source = replace(source, base=base_used(kinds, options), initial=initial_used(reader.weights, options))
    provenance = replace(opened.provenance, sources=(source,))
    return Adapter.from_reader(reader, name=named, provenance=provenance)


def load_adapters(
    paths: Iterable[str | os.PathLike[str]],
    *,
    names: Sequence[str] | None = None,
    format: str | None = None,
    modules_to_save: Literal["refuse", "drop", "first"] = "refuse",
    assume_alpha: float | None = None,
    allow_pickle: bool = False,
    base: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    initial: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    differences: Literal["refuse", "keep", "drop"] = "refuse",
    same_base: Literal["warn", "strict"] = "warn",
    same_names: bool = True,
    component: str | None = None,
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
    modules_to_save : {'refuse', 'drop', 'first'}, default='refuse'
        As in :func:`load_adapter`.
    assume_alpha : float, optional
        As in :func:`load_adapter`.
    allow_pickle : bool, default=False
        As in :func:`load_adapter`.
    base : str, PathLike or mapping of str to Tensor, optional
        As in :func:`load_adapter`, for those that need it.
    initial : str, PathLike, or mapping of str to them, optional
        As in :func:`load_adapter`: one for all of them, or for some by their names.
    differences : {'refuse', 'keep', 'drop'}, default='refuse'
        As in :func:`load_adapter`.
    same_base : {'warn', 'strict'}, default='warn'
        What to do if they name different base models. 'warn' leaves it to the estimators, which warn when they merge;
        'strict' refuses them here. A name and that of its quantized copy (``-bnb-4bit``) count as the same, as do one
        on the Hub and a local path that ends in it.
    same_names : bool, default=True
        Convert adapters of several formats to the names of one of them, the first's if that can be done exactly, as
        :func:`convert_adapter` does; where some adapt fused experts and others the linear modules of each expert, bring
        all to the layout of the first, as :func:`split_experts` and :func:`join_experts` do. What was done is warned
        of, and is in ``provenance.conversions``. If it cannot be done, they stay as they are, and estimators refuse
        them.
    component : str, optional
        As in :func:`convert_adapter`: the model of a diffusion pipeline to take of adapters that are for several, and
        the one that modules belong to whose names do not say it. One file of diffusers may hold both transformers of
        Wan 2.2, which files of other formats name alike.

    Returns
    -------
    AdapterSet
        In the order of ``paths``.

    Raises
    ------
    FileNotFoundError, LorakitError
        As :func:`load_adapter` does.
    IncompatibleAdaptersError
        With ``same_base='strict'``, if they name different base models.
    UnsupportedAdapterError
        If an adapter is for two transformers of which others can be either, and ``component`` does not say which.
    ValueError
        If ``component`` is none, or ``names`` are not as many as ``paths``, or not all different.

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
    given = list(paths)
    chosen = distinct_names([spoken_path(path) for path in given]) if names is None else list(names)
    if len(chosen) != len(given) or len(set(chosen)) != len(chosen):
        raise ValueError(f"names must be {len(given)} different names, one for each path; got {chosen}")
    if component is not None and component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(map(repr, COMPONENTS))}, got {component!r}")
    if same_base not in ("warn", "strict"):
        raise ValueError(f"same_base must be 'warn' or 'strict', got {same_base!r}")
    began = initial if isinstance(initial, Mapping) else dict.fromkeys(chosen, initial)
    if unknown := [name for name in began if name not in chosen]:
        near = nearest(str(unknown[0]), chosen)
        raise ValueError(f"initial names {', '.join(map(repr, unknown))}{near} The adapters are {', '.join(chosen)}")
    adapters = AdapterSet(
        load_adapter(
            path,
            name=name,
            format=format,
            modules_to_save=modules_to_save,
            assume_alpha=assume_alpha,
            allow_pickle=allow_pickle,
            base=base,
            initial=began.get(name),
            differences=differences,
        )
        for path, name in zip(given, chosen, strict=True)
    )
    bases = differing_bases(adapters) if same_base == "strict" else None
    if bases is not None:
        raise IncompatibleAdaptersError(
            f"the adapters name different base models: {bases}",
            expected="one",
            remedy=[
                "leave out those of another, or ",
                Setting("same_base", "warn"),
                " if these are the same weights under other names",
            ],
        )
    formats = {adapter.provenance.format for adapter in adapters}
    experts = any(info.kind.experts for adapter in adapters for info in adapter.infos.values())
    if component is not None or (same_names and (len(formats) > 1 or experts)):
        alike, said = named_alike(adapters, component)
        adapters = AdapterSet(alike)
        formats = {adapter.provenance.format for adapter in adapters}
        if said is not None:
            warnings.warn(said, UserWarning, stacklevel=2)
    for known in codecs():
        if known.aliases is not None and formats == {known.about.name}:
            _warn_of_aliases(adapters, known.aliases(adapters.module_names))
    return adapters


def _absolute(base: str | os.PathLike[str] | Mapping[str, Tensor] | None) -> str | Mapping[str, Tensor] | None:
    # as a text: a worker may have another working directory, and joblib.hash tells two equal paths apart
    return base if base is None or isinstance(base, Mapping) else str(Path(base).absolute())


def _warn_of_aliases(adapters: AdapterSet, found: tuple[str, str] | None) -> None:
    if found is not None:
        one, other = (f"{name!r} ({next(a.name for a in adapters if name in a)!r})" for name in found)
        warnings.warn(
            LorakitWarning(
                f"{one} and {other} are one module under two names, which a merge would keep apart; bring them to one "
                "name: ",
                Words(
                    "[convert_adapter(adapter, 'diffusers') for adapter in adapters]",
                    "lorakit convert ADAPTER -o OUT --to diffusers, for each",
                ),
            ),
            stacklevel=3,
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


def _fetched(given: str | os.PathLike[str], allow_pickle: bool) -> tuple[Path, str | None]:
    """Return the local path, and the origin on the Hub if it was taken from there."""
    if isinstance(given, Path):  # only a text can name an adapter of the Hub
        return given, None
    local, wanted = Path(given), hub_id(given)
    here = local.exists() or local.is_symlink() or half_replaced(local) is not None
    if wanted is None or (here and not wanted.certain):
        return local, None
    try:
        return fetch(wanted, allow_pickle=allow_pickle)
    except (FileNotFoundError, ConnectionError, ImportError) as error:
        if wanted.certain:
            raise
        try:
            require_path(local)
        except FileNotFoundError as missing:
            raise FileNotFoundError(f"{missing}. Nor is it on the Hugging Face Hub: {error}") from error
        raise


def spoken_path(given: str | os.PathLike[str]) -> Path:
    """Return the path that an adapter is named by: that of its files may be one of the Hub's cache."""
    wanted = None if isinstance(given, Path) else hub_id(given)
    return Path(given) if wanted is None else wanted.named


def _parts(path: Path) -> tuple[str, ...]:
    folder = path
    if path.is_file():  # a file that is always named so says nothing, its directory does
        fixed = {name for known in abouts() for name in (*known.weights, *known.pickles)}
        folder = path.parent if path.name in fixed else path.with_suffix("")
    absolute = folder.resolve() if ".." in folder.parts or not folder.name else folder.absolute()
    return absolute.parts
