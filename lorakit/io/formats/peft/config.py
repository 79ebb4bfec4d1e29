"""PEFT's ``adapter_config.json``: what is read of it, and what is refused because it changes how weights act."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ...._few import few
from ....exceptions import CorruptFileError, Setting, UnsupportedAdapterError
from ....files.json_text import MAX_NUMBER, is_number, read_json_object, shown
from ....files.patterns import Patterns
from .variants import PLAIN, REFUSED, changed_base, refuse_variants

_EXTRA_WEIGHTS = ("modules_to_save", "trainable_token_indices")
_READ = """
alpha_pattern base_model_name_or_path bias fan_in_fan_out init_lora_weights lora_alpha modules_to_save peft_type r
rank_pattern target_parameters task_type trainable_token_indices use_dora use_rslora
"""
# They choose where or how to train, or how to run; none changes what the stored factors mean.
_HARMLESS = """
auto_mapping corda_config ensure_weight_tying eva_config exclude_modules inference_mode layers_pattern
layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core peft_version
qalora_group_size revision runtime_config target_modules velora_config
"""
# The kinds of adapter that are read: the field with alpha, and the fields that only they have
_ALPHA = {"LORA": "lora_alpha", "ADALORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
_WITHOUT_ALPHA = ("VERA", "MISS", "BONE")
_OF_LYCORIS = "alpha init_weights module_dropout rank_dropout use_effective_conv2d"
_OWN_FIELDS = {
    "LORA": "",
    "ADALORA": "beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step",
    "LOHA": _OF_LYCORIS,
    "LOKR": f"{_OF_LYCORIS} decompose_both decompose_factor rank_dropout_scale",
    "VERA": "d_initial init_weights projection_prng_key save_projection vera_dropout",
    "MISS": "init_weights mini_r miss_dropout",
    "BONE": "init_weights",
}
_KNOWN = {*_READ.split(), *_HARMLESS.split(), *(name for name, _, _ in REFUSED)}
_NAMED = 10  # unknown fields that a warning names


@dataclass(frozen=True)
class PeftConfig:
    """What ``adapter_config.json`` says that matters here.

    Parameters
    ----------
    path : Path
        The file, or where it should be, for messages.
    r : int or None
        Rank of the modules that no rank pattern matches; None if not given.
    alpha : float
        ``lora_alpha`` of the modules that no alpha pattern matches.
    use_rslora : bool
        Whether the scale is ``alpha / sqrt(r)`` instead of ``alpha / r``.
    rank_pattern, alpha_pattern : mapping of str to number
        Regular expressions on module paths, in file order.
    base_model, task_type : str or None
        As given.
    fan_in_fan_out : bool
        Whether the base stores its weights as (in, out).
    extra_weights : mapping of str to list or dict
        The fields that say what was trained and stored beside the factors.
    target_parameters : tuple of str
        Ends of the names of parameters that are adapted without a module of their own, sorted.
    unknown : tuple of str
        Fields that are set and that this version does not know.
    peft_type : {'LORA', 'ADALORA', 'LOHA', 'LOKR', 'VERA', 'MISS', 'BONE'}, default='LORA'
        The kind of adapter.
    own : mapping
        The fields that only this kind has, as they are given.
    init_r : int, default=0
        The rank that AdaLoRA began with, by which alpha is divided.
    init : str or None
        What was taken away from the base weights when training began: PiSSA, OLoRA, CorDA or LoRA-GA.
    use_dora : bool, default=False
        Whether the base weights are rescaled too.
    lora_bias : bool, default=False
        Whether a bias was trained beside B.
    """

    path: Path
    r: int | None
    alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    task_type: str | None = None
    fan_in_fan_out: bool = False
    extra_weights: Mapping[str, Any] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    peft_type: str = "LORA"
    own: Mapping[str, Any] = field(default_factory=dict)
    init_r: int = 0
    init: str | None = None
    use_dora: bool = False
    lora_bias: bool = False

    @property
    def kept_extra_weights(self) -> tuple[str, ...]:
        """What was trained and stored beside the factors, for messages."""
        return tuple(
            f"{key}={shown(value)}" if key == "modules_to_save" else key for key, value in self.extra_weights.items()
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What to warn of when it is read."""
        if not self.unknown:
            return ()
        names = few(self.unknown, _NAMED, write=lambda name: name[:100])
        return (
            f"{self.path}: sets {names}, which this version of lorakit does not know; if that "
            "changes how B @ A acts, what is made of it is wrong",
        )

    def scale(self, module: str, rank: int) -> float:
        """Return the factor on ``B @ A`` at a module whose tensors have this rank."""
        if self.peft_type in _WITHOUT_ALPHA:
            return 1.0
        if self.peft_type == "ADALORA":
            return (self.alpha if self.alpha > 0 else rank) / (self.init_r + 1e-5)  # as PEFT has it
        key = self._alpha_keys.first(module) if self.alpha_pattern else None
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int | None:
        """Return the rank that the config gives a module, if it gives one."""
        key = (
            self._rank_keys.first(module) if self.rank_pattern else None
        )  # PEFT's rule: the first key in file order wins
        return self.r if key is None else self.rank_pattern[key]

    def check_rank(self, weights: Path, module: str, rank: int) -> None:
        """Raise CorruptFileError if a module's tensors have another rank than the config gives it."""
        expected = self.rank(module)
        if expected is not None and expected != rank:
            raise CorruptFileError(
                f"module {module!r} has rank {rank}, {self.path.name} says {expected} (by its r and rank_pattern)",
                path=weights,
                module=module,
                remedy="PEFT cannot load this either, so correct r or rank_pattern, or copy the matching file",
            )

    @cached_property
    def _alpha_keys(self) -> Patterns:
        return Patterns(f"{self.path}: alpha_pattern", self.alpha_pattern)

    @cached_property
    def _rank_keys(self) -> Patterns:
        return Patterns(f"{self.path}: rank_pattern", self.rank_pattern)

    def check_patterns(self) -> None:
        """Raise what :class:`~lorakit.files.patterns.Patterns` raises for keys that cannot be matched."""
        if self.alpha_pattern:
            _ = self._alpha_keys
        if self.rank_pattern:
            _ = self._rank_keys


def read_config(path: Path, assume_alpha: float | None, given: Collection[str] = ()) -> PeftConfig:
    """Read and check ``adapter_config.json``.

    Parameters
    ----------
    path : Path
        The file; it may be absent if ``assume_alpha`` is given.
    assume_alpha : float or None
        ``lora_alpha`` if the file is absent or does not give it.
    given : collection of {'base', 'initial', 'dora', 'lora_bias'}
        As in :func:`~lorakit.io.formats.peft.variants.refuse_variants`.

    Returns
    -------
    PeftConfig
        Its content.

    Raises
    ------
    CorruptFileError
        If it is not a JSON object, or a field is of a wrong type.
    UnsupportedAdapterError
        If it is absent, or describes something else than plain LoRA.
    """
    if not path.exists():
        if assume_alpha is not None:
            return PeftConfig(path, r=None, alpha=assume_alpha)
        raise UnsupportedAdapterError(
            "is missing, and the scale of the update (lora_alpha / r) with it",
            path=path,
            remedy=[
                "copy it from where the adapter came from, or ",
                Setting("assume_alpha"),
                " if you know lora_alpha (the rank itself if no scaling was used)",
            ],
        )
    fields = read_json_object(path)
    return config_of(path, fields, assume_alpha, (*_ALPHA, *_WITHOUT_ALPHA), given)


def config_of(
    path: Path,
    fields: Mapping[str, Any],
    assume_alpha: float | None,
    types: Sequence[str] = ("LORA",),
    given: Collection[str] = (),
) -> PeftConfig:
    """Check the fields of a config, wherever they were found; as :func:`read_config` in everything else.

    ``types`` are the kinds of adapter that the caller reads, as ``peft_type`` names them.
    """
    peft_type = fields.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in types:
        raise UnsupportedAdapterError(
            f"peft_type is {shown(peft_type)}",
            path=path,
            expected=" or ".join(map(repr, types)),
            remedy="other kinds of adapters cannot be merged as factors",
        )
    found = None
    if any(fields.get(name) not in plain for name, plain in PLAIN.items()):
        refuse_variants(path, fields, given)
        found = changed_base(fields)
    alpha_field = _ALPHA.get(peft_type)
    if alpha_field is not None and fields.get(alpha_field) is None and assume_alpha is None:
        raise UnsupportedAdapterError(
            f"has no {alpha_field} (PEFT would silently take 8)",
            path=path,
            remedy=["add the value used in training, or ", Setting("assume_alpha")],
        )
    number = _Fields(path, fields)
    known = _KNOWN | set(_OWN_FIELDS[peft_type].split())
    adalora = peft_type == "ADALORA"  # it has ranks of its own, by init_r and which of them training kept
    if adalora and fields.get("init_r") is None:
        raise UnsupportedAdapterError(
            "has no init_r (PEFT would silently take 12)", path=path, remedy="add the value used in training"
        )
    patterns = {name: {} if adalora else number.pattern(name) for name in ("rank_pattern", "alpha_pattern")}
    config = PeftConfig(
        path,
        r=None if adalora or fields.get("r") is None else number.rank("r", fields["r"]),
        alpha=number.alpha(alpha_field, assume_alpha),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern={
            key: number.rank(f"rank_pattern[{shown(key)}]", r) for key, r in patterns["rank_pattern"].items()
        },
        alpha_pattern={
            key: number.real(f"alpha_pattern[{shown(key)}]", a) for key, a in patterns["alpha_pattern"].items()
        },
        base_model=_text(fields.get("base_model_name_or_path")),
        task_type=_text(fields.get("task_type")),
        fan_in_fan_out=bool(fields.get("fan_in_fan_out")),
        extra_weights={name: number.extra_weights(name) for name in _EXTRA_WEIGHTS if fields.get(name)},
        target_parameters=tuple(sorted(set(number.texts("target_parameters")))),
        unknown=tuple(sorted(key for key, value in fields.items() if value and key not in known)),
        peft_type=peft_type,
        own={name: fields[name] for name in _OWN_FIELDS[peft_type].split() if name in fields},
        init_r=number.rank("init_r", fields["init_r"]) if adalora else 0,
        init=None if found is None else found[1],
        use_dora=bool(fields.get("use_dora")),
        lora_bias=bool(fields.get("lora_bias")),
    )
    config.check_patterns()
    return config


class _Fields:
    """Typed access to the numbers in the config, with the file and field in every message."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path, self.fields = path, fields

    def rank(self, field: str, value: Any) -> int:
        real = self.real(field, value)
        if real <= 0:
            raise UnsupportedAdapterError(
                f"{field} is {value}",
                path=self.path,
                expected="1 or more",
                remedy="correct the file",
            )
        if real != int(real):
            self.wrong(field, value, "a whole number")
        return int(real)

    def alpha(self, field: str | None, assumed: float | None) -> float:
        if field is None:
            return 1.0
        return self.real(field, self.fields[field] if self.fields.get(field) is not None else assumed)

    def real(self, field: str, value: Any) -> float:
        if not is_number(value):
            self.wrong(field, value, f"a number of at most {MAX_NUMBER:.0e}")
        return float(value)

    def pattern(self, field: str) -> dict[str, Any]:
        found = self.fields.get(field) or {}
        if not isinstance(found, dict):
            self.wrong(field, found, "an object of regular expressions and numbers")
        return found

    def texts(self, field: str) -> list[str]:
        found = self.fields.get(field) or []
        if not _all(found, str):
            self.wrong(field, found, "a list of texts")
        return list(found)

    def extra_weights(self, field: str) -> list[str] | list[int] | dict[str, list[int]]:
        if field == "modules_to_save":
            return self.texts(field)
        found = self.fields[field]
        by_module = found if isinstance(found, dict) else {"": found}
        if not _all(list(by_module), str) or not all(_all(indices, int) for indices in by_module.values()):
            self.wrong(field, found, "a list of token numbers, or one for each module")
        return {name: list(indices) for name, indices in found.items()} if isinstance(found, dict) else list(found)

    def wrong(self, field: str, value: Any, expected: str) -> NoReturn:
        raise CorruptFileError(
            f"{field} is {shown(value)}",
            path=self.path,
            expected=expected,
            remedy="correct the file",
        )


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple, set)) and all(type(value) is kind for value in values)


def _text(value: Any) -> str | None:
    # What cannot be printed is no model's name, and would reach terminals.
    return value if isinstance(value, str) and value.isprintable() and value else None
