"""Adapters whose updates are multiplied by factors when they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .adapters import Adapter
from .factors import LoraFactors, all_finite, promoted_dtype


def scaled_adapter(adapter: Adapter, factors: float | Mapping[str, float]) -> Adapter:
    """Return an adapter with its updates multiplied, as lazy as it was; a module whose factor is 0 is left out.

    Parameters
    ----------
    adapter : Adapter
        It is not changed. Its dtype and its provenance are kept.
    factors : float, or mapping of str to float
        One factor, or one for each module; a module that a mapping does not name keeps its update.
    """
    by_module = factors if isinstance(factors, Mapping) else dict.fromkeys(adapter, factors)
    kept = [module for module in adapter if by_module.get(module, 1.0) != 0]
    changed = {module: float(by_module[module]) for module in kept if by_module.get(module, 1.0) != 1}
    narrowed = len(kept) < len(adapter)
    if not changed and not narrowed:
        return adapter
    reader = ScaledReader(adapter.select(kept) if narrowed else adapter, changed, narrowed or adapter.narrowed)
    return Adapter.from_reader(reader, name=adapter.name, provenance=adapter.provenance)


class ScaledReader:
    """The modules of another adapter, with some updates multiplied."""

    def __init__(self, adapter: Adapter, factors: Mapping[str, float], narrowed: bool) -> None:
        self.adapter, self.factors, self.narrowed = adapter, factors, narrowed
        self.infos = adapter.infos
        self.dtype = adapter.dtype
        self.checked = adapter.checked  # products are looked at here

    def read(self, module: str) -> LoraFactors:
        return self._scaled(module, torch.float32)

    def read_in(self, module: str, dtype: torch.dtype) -> LoraFactors:
        return self._scaled(module, dtype)

    def _scaled(self, module: str, dtype: torch.dtype) -> LoraFactors:
        # half precision would round the products
        update = self.adapter.read_in(module, promoted_dtype([torch.float32, dtype]))
        factor = self.factors.get(module, 1.0)
        if factor == 1:
            return update
        scaled = update.scaled(factor)
        if not all(map(all_finite, scaled)) and all(map(all_finite, update)):
            raise ValueError(
                f"{self.adapter.name}: module {module!r} times {factor:g} has values that "
                f"{str(scaled.dtype).removeprefix('torch.')} cannot hold; choose a smaller factor"
            )
        if any(before.any() and not after.any() for before, after in zip(update, scaled, strict=True)):
            raise ValueError(
                f"{self.adapter.name}: module {module!r} times {factor:g} is zero in "
                f"{str(scaled.dtype).removeprefix('torch.')}; choose a larger factor, or 0 to leave it out"
            )
        return scaled

    def scale(self, module: str) -> float | None:
        return self.adapter.scale(module)

    def only(self, modules: Sequence[str]) -> ScaledReader:
        kept = {module: self.factors[module] for module in modules if module in self.factors}
        return ScaledReader(self.adapter.select(modules), kept, self.narrowed)
