"""Variants of LoRA that PEFT's config names: which change how B @ A acts, and what is needed to read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ....exceptions import Setting, UnsupportedAdapterError
from ....files.json_text import shown

_TRAIN_PLAIN = "train without it, or merge it into its base model with PEFT's merge_and_unload"
# Field, what a set one means, what to do. Their files have the keys of plain LoRA: only the config tells.
REFUSED = (
    ("kasa_config", "KaSA changes the base weights", _TRAIN_PLAIN),
    ("use_bdlora", "BD-LoRA's factors are block-diagonal", _TRAIN_PLAIN),
    ("use_qalora", "QALoRA pools the input before A", _TRAIN_PLAIN),
    ("alora_invocation_tokens", "aLoRA acts on some tokens only", _TRAIN_PLAIN),
    ("arrow_config", "Arrow routes every token between adapters", "load the adapters that it routes to, one by one"),
    ("monteclora_config", "MonteCLoRA samples its weights", _TRAIN_PLAIN),
    (
        "lora_bias",
        "a bias is trained beside B",
        (
            Setting("differences", "keep"),
            ", for methods that add updates up, or ",
            Setting("differences", "drop"),
            " to leave it out",
        ),
    ),
    ("layer_replication", "layers of the base model are repeated", "train on the base model as it is"),
)
# The fields that name a variant, and the values by which they name none: most configs have nothing else
_UNSET = (None, False)
PLAIN = {
    **{name: _UNSET for name, _, _ in REFUSED},
    "use_dora": _UNSET,
    "bias": (None, "none"),
    "init_lora_weights": (None, False, True, "gaussian"),
}
# Inits that take their factors away from the base weights, and the names that people know them by
_CHANGED_BASE = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
_BY_WEIGHT = ("pissa", "olora")  # a function of the base weight; others draw random numbers or look at data


def changed_base(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the init by which the base was changed at the start of training, as the config and as people name it.

    Examples
    --------
    >>> changed_base({"init_lora_weights": "pissa_niter_4"})
    ('pissa_niter_4', 'PiSSA')
    >>> changed_base({"init_lora_weights": True})
    """
    init = fields.get("init_lora_weights")
    if not isinstance(init, str):
        return None
    return next(((init.lower(), name) for start, name in _CHANGED_BASE.items() if init.lower().startswith(start)), None)


def refuse_variants(path: Path | str, fields: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Raise UnsupportedAdapterError if the fields of a config say that ``B @ A`` is not the update.

    Parameters
    ----------
    path : Path or str
        The config, for messages.
    fields : mapping
        Of the config.
    given : collection of {'base', 'initial', 'dora', 'lora_bias'}
        What the caller reads with what it has beside the files: an init, given the base or the initial adapter; DoRA;
        biases beside B.
    """
    for name, meaning, remedy in REFUSED:
        if fields.get(name) and name not in given:
            raise UnsupportedAdapterError(
                f"{name} is set: {meaning}, so B @ A is not the update",
                path=path,
                remedy=remedy,
            )
    if fields.get("use_dora") and "dora" not in given:
        raise UnsupportedAdapterError(
            "use_dora is set: DoRA also rescales the base weights, so B @ A is not the update",
            path=path,
            remedy=[
                Setting("base"),
                ", the model that it was trained on: its update is then read, at full rank; or ",
                _TRAIN_PLAIN,
            ],
        )
    if fields.get("bias") not in (None, "none"):
        raise UnsupportedAdapterError(
            f"bias is {shown(fields['bias'])}",
            path=path,
            expected="'none': biases of the base model were trained too, and a LoRA adapter cannot hold them",
            remedy="train with bias='none'",
        )
    found = changed_base(fields)
    if found is not None and not _is_known(found[0], given):
        _refuse_init(path, fields["init_lora_weights"], found[0], given)


def _is_known(init: str, given: Collection[str]) -> bool:
    """Whether it is known what training began with."""
    return not init.startswith("loftq") and ("initial" in given or ("base" in given and init in _BY_WEIGHT))


def _refuse_init(path: Path | str, named: Any, init: str, given: Collection[str]) -> NoReturn:
    seen = (
        f"init_lora_weights is {shown(named)}: the base model was changed at the start of training, so B @ A is not "
        "the update of the published base"
    )
    remedy: list[str | Setting]
    if init.startswith("loftq"):
        remedy = ["merge it into its base model with PEFT's merge_and_unload"]
    else:
        remedy = [Setting("initial"), ", the adapter that training began with"]
        if init in _BY_WEIGHT:
            remedy += [", or ", Setting("base"), ", the model"]
        elif "base" in given:
            seen += ", and the base alone does not say how"
        remedy += [
            "; or convert it with PEFT: model.save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        ]
    raise UnsupportedAdapterError(seen, path=path, remedy=remedy)
