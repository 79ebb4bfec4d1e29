"""A checkpoint with adapters added to it, tensor by tensor, as it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._execution import report_done
from ..adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..files.safetensors import FLOAT_DTYPES
from .fitting import Fit, Target
from .sums import Rounding, Term, compute_dtype, summed_rows

__all__ = ["Baked"]

Contribution = tuple[int, str, Target]  # which adapter, which of its modules, where


class Baked(Mapping[str, Tensor]):
    """A base checkpoint with adapters added to it: a read-only mapping from names to tensors.

    A tensor is computed when it is asked for, and not kept.

    Attributes
    ----------
    fits : tuple of Fit
        For each adapter, which tensors it is added to.
    strengths : tuple of float
        The factor of each adapter.
    changed : tuple of str
        The tensors that are not those of the base.
    added : dict of str to str
        Tensors that the base does not store, and which of its tensors each is made from: an output head that was tied
        to the embedding.
    rounding : dict of str to float
        For each tensor that was computed so far, the share of the update that rounding to its dtype took: the norm of
        what was lost over the norm of the update.
    output : Path or None
        What was written.
    left_out : tuple of str
        Files of the base's folder that were not taken along: its weights in other formats.
    """

    def __init__(
        self, base: Checkpoint, adapters: Sequence[Adapter], strengths: Sequence[float], fits: Sequence[Fit]
    ) -> None:
        self.base, self.adapters = base, tuple(adapters)
        self.strengths, self.fits = tuple(strengths), tuple(fits)
        self.added = {fit.unties: base.tied_embedding for fit in fits if fit.unties and base.tied_embedding}
        self.contributions: dict[str, list[Contribution]] = {name: [] for name in self.added}
        for i, fit in enumerate(fits):
            for module, targets in fit.targets.items():
                for target in targets:
                    self.contributions.setdefault(target.tensor, []).append((i, module, target))
        self.differences: dict[str, list[tuple[int, str]]] = {}  # which adapter, which of its parameters
        for i, fit in enumerate(fits):
            for parameter, tensor in fit.parameters.items():
                self.contributions.setdefault(tensor, [])
                self.differences.setdefault(tensor, []).append((i, parameter))
        self.changed = tuple(self.contributions)
        self.rounding: dict[str, float] = {}
        self.output: Path | None = None
        self.left_out: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.contributions:
            return self.base[name]
        source = self.added.get(name, name)
        rows = self.blocks(name, lambda start, stop: self.base.rows(source, start, stop))
        return torch.cat(list(rows)).reshape(self.base.infos[source].shape)

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from self.added

    def __len__(self) -> int:
        return len(self.base) + len(self.added)

    def __contains__(self, name: object) -> bool:
        return name in self.base or name in self.added

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def blocks(self, name: str, rows: Callable[[int, int], Tensor]) -> Iterator[Tensor]:
        """Yield a changed tensor some rows at a time; ``rows`` reads those of the base."""
        n_rows, n_cols = self.base.matrix_shape(self.added.get(name, name))
        rounding = Rounding()
        dtype = compute_dtype(FLOAT_DTYPES[self.base.infos[self.added.get(name, name)].dtype])
        terms = [self._term(*contribution, dtype) for contribution in self.contributions[name]]
        terms += [self._whole(i, parameter, n_cols) for i, parameter in self.differences.get(name, ())]
        yield from summed_rows(rows, n_rows, n_cols, terms, rounding, f"{self.base.name}: {name!r}")
        self.rounding[name] = rounding.share
        report_done(len(self.rounding), len(self.changed))

    def _whole(self, i: int, parameter: str, n_cols: int) -> Term:
        differences = self.adapters[i].differences
        assert differences is not None  # it was fitted
        whole = differences.read(parameter).double().reshape(-1, n_cols) * self.strengths[i]
        return Term(0, whole, torch.eye(n_cols, dtype=whole.dtype))

    def _term(self, i: int, module: str, target: Target, dtype: torch.dtype) -> Term:
        a, b = self.adapters[i].read_in(module, dtype)
        b = b[slice(*target.rows)] if target.rows else b
        left, right = (a.mT, b.mT * self.strengths[i]) if target.turned else (b * self.strengths[i], a)
        return Term(target.first_row, left, right)
