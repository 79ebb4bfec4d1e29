"""Differences of whole parameters, such as biases and norms: what an adapter adds to them besides its factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ._few import few
from .adapters import Adapter
from .exceptions import IncompatibleAdaptersError, OutputError, Setting, UnsupportedAdapterError, Words
from .factors import all_finite, dtype_name, promoted_dtype
from .provenance import Differences

__all__ = [
    "MemoryDifferences",
    "PartsOfDifferences",
    "added_up",
    "differences_of",
    "refuse_differences",
    "rounded",
]

_SHOWN = 3  # names in a message


class MemoryDifferences:
    """Differences that are held in memory.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        What is added to each parameter, by its name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.infos = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return what is added to one parameter."""
        return self.tensors[name]

    def __reduce__(self) -> tuple[Any, ...]:
        # as NumPy arrays, for the same reasons as factors
        arrays = {name: tensor.double().numpy() for name, tensor in self.tensors.items()}
        return _unpickled, (arrays, {name: dtype_name(tensor.dtype) for name, tensor in self.tensors.items()})


def _unpickled(arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str]) -> MemoryDifferences:
    return MemoryDifferences(
        {name: torch.from_numpy(array.copy()).to(getattr(torch, dtypes[name])) for name, array in arrays.items()}
    )


Part = tuple[str | None, int, int]  # a parameter, or None for zeros; and which of its numbers, as in range


class PartsOfDifferences:
    """Differences that are put together from parts of others.

    Parameters
    ----------
    differences : Differences
        The others.
    places : mapping of str to sequence of (str or None, int, int)
        The parts of each, one after the other.
    """

    def __init__(self, differences: Differences, places: Mapping[str, Sequence[Part]]) -> None:
        self.differences, self.places = differences, {name: tuple(parts) for name, parts in places.items()}
        self.infos = {}
        for name, parts in self.places.items():
            dtype = promoted_dtype({differences.infos[old][0] for old, _, _ in parts if old is not None})
            shape: tuple[int, ...] = (sum(stop - start for _, start, stop in parts),)
            old, *rows = parts[0]
            whole = differences.infos[old][1] if len(parts) == 1 and old is not None else shape
            self.infos[name] = dtype, whole if rows == [0, *whole[:1]] else shape

    def read(self, name: str) -> Tensor:
        """Read what is added to one parameter."""
        known = {old: self.differences.read(old) for old, _, _ in self.places[name] if old is not None}
        like = next(iter(known.values()))
        cut = [
            known[old][start:stop] if old is not None else like.new_zeros(stop - start)
            for old, start, stop in self.places[name]
        ]
        return cut[0] if len(cut) == 1 else torch.cat(cut)


def differences_of(adapters: Iterable[Adapter]) -> Iterator[tuple[Adapter, str]]:
    """Yield each adapter that has some, with the name of each parameter."""
    for adapter in adapters:
        if adapter.differences is not None:
            for name in adapter.differences.infos:
                yield adapter, name


def refuse_differences(adapters: Iterable[Adapter], what: str, *, remedy: Sequence[str | Setting | Words] = ()) -> None:
    """Refuse adapters that add to whole parameters, where this would be lost.

    Parameters
    ----------
    adapters : iterable of Adapter
        The adapters.
    what : str
        What would leave them out, as the subject of a sentence.
    remedy : sequence of str, Setting and Words, default=()
        What else to do than to leave them out when the files are read.

    Raises
    ------
    UnsupportedAdapterError
        Naming the adapter and the first of the parameters.
    """
    found = next(differences_of(adapters), None)
    if found is not None:
        _refuse(found[0], what, remedy)


def _refuse(adapter: Adapter, what: str, remedy: Sequence[str | Setting | Words]) -> NoReturn:
    assert adapter.differences is not None
    names = list(adapter.differences.infos)
    raise UnsupportedAdapterError(
        f"also adds to {few(names, _SHOWN, write=repr)}, parameters without factors, which {what} does not "
        "take into account",
        adapters=[adapter.name],
        remedy=[*remedy, *([", or "] if remedy else []), Setting("differences", "drop"), " when it is read"],
    )


def added_up(
    adapters: Iterable[Adapter], factors: Sequence[float], before: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Return the sum of the differences of several adapters, each times a factor, in float64; each is read once.

    An adapter that lacks a parameter adds nothing to it.

    Parameters
    ----------
    adapters : iterable of Adapter
        The adapters.
    factors : sequence of float
        One for each.
    before : mapping of str to Tensor, optional
        A sum that they are added to. It is not changed.

    Returns
    -------
    sums : dict of str to Tensor
        By parameter.
    norms : dict of str to ndarray
        By parameter, of those that these adapters add to: the Euclidean norm of what each adds, without its factor.

    Raises
    ------
    IncompatibleAdaptersError
        If a parameter has several shapes.
    """
    sums: dict[str, Tensor] = dict(before or {})
    norms: dict[str, np.ndarray] = {}
    for i, (adapter, factor) in enumerate(zip(adapters, factors, strict=True)):
        for name in adapter.differences.infos if adapter.differences is not None else ():
            assert adapter.differences is not None
            own = adapter.differences.read(name).double()
            norms.setdefault(name, np.zeros(len(factors)))[i] = float(own.norm())
            term = own * factor
            if name in sums and sums[name].shape != term.shape:
                raise IncompatibleAdaptersError(
                    f"the parameter {name!r} has {tuple(term.shape)} numbers in {adapter.name!r}",
                    adapters=[adapter.name],
                    expected=f"{tuple(sums[name].shape)}, as other adapters have",
                    remedy="merge adapters of one base model",
                )
            sums[name] = sums[name] + term if name in sums else term
    return sums, norms


def rounded(sums: Mapping[str, Tensor], dtype: torch.dtype) -> MemoryDifferences | None:
    """Return sums as the differences of an adapter of this dtype; None if there are none.

    Raises
    ------
    OutputError
        If a sum does not fit the dtype.
    """
    cast = {name: total.to(dtype) for name, total in sums.items()}
    wrong = next((name for name, tensor in cast.items() if not all_finite(tensor)), None)
    if wrong is not None:
        raise OutputError(
            f"the sum of the differences of {wrong!r} reaches {sums[wrong].abs().max().item():.3g}",
            expected=f"at most {torch.finfo(dtype).max:.3g}, the largest number of {dtype_name(dtype)}",
            remedy="lower the strengths, or merge in bfloat16 or float32 (Adapter.astype)",
        )
    return MemoryDifferences(cast) if cast else None
