"""Whether an adapter fits a base checkpoint, and which tensor belongs to which of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from .._few import few
from ..adapters import Adapter, ModuleInfo
from ..exceptions import IncompatibleAdaptersError, UnsupportedCheckpointError
from ..files.checkpoint import CONV1D, EMBEDDINGS, HEAD, Checkpoint, unsupported_dtype
from ..files.open_checkpoint import Base, open_checkpoint
from ..files.safetensors import FLOAT_DTYPES
from ..io.names.in_checkpoints import is_head, names_in
from .experts import find_experts
from .places import Place, find_places
from .renaming import find_renaming

__all__ = ["Fit", "Target", "check_fit"]

_NEAR = 3  # names that are shown for one that is missing
_MOST_SHOWN = 8
_IS_IT_THE_BASE = "is it the base model that the adapter was trained on?"
# Models whose head may be tied to their embedding, under names or with factors of their own
_TIED = ("ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "ForSeq2SeqLM")


class Target(NamedTuple):
    """Where the update of a module is added.

    Parameters
    ----------
    tensor : str
        The tensor of the checkpoint.
    turned : bool
        Whether the tensor holds (in, out), so that ``(B @ A).T`` is added.
    first_row : int
        Where in the tensor, seen as a matrix, the update begins: 0, but for the experts of one parameter, and for the
        parts of a fused layer.
    rows : tuple of int or None
        First row, and past the last, of the part of the update that is meant; None for all of it.
    """

    tensor: str
    turned: bool = False
    first_row: int = 0
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fit:
    """What :func:`check_fit` found.

    Parameters
    ----------
    adapter, base : str
        Their names.
    targets : mapping of str to tuple of Target
        For every module that fits, the tensors that its update is added to.
    missing : mapping of str to tuple of str
        The modules without a tensor, and names of the checkpoint that are near.
    differing : mapping of str to str
        The modules that cannot be added to their tensor, and why.
    renaming : mapping of str to str
        New names for modules, with which all of them would fit; empty if none is needed, or none was found.
    base_model : str or None
        The base model that the adapter names.
    unties : str or None
        The tensor of the output head that a result needs, as the checkpoint shares that of its embedding.
    parameters : mapping of str to str
        For every parameter to which the adapter adds without factors, the tensor.
    """

    adapter: str
    base: str
    targets: Mapping[str, tuple[Target, ...]]
    missing: Mapping[str, tuple[str, ...]]
    differing: Mapping[str, str]
    renaming: Mapping[str, str]
    base_model: str | None = None
    unties: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every module has its tensor."""
        return not self.missing and not self.differing

    def require(self) -> None:
        """Raise unless the adapter fits.

        Raises
        ------
        IncompatibleAdaptersError
            Naming the modules that do not.
        """
        if self.missing:
            named = [
                f"{module!r}" + (f" (the base has {', '.join(map(repr, near))})" if near else "")
                for module, near in self.missing.items()
            ]
            old_new = next(((m, new) for m, new in self.renaming.items() if m in self.missing), None)
            mend = (
                _IS_IT_THE_BASE
                if old_new is None
                else f"all would fit under other names, such as {old_new[1]!r} for {old_new[0]!r}: rename them with "
                "Adapter.rename_modules, or `lorakit fit --rename`"
            )
            raise IncompatibleAdaptersError(
                f"has no tensor for {len(self.missing)} of the modules of {self.adapter!r}: {few(named, _NEAR)}",
                path=self.base,
                module=next(iter(self.missing)),
                adapters=[self.adapter],
                expected="one for each",
                remedy=mend,
            )
        if self.differing:
            module, why = next(iter(self.differing.items()))
            more = f"; so are {len(self.differing) - 1} more" if len(self.differing) > 1 else ""
            raise IncompatibleAdaptersError(
                f"module {module!r} of {self.adapter!r}: {why}{more}",
                path=self.base,
                module=module,
                adapters=[self.adapter],
                remedy=_IS_IT_THE_BASE,
            )


def check_fit(base: Base, adapter: Adapter) -> Fit:
    """Say whether an adapter fits a base model, from the headers of its files alone.

    A module named ``m`` is looked for as the tensor ``m.weight``, whatever stands before that: all modules must be
    found behind one and the same beginning. kohya's flat names are looked for in single files and in pipelines. Names
    of diffusers are looked for in single files of the models' own codes, and the other way round: a layer that is fused
    there takes the update in its rows, and one that is split takes the rows of the update.

    Parameters
    ----------
    base : str, PathLike or mapping of str to Tensor
        A safetensors file, a folder of transformers or diffusers, or the ``state_dict()`` of a live model.
    adapter : Adapter
        The adapter. Its weights are not read.

    Returns
    -------
    Fit
        With ``fits``, and what does not.

    Raises
    ------
    LorakitError
        If the base cannot be opened, or is quantized.
    IncompatibleAdaptersError
        If the names of the adapter could mean several parts of the base.

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, check_fit
    >>> base = {"model.query.weight": torch.zeros(4, 3)}
    >>> fit = check_fit(base, Adapter({"query": LoraFactors(torch.ones(1, 3), torch.ones(4, 1))}))
    >>> fit.fits, fit.targets["query"][0].tensor
    (True, 'model.query.weight')
    >>> check_fit(base, Adapter({"model.queries": LoraFactors(torch.ones(1, 3), torch.ones(4, 1))})).missing
    {'model.queries': ('model.query',)}
    """
    checkpoint = open_checkpoint(base)
    named = _named_as_in(checkpoint, adapter)
    experts = find_experts(adapter, named, checkpoint)
    turning = _Turning(adapter, named, checkpoint)
    places = find_places(adapter, checkpoint, _without_tensor(adapter, named, checkpoint))
    targets: dict[str, tuple[Target, ...]] = {}
    missing: dict[str, tuple[str, ...]] = {}
    differing: dict[str, str] = dict(experts.differing)
    unties: str | None = None
    for module, info in adapter.infos.items():
        if info.kind.name == "expert":
            if module in experts.targets:
                targets[module] = tuple(Target(*found) for found in experts.targets[module])
            elif module not in differing:
                missing[module] = ()
            continue
        if module in places:
            why = next(filter(None, (_misplaced(info, place, checkpoint) for place in places[module])), None)
            if why is not None:
                differing[module] = why
            else:
                targets[module] = tuple(Target(p.tensor, p.turned, p.first_row, p.rows) for p in places[module])
            continue
        tensor = f"{named[module]}.weight"
        if tensor not in checkpoint and is_head(named[module]) and checkpoint.tied_embedding is not None:
            unties = tensor
        elif tensor not in checkpoint:
            _refuse_quantized(checkpoint, named[module])
            missing[module] = ()
            continue
        stored = checkpoint.tied_embedding if unties == tensor else tensor
        assert stored is not None
        _refuse_dtype(checkpoint, stored)
        shape = checkpoint.infos[stored].shape
        fit = _orientation(info, shape, named[module], turning)
        if fit is None:
            differing[module] = (
                f"is {_described(info)}, and {stored!r} has the shape {shape}, expected {_expected(info)}"
            )
        else:
            targets[module] = (Target(tensor, fit),)
            if stored == checkpoint.tied_embedding:
                unties = unties or f"{HEAD}.weight"
            _refuse_tied(checkpoint, stored)
    renaming = find_renaming(missing, adapter, checkpoint) if missing else {}
    weights = [module for module in checkpoint.modules if f"{module}.weight" in checkpoint] if missing else []
    for module in list(missing)[:_MOST_SHOWN]:
        missing[module] = tuple(get_close_matches(named[module], weights, n=_NEAR))
    parameters = _parameters(checkpoint, adapter, named, missing, differing)
    base_model = adapter.provenance.base_model
    return Fit(adapter.name, checkpoint.name, targets, missing, differing, renaming, base_model, unties, parameters)


def _parameters(
    checkpoint: Checkpoint,
    adapter: Adapter,
    named: Mapping[str, str],
    missing: dict[str, tuple[str, ...]],
    differing: dict[str, str],
) -> dict[str, str]:
    """Return the tensor of each parameter to which an adapter adds without factors; note those that do not fit."""
    found = {}
    for name, (_, shape) in adapter.differences.infos.items() if adapter.differences is not None else ():
        layer, _, parameter = name.rpartition(".")
        tensor = f"{named[layer]}.{parameter}"
        if tensor not in checkpoint:
            _refuse_quantized(checkpoint, named[layer])
            missing[name] = ()
        elif checkpoint.infos[tensor].shape != shape:
            differing[name] = f"is {shape}, and {tensor!r} has the shape {checkpoint.infos[tensor].shape}"
        else:
            _refuse_dtype(checkpoint, tensor)
            found[name] = tensor
    return found


def _named_as_in(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, str]:
    known = adapter.provenance
    kinds: dict[str, str] = {module: info.kind.name for module, info in adapter.infos.items()}
    if adapter.differences is not None:
        kinds = dict.fromkeys((name.rpartition(".")[0] for name in adapter.differences.infos), "linear") | kinds
    return names_in(checkpoint, kinds, adapter=adapter.name, format=known.format, metadata=known.metadata)


def _without_tensor(adapter: Adapter, named: Mapping[str, str], checkpoint: Checkpoint) -> list[str]:
    return [
        module
        for module, info in adapter.infos.items()
        if info.kind.name != "expert"
        and f"{named[module]}.weight" not in checkpoint
        and not (is_head(named[module]) and checkpoint.tied_embedding is not None)
    ]


def _misplaced(info: ModuleInfo, place: Place, checkpoint: Checkpoint) -> str | None:
    """Return why a module cannot be added at a place; None if it can."""
    _refuse_dtype(checkpoint, place.tensor)
    shape = checkpoint.infos[place.tensor].shape
    expected = place.expected(info)
    if _squeezed(shape) == expected or (info.kind.name == "conv" and (shape[0], _size(shape[1:])) == expected):
        return None
    where = "" if place.size in (None, info.d_out) else ", of which it is a part"
    return f"is {_described(info)}, and {place.tensor!r}{where} has the shape {shape}, expected {expected}"


def _orientation(info: ModuleInfo, shape: tuple[int, ...], layer: str, turning: _Turning) -> bool | None:
    """Return whether a tensor of this shape takes the update transposed; None if it does not take it."""
    d_in, d_out, kind = info.d_in, info.d_out, info.kind
    if kind.name == "embedding":
        return True if shape == (d_in, d_out) else None
    if kind.name == "conv":
        kernel = kind.kernel
        full = (d_out, d_in // _size(kernel), *kernel)
        # a convolution of one pixel is a linear layer, and some trainers write it so
        return False if shape == full or (_size(kernel) == 1 and _squeezed(shape) == (d_out, d_in)) else None
    if len(shape) > 2:
        return False if _squeezed(shape) == (d_out, d_in) else None
    if shape == (d_out, d_in):
        return d_in == d_out and turning.square(layer)
    return True if shape == (d_in, d_out) and turning.may_be(layer) else None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _size(kernel: tuple[int, ...]) -> int:
    size = 1
    for length in kernel:
        size *= length
    return size


class _Turning:
    """Which linear layers are stored as (in, out), as GPT-2's are: shapes tell, but for square ones."""

    def __init__(self, adapter: Adapter, named: Mapping[str, str], checkpoint: Checkpoint) -> None:
        self.told = adapter.provenance.fan_in_fan_out
        self.stores_in_out = checkpoint.stores_in_out
        self.seen = {
            checkpoint.infos[tensor].shape == (info.d_in, info.d_out)
            for module, info in adapter.infos.items()
            if info.kind.name == "linear" and info.d_in != info.d_out
            if (tensor := f"{named[module]}.weight") in checkpoint
        }

    def may_be(self, layer: str) -> bool:
        """Whether a layer may be stored so. Otherwise the other shape is that of another model."""
        return self.told or _is_conv1d(layer)

    def square(self, layer: str) -> bool:
        """Whether a square layer is stored so: as others are, or else as the adapter's config says."""
        if _is_conv1d(layer):
            return self.stores_in_out or True in self.seen or (self.told and not self.seen)
        return self.told and self.seen == {True}


def _is_conv1d(layer: str) -> bool:
    return layer.rpartition(".")[2] in CONV1D


def _described(info: ModuleInfo) -> str:
    return f"{info.kind} of d_in {info.d_in}, d_out {info.d_out}"


def _expected(info: ModuleInfo) -> str:
    if info.kind.name == "embedding":
        return str((info.d_in, info.d_out))
    if info.kind.name == "conv":
        return str((info.d_out, info.d_in // _size(info.kind.kernel), *info.kind.kernel))
    return str((info.d_out, info.d_in))


def _refuse_dtype(checkpoint: Checkpoint, tensor: str) -> None:
    dtype = checkpoint.infos[tensor].dtype
    if dtype not in FLOAT_DTYPES:
        raise unsupported_dtype(checkpoint.name, f"{tensor!r} is stored as {dtype}")


def _refuse_tied(checkpoint: Checkpoint, tensor: str) -> None:
    architecture = " ".join(checkpoint.config.get("architectures") or ())
    shared = checkpoint.config.get("tie_word_embeddings", True) and any(word in architecture for word in _TIED)
    if shared and tensor.split(".")[-2] in EMBEDDINGS:
        raise UnsupportedCheckpointError(
            f"{tensor!r} may also be the output head of {architecture}, which an adapter of the embedding does not "
            "change",
            path=checkpoint.name,
            expected="a base that stores both",
            remedy="save the model with tie_word_embeddings=False",
        )


def _refuse_quantized(checkpoint: Checkpoint, layer: str) -> None:
    for end in ("qweight", "weight_packed", "weight.quant_state", "weight_quantized", "scales", "blocks"):
        found = next((name for name in (f"{layer}.{end}", f"{layer}_{end}") if name in checkpoint), None)
        if found is not None:
            raise unsupported_dtype(checkpoint.name, f"{found!r} is of a quantized base")
