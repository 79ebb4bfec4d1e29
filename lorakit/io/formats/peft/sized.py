"""Kinds whose files do not hold the inputs' width of a module, VeRA and MiSS: the base model gives it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ....adapters import ModuleInfo
from ....exceptions import CorruptFileError, IncompatibleAdaptersError, UnsupportedAdapterError
from ....files.json_text import shown
from ....files.safetensors import TensorInfo
from .._bases import BaseWeights, open_base
from .._elsewhere import Elsewhere
from .._factors import check_factors
from .._modules import Stored
from ..codec import ReadOptions
from ..kinds.miss import of_blocks, repeated
from ..kinds.reading import Found
from ..kinds.vera import SHARED, Drawn, scaled
from .config import PeftConfig

_SHARED_KEY = re.compile(r"(?:base_model\.)?(vera_[AB])(?:\.[^.]+)?")
_NO_WIDTH = "its files do not say how wide the inputs of its modules are"


def read_vera(
    path: Path, found: Mapping[str, Found], rest: Mapping[str, TensorInfo], config: PeftConfig, options: ReadOptions
) -> tuple[dict[str, Stored], dict[str, TensorInfo]]:
    """Return where the modules of VeRA lie, and the other tensors.

    Raises
    ------
    CorruptFileError
        If a shared matrix is missing or too small.
    UnsupportedAdapterError
        If widths are not known.
    IncompatibleAdaptersError
        If the base has other modules, or wider ones than the shared matrices.
    """
    shared = {match[1]: key for key in rest if (match := _SHARED_KEY.fullmatch(key))}
    others = {key: info for key, info in rest.items() if key not in shared.values()}
    if len(shared) == 1:
        raise CorruptFileError(
            f"has {next(iter(shared.values()))!r} but lacks {(set(SHARED) - set(shared)).pop()}",
            path=path,
            remedy="the file is incomplete, save or download it again",
        )
    if not shared and config.own.get("save_projection", True):
        raise CorruptFileError(
            "lacks the shared matrices vera_A and vera_B, and save_projection in the config says that it has them",
            path=path,
            remedy="the file is incomplete, save or download it again; or set save_projection to false if they were "
            "left out",
        )
    if shared:
        keys = tuple(shared[name] for name in SHARED)
        check_factors(f"{path}: the shared matrices", keys, rest)
        shape_a, shape_b = (rest[key].shape for key in keys)
        if len(found) == 1 and options.base is None:  # of several modules the widest has the width of vera_A
            widths = {next(iter(found)): shape_a[-1]}
        else:
            widths = _widths(path, found, options, config)
        drawn: tuple[Elsewhere, ...] = ()
    else:
        widths = _widths(path, found, options, config)
        drawn, keys = _drawn(config, found, widths), ()
        shape_a, shape_b = (drawn[0].r, drawn[0].d_in), (drawn[0].d_out, drawn[0].r)
    stored = {}
    for module, one in found.items():
        rank, _, d_out, _ = one.factored.info
        if shape_a[:1] + shape_b[1:] != (rank, rank) or len(shape_b) != 2 or shape_b[0] < d_out:
            raise CorruptFileError(
                f"vera_A {shape_a}, vera_B {shape_b}, vera_lambda_b ({d_out},) and vera_lambda_d ({rank},)",
                path=path,
                module=module,
                expected="(r, in or more), (out or more, r), (out,) and (r,)",
                remedy="save or download the file again",
            )
        if shape_a[1] < widths[module]:
            raise IncompatibleAdaptersError(
                f"has {widths[module]} inputs in the base, and vera_A has {shape_a[1]}",
                path=path,
                module=module,
                expected="no more",
                remedy="is it the base model that the adapter was trained on?",
            )
        info = ModuleInfo(rank, widths[module], d_out)
        stored[module] = Stored(
            (*one.keys, *keys), info, 1.0, scaled, (widths[module],), kind=one.kind.name, others=drawn
        )
    return stored, others


def read_miss(path: Path, found: Mapping[str, Found], config: PeftConfig, options: ReadOptions) -> dict[str, Stored]:
    """Return where the modules of MiSS lie.

    Raises
    ------
    UnsupportedAdapterError
        If no base is given.
    IncompatibleAdaptersError
        If the base has other modules, or modules of other widths.
    """
    base = _base(path, found, options)
    form = config.own.get("init_weights", True)
    mini = config.own.get("mini_r", 1) if form == "mini" else None
    stored = {}
    for module, one in found.items():
        d_out, d_in = _matrix(path, base, module)
        r, _, part, _ = one.factored.info
        blocks = one.factored.form is of_blocks
        if blocks != (form == "bat"):
            raise CorruptFileError(
                f"{one.keys[0]!r} {'has' if blocks else 'lacks'} a third axis, and init_weights is {shown(form)}",
                path=path,
                module=module,
                expected="three axes for 'bat', and two for the others",
                remedy="correct init_weights, or copy the matching file",
            )
        whole = part == d_out if mini is None else (part == mini and d_out % part == 0)
        tiles = not blocks or not (d_in % r or d_out % r)
        if not whole or not tiles or (r > d_in):
            raise IncompatibleAdaptersError(
                f"{one.keys[0]!r} has {r} inputs and {part} outputs, and the module has {d_in} and {d_out} in the base",
                path=path,
                module=module,
                expected="blocks that make up the module"
                + (f" (init_weights={shown(form)}, mini_r={mini})" if mini else ""),
                remedy="is it the base model that the adapter was trained on?",
            )
        if blocks:
            info = ModuleInfo(min(d_in, d_out), d_in, d_out)
            stored[module] = Stored(one.keys, info, 1.0, of_blocks, kind=one.kind.name, others=(base.weight(module),))
        else:
            info = ModuleInfo(r, d_in, d_out)
            stored[module] = Stored(one.keys, info, 1.0, repeated, (d_in, d_out), kind=one.kind.name)
    return stored


def _base(path: Path, found: Mapping[str, Found], options: ReadOptions) -> BaseWeights:
    kind = next(iter(found.values())).kind.name
    linear = dict.fromkeys(found, "linear")
    return open_base(options, path, linear, format="peft", metadata={}, why=f"is a {kind}: {_NO_WIDTH}")


def _widths(path: Path, found: Mapping[str, Found], options: ReadOptions, config: PeftConfig) -> dict[str, int]:
    """Return the inputs' width of every module. GPT-2 stores its weights as (in, out)."""
    base = _base(path, found, options)
    widths = {}
    for module, one in found.items():
        shape, d_out = _matrix(path, base, module), one.factored.info.d_out
        straight = shape[::-1] if config.fan_in_fan_out else shape
        if d_out not in shape:
            raise IncompatibleAdaptersError(
                f"has {d_out} outputs, and the weight of the base has the shape {shape}",
                path=path,
                module=module,
                remedy="is it the base model that the adapter was trained on?",
            )
        widths[module] = straight[1] if straight[0] == d_out else straight[0]
    return widths


def _matrix(path: Path, base: BaseWeights, module: str) -> tuple[int, int]:
    shape = base.shape(module)
    if len(shape) != 2:
        raise IncompatibleAdaptersError(
            f"the weight of the base has the shape {shape}",
            path=path,
            module=module,
            expected="a linear layer",
            remedy="is it the base model that the adapter was trained on?",
        )
    return shape[0], shape[1]


def _drawn(config: PeftConfig, found: Mapping[str, Found], widths: Mapping[str, int]) -> tuple[Drawn, Drawn]:
    """Return the shared matrices, which PEFT draws at the largest widths of all modules."""
    seed = config.own.get("projection_prng_key")
    if type(seed) is not int or not -(1 << 63) <= seed < 1 << 63 or config.r is None:
        raise UnsupportedAdapterError(
            f"projection_prng_key is {shown(seed)} and r is {config.r}, from which the shared matrices are drawn again",
            path=config.path,
            expected="whole numbers",
            remedy="add the values used in training",
        )
    d_out = max(one.factored.info.d_out for one in found.values())
    first, second = (Drawn(name, seed, config.r, max(widths.values()), d_out) for name in SHARED)
    return first, second
