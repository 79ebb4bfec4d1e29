"""Opening a PEFT directory: header and config become modules with their scales, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...._few import few
from ....adapters import Differences
from ....exceptions import CorruptFileError, Setting, UnsupportedAdapterError
from .._modules import FileModules, Stamps, Stored, plain, stored_dtype
from ..codec import Location, ReadOptions
from ..dora import rescaled, split_magnitudes
from .about import CONFIG
from .config import PeftConfig, read_config
from .experts import count_targets, find_stacks
from .extra_weights import FileExtraWeights, carried
from .initial import before_training, initial_location, less_derived, less_given
from .keys import PREFIX, Pairs, bias_of, match_keys
from .kinds import read_kinds


class OpenedPeft(NamedTuple):
    """A PEFT adapter that was opened."""

    modules: FileModules
    config: PeftConfig
    dropped: tuple[str, ...]  # what the options leave out
    extra_weights: FileExtraWeights | None  # what they carry along
    target_parameters: dict[str, int]
    differences: Differences | None = None
    notes: tuple[str, ...] = ()


_OF_EXPERTS = (".base_layer", "experts")  # ends of the names of modules that may be stacks, whatever the config says


def read_peft(location: Location, weights: Path, options: ReadOptions, *, initial: bool = False) -> OpenedPeft:
    """Open the adapter whose weights these are; ``adapter_config.json`` is looked for beside them.

    ``initial``: it is the one with which the training of another began, so no part of the base is to be taken away.

    Raises
    ------
    LorakitError
        If the files are corrupt, unsafe, or hold something that cannot be merged exactly.
    """
    config_path = weights.parent / CONFIG
    stamps: Stamps = ((weights, location.stamp(weights)),)
    if config_path.exists():
        stamps += ((config_path, location.stamp(config_path)),)
    header = location.header(weights).tensors
    began = None if options.initial is None else initial_location(weights, options)
    given = _given(options, initial)
    config = read_config(config_path, options.assume_alpha, given)
    biases = {key: name for key in header if (name := bias_of(key))} if config.lora_bias else {}
    header_of_factors = {key: info for key, info in header.items() if key not in biases} if biases else header
    magnitudes, plain_tensors = (
        split_magnitudes(header_of_factors, options, _without_prefix) if config.use_dora else ({}, header_of_factors)
    )
    others, rest = ({}, plain_tensors) if config.peft_type == "LORA" else read_kinds(weights, header, config, options)
    pairs = match_keys(weights, rest, others=bool(others))
    found = _extra_weights(weights, config, pairs, options)
    first = bool(found) and options.modules_to_save == "first"
    kept = {key: header[key] for key in pairs.extra_weights}
    extra_weights = carried(weights, stamps[0][1], kept, config.extra_weights) if first else None
    experts = bool(config.target_parameters) or any(module.endswith(_OF_EXPERTS) for module in pairs.modules)
    stacks = find_stacks(weights, config, pairs.modules) if experts else {}
    stored: dict[str, Stored] = {**others}
    for module, pair in pairs.modules.items():
        keys = (pair.key_a, pair.key_b)
        if module in stacks:
            stack = stacks[module]
            info = stack.info(pair.info)
            for index in range(stack.experts):
                stored[f"{module}.{index}"] = Stored(keys, info, stack.scale, plain, expert=(index, stack.experts))
        else:
            config.check_rank(weights, module, pair.info.rank)
            stored[module] = Stored(keys, pair.info, config.scale(module, pair.info.rank), plain)
    if len(stored) != len(others) + sum(stacks[m].experts if m in stacks else 1 for m in pairs.modules):
        raise UnsupportedAdapterError(
            "an expert and another module have one name",
            path=weights,
            expected="experts to be stacked or apart, not both",
        )
    kind = config.init or "LoRA"
    if began is not None:
        before = read_peft(*began, before_training(options), initial=True)
        stored = less_given(weights, stored, before.modules, kind)
    elif config.init is not None and not initial:
        stored = less_derived(weights, stored, config, kind, options)
    if config.use_dora:
        _require_magnitudes(weights, stored, magnitudes)
        told = config.fan_in_fan_out
        stored = rescaled(weights, header, stored, magnitudes, options, format="peft", metadata={}, told=told)
    modules = FileModules(stamps, stored, stored_dtype(header, stored))
    if biases:
        from .bias import read_biases  # few adapters have some

        opened, scale = stamps[0][1], config.scale
        differences, notes = read_biases(weights, opened, header, options, scale, biases, pairs.modules, stacks)
    else:
        differences, notes = None, ()
    left = () if first else found
    return OpenedPeft(
        modules, config, left, extra_weights, count_targets(config, stacks) if experts else {}, differences, notes
    )


def _given(options: ReadOptions, initial: bool) -> list[str]:
    """Return what the config may ask for: see :func:`~lorakit.io.formats.peft.variants.refuse_variants`."""
    if initial:
        return ["initial"]
    biases = [] if options.differences == "refuse" else ["lora_bias"]
    return (
        biases + ([] if options.base is None else ["base", "dora"]) + ([] if options.initial is None else ["initial"])
    )


def _without_prefix(key: str) -> str:
    return key.removeprefix(PREFIX)


def _require_magnitudes(weights: Path, stored: Mapping[str, Stored], magnitudes: Mapping[str, str]) -> None:
    lacking = next((module for module in stored if module not in magnitudes), None)
    if lacking is not None:
        raise CorruptFileError(
            "lacks lora_magnitude_vector, and the config says use_dora",
            path=weights,
            module=lacking,
            remedy="the file is incomplete, save or download it again",
        )


def _extra_weights(path: Path, config: PeftConfig, pairs: Pairs, options: ReadOptions) -> tuple[str, ...]:
    extra_weights = (*config.kept_extra_weights, *pairs.extra_weights)
    if extra_weights and options.modules_to_save == "refuse":
        raise UnsupportedAdapterError(
            f"was trained with extra weights beside the LoRA factors: {few(extra_weights)}",
            path=path,
            expected=(
                "factors only, as whole weights cannot be merged with them (a base layer's own weights "
                "are there because PEFT saves embeddings unless save_embedding_layers=False)"
            ),
            remedy=[
                Setting("modules_to_save", "drop"),
                " to leave them out, or ",
                Setting("modules_to_save", "first"),
                " to carry those of the first adapter along",
            ],
        )
    return extra_weights
