"""The container that every estimator takes: an ordered, immutable sequence of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ._html import html_table
from ._nearest import nearest
from .adapters import Adapter, ModuleInfo
from .factors import LoraFactors, dtype_name, promoted_dtype
from .linalg import pool_msus

__all__ = ["AdapterSet"]


_MOST_ROWS = 200  # of the table in a notebook


class AdapterSet(Sequence[Adapter]):
    """An ordered, immutable sequence of adapters: the ``X`` of every estimator.

    Adapters of different ranks and partly different modules may stand together; a module that an adapter lacks counts
    as a zero update. Index it by position, slice, name, integer array or boolean mask.

    Parameters
    ----------
    adapters : iterable of Adapter
        From :func:`lorakit.load_adapters`, or made in memory.

    Attributes
    ----------
    names : tuple of str
        The adapters' names.
    module_names : tuple of str
        Every module that at least one adapter has, in order of first appearance.
    dtype : torch.dtype
        The smallest dtype that holds all of the adapters'.
    shape : tuple of int
        ``(n_adapters,)``, which scikit-learn's splitters read.

    Raises
    ------
    TypeError
        If an item is not an :class:`Adapter`.

    Examples
    --------
    >>> from lorakit import AdapterSet
    >>> from lorakit.testing import make_adapters
    >>> adapters = AdapterSet(make_adapters(n_adapters=3, ranks=(4, 8, 8), random_state=0))
    >>> adapters
    AdapterSet(['task0' r=4, 'task1' r=8, 'task2' r=8], modules=2, dtype=float32)
    >>> adapters["task1"].ranks
    (8,)
    >>> adapters[[0, 2]].names
    ('task0', 'task2')
    >>> tuple(adapters.msus("layer.0").shape)
    (20, 40)
    """

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        items = (adapters,) if isinstance(adapters, Adapter) else _items(adapters)
        self._adapters = items
        self.names = tuple(adapter.name for adapter in items)
        self.module_names = tuple(dict.fromkeys(module for adapter in items for module in adapter))
        self.dtype = promoted_dtype(adapter.dtype for adapter in items)

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters)

    @overload
    def __getitem__(self, key: int | str) -> Adapter: ...
    @overload
    def __getitem__(self, key: Any) -> AdapterSet: ...
    def __getitem__(self, key: Any) -> Adapter | AdapterSet:
        if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:
            key = key[0]  # scikit-learn indexes arrays of any dimension as X[rows, ...]
        if isinstance(key, str):
            return self._by_name(key)
        if isinstance(key, slice):
            return AdapterSet(self._adapters[key])
        if np.ndim(key) == 0:
            return self._adapters[int(key)]
        index = np.asarray(key)
        if index.dtype.kind in "UO":
            return AdapterSet(self._by_name(name) for name in index)
        return AdapterSet(self._adapters[i] for i in np.arange(len(self))[index if index.size else index.astype(int)])

    def _by_name(self, name: str) -> Adapter:
        found = [adapter for adapter in self._adapters if adapter.name == name]
        if not found:
            raise KeyError(
                f"no adapter is named {name!r}{nearest(str(name), self.names)} The names are {list(self.names)}"
            )
        if len(found) > 1:
            raise KeyError(f"{len(found)} adapters are named {name!r}; take one by its position")
        return found[0]

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def shape(self) -> tuple[int]:
        """``(n_adapters,)``."""
        return _Shape((len(self),))

    @property
    def ndim(self) -> int:
        """1."""
        return 1

    def infos(self, module: str) -> tuple[ModuleInfo | None, ...]:
        """What each adapter says of a module without reading it; None where it lacks the module."""
        return tuple(adapter.infos.get(module) for adapter in self._adapters)

    def only(self, module: str) -> AdapterSet:
        """Return the same adapters with nothing but one module, as lazy as they were: little to send to a worker."""
        return AdapterSet(adapter.select([module]) for adapter in self._adapters)

    def factors(self, module: str) -> list[LoraFactors]:
        """Read one module of every adapter.

        Parameters
        ----------
        module : str
            One of ``module_names``.

        Returns
        -------
        list of LoraFactors
            One an adapter; of rank 0, a zero update, where the adapter lacks the module.
        """
        known = next((info for info in self.infos(module) if info is not None), None)
        if known is None:
            raise KeyError(f"no adapter has a module {module!r}")
        found = [adapter.get(module) for adapter in self._adapters]
        dtype = promoted_dtype(factors.dtype for factors in found if factors is not None)
        absent = LoraFactors(torch.zeros(0, known.d_in, dtype=dtype), torch.zeros(known.d_out, 0, dtype=dtype))
        return [absent if factors is None else factors for factors in found]

    def msus(self, module: str) -> Tensor:
        """Pool one module's minimal semantic units (MSUs) over the adapters.

        Parameters
        ----------
        module : str
            One of ``module_names``.

        Returns
        -------
        Tensor of shape (R, d_in + d_out)
            Row ``[A[l, :], B[:, l]]`` per MSU, in the adapters' order; R is the sum of their ranks.
        """
        factors = self.factors(module)
        dtype = promoted_dtype(f.dtype for f in factors)
        return pool_msus([f.to(dtype) for f in factors])

    def __repr__(self) -> str:
        shown = [f"{a.name!r} r={'/'.join(map(str, a.ranks))}" for a in self._adapters[:6]]
        if len(self) > len(shown):
            shown.append(f"... {len(self) - len(shown)} more")
        dtype = str(self.dtype).removeprefix("torch.")
        return f"AdapterSet([{', '.join(shown)}], modules={len(self.module_names)}, dtype={dtype})"

    def _repr_html_(self) -> str:
        shown = self._adapters[:_MOST_ROWS]
        rows = [
            (a.name, a.provenance.base_model or "", dtype_name(a.dtype), "/".join(map(str, a.ranks)), f"{len(a):,}",
             f"{a.n_parameters:,}")
            for a in shown
        ]  # fmt: skip
        more = "" if len(shown) == len(self) else f"; the first {len(shown)}"
        caption = f"AdapterSet: {len(self)} adapters, {len(self.module_names):,} modules{more}"
        return html_table(caption, ("adapter", "base", "dtype", "rank", "modules", "parameters"), rows, words=3)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "an AdapterSet cannot become a NumPy array: adapters have modules of many shapes; "
            "use .msus(module) for one module's units as a 2-D array"
        )

    def __sklearn_clone__(self) -> AdapterSet:
        return self  # immutable


_LIVE = "for a model of PEFT's, use lorakit.from_peft; for adapters in files, lorakit.load_adapters"


def _items(adapters: object) -> tuple[Adapter, ...]:
    """Return what an AdapterSet is to hold, or say what it is instead."""
    if isinstance(adapters, Mapping):
        holds_tensors = any(isinstance(value, torch.Tensor) for value in adapters.values())
        what = f"a state dict; {_LIVE}" if holds_tensors else "a mapping; pass list(mapping.values())"
        raise TypeError(f"AdapterSet takes a list of adapters, got {what}")
    if not isinstance(adapters, Iterable):
        raise TypeError(f"AdapterSet takes a list of adapters, got {type(adapters).__name__}")
    items = tuple(adapters)
    for item in items:
        if not isinstance(item, Adapter):
            live = isinstance(item, (torch.nn.Module, torch.Tensor, Mapping))
            hint = _LIVE if live else "for files, pass their paths to lorakit.load_adapters"
            raise TypeError(f"AdapterSet takes Adapter objects, got {type(item).__name__}; {hint}")
    return items


class _Shape(tuple[int]):
    """Tells what asks for columns, such as ColumnTransformer, that there are none."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int) and key not in (0, -1):
            raise IndexError(
                "an AdapterSet has no columns: its shape is (n_adapters,). To change some adapters and not others, "
                "index it by name or position and pass the parts to estimators of their own"
            )
        return super().__getitem__(key)
