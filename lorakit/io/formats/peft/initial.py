"""Adapters that began as a part of the base weights: the difference to what they began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ....exceptions import IncompatibleAdaptersError, Setting, UnsupportedAdapterError
from ....files.checks import require_path
from .._bases import open_base
from .._elsewhere import InFile
from .._modules import FileModules, Stored, plain
from ..codec import Location, ReadOptions
from ..kinds.started import less_initial, less_qr, less_svd
from .about import ABOUT
from .config import PeftConfig


def initial_location(weights: Path, options: ReadOptions) -> tuple[Location, Path] | None:
    """Return where the adapter lies that training began with, and the file with its weights; None if none is given.

    Raises
    ------
    UnsupportedAdapterError
        If there is no PEFT directory.
    IncompatibleAdaptersError
        If it is the adapter itself.
    """
    if options.initial is None:
        return None
    path = Path(options.initial)
    require_path(path)
    location = Location(path.absolute(), options.allow_pickle)
    found = location.weights(ABOUT)
    if found is None:
        raise UnsupportedAdapterError(
            "holds no adapter that training could have begun with", path=path, expected=f"{' or '.join(ABOUT.weights)}"
        )
    if found.resolve() == weights.resolve():
        raise IncompatibleAdaptersError(
            "is the adapter itself",
            path=path,
            expected="the adapter as it was before training",
            remedy="save it before training begins",
        )
    return location, found


def less_given(weights: Path, stored: Mapping[str, Stored], began: FileModules, kind: str) -> dict[str, Stored]:
    """Return the modules of an adapter, each as the difference to what it was before training.

    Raises
    ------
    IncompatibleAdaptersError
        If the two have other modules, or modules of other widths.
    UnsupportedAdapterError
        If a module is one of several experts.
    """
    different = [module for module in (*stored, *began.stored) if module not in stored or module not in began.stored]
    if different:
        raise IncompatibleAdaptersError(
            f"module {different[0]!r} is in only one of the adapter and {began.weights.parent}, with which its "
            "training began",
            path=weights,
            module=different[0],
            expected="the same modules in both",
            remedy=[Setting("initial"), " of the same training"],
        )
    made = {}
    for module, place in stored.items():
        before = began.stored[module]
        if place.form is not plain or before.form is not plain or place.expert or before.expert:
            raise UnsupportedAdapterError(
                "is one of several experts, or no plain LoRA",
                path=weights,
                module=module,
                expected="plain LoRA where it is the difference to an initial adapter",
                remedy="convert it with PEFT: model.save_pretrained(..., path_initial_model_for_weight_conversion=...)",
            )
        if place.info[1:] != before.info[1:]:
            raise IncompatibleAdaptersError(
                f"{before.info.kind} of d_in {before.info.d_in}, d_out {before.info.d_out} in {began.weights.parent}",
                path=weights,
                module=module,
                expected=f"{place.info.kind} of d_in {place.info.d_in}, d_out {place.info.d_out}, as after training",
                remedy=[Setting("initial"), " of the same training"],
            )
        others = tuple(InFile(began.weights, key, began.stamps[0][1]) for key in before.keys)
        info = place.info._replace(rank=place.info.rank + before.info.rank)
        ratio = before.scale / _scale(weights, module, place)
        made[module] = Stored(place.keys, info, place.scale, less_initial, (ratio,), kind=kind, others=others)
    return made


def less_derived(
    weights: Path, stored: Mapping[str, Stored], config: PeftConfig, kind: str, options: ReadOptions
) -> dict[str, Stored]:
    """Return the modules of an adapter, each as the difference to what its init makes of the base weight.

    Raises
    ------
    LorakitError
        If the base does not fit, or the init of a module is no function of its weight.
    """
    kinds = {module: place.info.kind.name for module, place in stored.items()}
    base = open_base(options, weights, kinds, format="peft", metadata={}, why=f"{kind} changed the base weights")
    made = {}
    for module, place in stored.items():
        turned = base.turned(module, place.info, config.fan_in_fan_out)
        if place.info.kind.name != "linear" or place.form is not plain or (turned and kind == "OLoRA"):
            _refuse_layer(weights, module, kind, place, turned)
        scale = _scale(weights, module, place)
        if kind == "PiSSA" and scale < 0:
            _refuse_layer(weights, module, kind, place, turned)
        info = place.info._replace(rank=2 * place.info.rank)
        form, arguments = (less_svd, (scale, turned)) if kind == "PiSSA" else (less_qr, ())
        made[module] = Stored(place.keys, info, place.scale, form, arguments, kind=kind, others=(base.weight(module),))
    return made


def before_training(options: ReadOptions) -> ReadOptions:
    """Return the options by which the initial adapter is read."""
    return replace(options, format=None, base=None, initial=None, modules_to_save="drop")


def _scale(weights: Path, module: str, place: Stored) -> float:
    if not place.scale:
        raise UnsupportedAdapterError(
            "alpha is 0, with which no such adapter can begin",
            path=weights,
            module=module,
            remedy="set it to what it was trained with",
        )
    return place.scale


def _refuse_layer(weights: Path, module: str, kind: str, place: Stored, turned: bool) -> NoReturn:
    what = "linear layer that is stored as (in, out)" if turned else str(place.info.kind)
    raise UnsupportedAdapterError(
        f"is a {what} with a scale of {place.scale:g}, of which {kind} makes no part of the base weight",
        path=weights,
        module=module,
        expected="linear layers",
        remedy=[Setting("initial"), ", the adapter that training began with"],
    )
