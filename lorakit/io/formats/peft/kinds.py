"""Modules of other kinds than plain LoRA in PEFT's directories: LoHa, LoKr, AdaLoRA, VeRA and MiSS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ....exceptions import CorruptFileError, UnsupportedAdapterError
from ....files.safetensors import TensorInfo
from .._modules import Stored
from ..codec import ReadOptions
from ..kinds.adalora import ADALORA
from ..kinds.loha import LOHA
from ..kinds.lokr import LOKR
from ..kinds.miss import BONE, MISS
from ..kinds.reading import Found, open_module, split_kinds
from ..kinds.vera import VERA
from .config import PeftConfig
from .keys import PREFIX
from .sized import read_miss, read_vera

_KINDS = {"LOHA": LOHA, "LOKR": LOKR, "ADALORA": ADALORA, "VERA": VERA, "MISS": MISS, "BONE": BONE}


def read_kinds(
    path: Path, header: Mapping[str, TensorInfo], config: PeftConfig, options: ReadOptions
) -> tuple[dict[str, Stored], dict[str, TensorInfo]]:
    """Find and check the modules of the kind that the config names.

    Parameters
    ----------
    path : Path
        The weights.
    header : mapping of str to TensorInfo
        Their tensors.
    config : PeftConfig
        The config.
    options : ReadOptions
        What the user chose.

    Returns
    -------
    stored : dict of str to Stored
        The modules, in the order of the file; none for plain LoRA.
    rest : dict of str to TensorInfo
        The other tensors.

    Raises
    ------
    CorruptFileError
        If tensors are missing or do not fit one another or the config.
    UnsupportedAdapterError
        If the rank that divides alpha is not known, or AdaLoRA kept no rank of any module.
    """
    if config.peft_type not in _KINDS:
        return {}, dict(header)
    kind = _KINDS[config.peft_type]
    modules, rest = split_kinds(header, (kind,))
    if not modules:
        raise CorruptFileError(
            f"holds no tensors of {kind.name}, which the config names: its first keys are {list(header)[:3]}",
            path=path,
            remedy="correct peft_type, or copy the matching file",
        )
    if kind is ADALORA:
        kept = {module: keys for module, keys in modules.items() if not _is_cut_away(keys, header)}
        if modules and not kept:
            raise UnsupportedAdapterError(
                "AdaLoRA kept no rank of any module, so there is no update",
                path=path,
                remedy="leave the adapter out, or train it with a larger target_r",
            )
        modules = kept
    found: dict[str, Found] = {}
    divisors: dict[str, int] = {}
    for key, keys in modules.items():
        module = key.removeprefix(PREFIX)
        if module in found:
            raise CorruptFileError(
                f"has it twice, with and without {PREFIX!r}", path=path, module=module, remedy="remove one of the two"
            )
        found[module] = open_module(path, module, keys, header, (kind,))
        divisor = found[module].factored.divisor
        if divisor is None:
            divisor = config.rank(module)  # PEFT divides alpha by it whether or not a tensor has that rank
            if divisor is None:
                raise UnsupportedAdapterError(
                    "has no r, by which PEFT divides alpha", path=config.path, remedy="add the value used in training"
                )
        config.check_rank(path, module, divisor)
        divisors[module] = divisor
    if kind is VERA:
        return read_vera(path, found, rest, config, options)
    if kind in (MISS, BONE):
        return read_miss(path, found, config, options), rest
    return {module: one.stored(config.scale(module, divisors[module])) for module, one in found.items()}, rest


def _is_cut_away(keys: Mapping[str, str], header: Mapping[str, TensorInfo]) -> bool:
    """Whether training kept no rank of a module: its tensors are empty, and its update is zero."""
    shapes = [header[key].shape for key in keys.values()]
    return len(shapes) == len(ADALORA.parts) and all(0 in shape for shape in shapes)
