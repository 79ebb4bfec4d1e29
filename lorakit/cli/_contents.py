"""What a file holds besides its factors, compared with what its sources give: extra weights, settings, names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .. import Adapter
from ..adapters import Provenance
from ..files.json_text import read_json_object
from ..io.formats.peft.writing import config_fields, make_plan

# Of a config: compared with the factors, or with what the sources say; or without effect on what a program loads.
_SCALES = {"r", "lora_alpha", "rank_pattern", "alpha_pattern"}
_ELSEWHERE = _SCALES | {"base_model_name_or_path", "fan_in_fan_out", "task_type"}
_NO_EFFECT = {"inference_mode", "lora_dropout", "peft_version", "revision", "auto_mapping"}
_OF_EXTRA_WEIGHTS = {"modules_to_save", "trainable_token_indices"}


def other_than_made(result: Adapter, again: Adapter, *, dropped: bool) -> list[str]:
    """Say what in a result, factors apart, is not what was made again.

    Parameters
    ----------
    result : Adapter
        As it was read from its file.
    again : Adapter
        As it was made again, before its modules were renamed.
    dropped : bool
        Whether extra weights were left out when the two were read.

    Returns
    -------
    list of str
        A sentence each; none if all is as it should be.
    """
    found = [*_names(result.provenance, again.provenance)]
    found += [f"what is added to {name!r} is not what its sources give" for name in other_parameters(result, again)]
    if not dropped:
        found += _extra_weights(result.provenance, again.provenance)
    if result.provenance.format == "peft":
        found += _config(result, ignored=_OF_EXTRA_WEIGHTS if dropped else set())
    return found


def other_parameters(x: Adapter, y: Adapter) -> list[str]:
    """Return the parameters to which two adapters add other things without factors, rounding apart."""
    (ours, theirs) = ({} if adapter.differences is None else adapter.differences.infos for adapter in (x, y))
    other = sorted(set(ours) ^ set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        assert x.differences is not None
        assert y.differences is not None
        one, two = x.differences.read(name).double(), y.differences.read(name).double()
        step = max(torch.finfo(infos[name][0]).eps for infos in (ours, theirs))
        if one.shape != two.shape or float((one - two).norm()) > step * float(torch.maximum(one.norm(), two.norm())):
            other.append(name)
    return other


def _names(result: Provenance, again: Provenance) -> Iterator[str]:
    """Compare the base model and the like, where the files of both say them in one way."""
    if result.format != again.format:
        return
    for field in ("base_model", "task_type", "fan_in_fan_out"):
        seen, expected = getattr(result, field), getattr(again, field)
        if seen != expected:
            yield f"{field} is {seen!r}, its sources give {expected!r}"


def _extra_weights(result: Provenance, again: Provenance) -> Iterator[str]:
    seen, expected = result.extra_weights, again.extra_weights
    ours, theirs = (set() if weights is None else set(weights.names) for weights in (seen, expected))
    for name in sorted(ours ^ theirs):
        yield f"the extra weight {name!r} is {'not of its sources' if name in ours else 'missing'}"
    for name in sorted(ours & theirs):
        assert seen is not None
        assert expected is not None
        if seen.info(name) != expected.info(name) or not _same_bits(seen.read(name), expected.read(name)):
            yield f"the extra weight {name!r} is another than that of its sources"


def _same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def _config(result: Adapter, *, ignored: set[str]) -> Iterator[str]:
    """Compare the config with the one that lorakit writes for these modules: other settings load other modules."""
    path = result.provenance.sources[0].config
    if path is None:
        return
    fields = read_json_object(path)
    plan = make_plan(result, {module: info.rank for module, info in result.infos.items()})
    expected: Mapping[str, Any] = json.loads(json.dumps(config_fields(result, plan)))
    for name in sorted({*fields, *expected} - _ELSEWHERE - _NO_EFFECT - ignored):
        seen, wanted = fields.get(name), expected.get(name)
        if name == "target_modules" and isinstance(seen, list) and isinstance(wanted, list):
            seen, wanted = sorted(map(str, seen)), sorted(wanted)
        if seen != wanted and (seen or wanted):
            yield f"the config sets {name} to {_short(seen)}, lorakit writes {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
