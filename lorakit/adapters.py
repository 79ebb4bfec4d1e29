"""LoRA adapters: read-only mappings from module names to thin factors, in memory or lazy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ._html import modules_table
from ._nearest import nearest
from .factors import LoraFactors, dtype_name
from .provenance import Differences, ExtraWeights, Made, Provenance, SomeDifferences, Source, Step, combined
from .readers import SVD, MemoryReader, ModuleInfo, ModuleKind, ModuleReader, ViewReader, narrowed, read_in, svd_of

__all__ = ["Adapter", "Differences", "ExtraWeights", "LoraFactors", "Made", "ModuleInfo", "ModuleKind", "ModuleReader",
           "Provenance", "Source", "Step", "made_from"]  # fmt: skip

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Adapter(Mapping[str, LoraFactors]):
    """A LoRA adapter: a read-only mapping from module name to :class:`LoraFactors`.

    It is lazy when it comes from :func:`lorakit.load_adapter`: a module is read when it is asked for, and not kept.

    Parameters
    ----------
    modules : mapping of str to LoraFactors
        Factors by module path, such as ``"encoder.layer.0.attention.self.query"`` (no ``base_model.model.`` prefix).
    name : str, default='adapter'
        The name by which ``weights``, reports and error messages refer to it.
    kinds : mapping of str to ModuleKind, optional
        For the modules that are not linear.
    provenance : Provenance, optional
        Defaults to "made in memory".

    Attributes
    ----------
    dtype : torch.dtype
        Dtype in which it is stored, and in which a result made from it is returned. Reading a half-precision file
        gives float32 factors, because folding the scaling into half precision would round them.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors
    >>> factors = LoraFactors(np.ones((2, 3)), np.ones((4, 2)))
    >>> adapter = Adapter({"query": factors}, name="mine")
    >>> adapter
    Adapter('mine', modules=1, rank=2, dtype=float64)
    >>> adapter["query"].rank
    2
    """

    def __init__(
        self,
        modules: Mapping[str, LoraFactors],
        *,
        name: str = "adapter",
        kinds: Mapping[str, ModuleKind] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        for module, factors in modules.items():
            if not isinstance(factors, LoraFactors):
                raise TypeError(f"{name}: module {module!r} must be LoraFactors(A, B), got {type(factors).__name__}")
        self._setup(MemoryReader(dict(modules), kinds or {}), name, provenance)

    @classmethod
    def from_reader(cls, reader: ModuleReader, *, name: str, provenance: Provenance) -> Adapter:
        """Make a lazy adapter that asks ``reader`` for each module."""
        self = cls.__new__(cls)
        self._setup(reader, name, provenance)
        return self

    def _setup(self, reader: ModuleReader, name: str, provenance: Provenance | None) -> None:
        self._reader = reader
        self.name = name
        self.dtype = reader.dtype
        self.provenance = provenance if provenance is not None else Provenance(sources=(Source(name),))

    def __getitem__(self, module: str) -> LoraFactors:
        if module in self._reader.infos:
            return self._reader.read(module)
        raise KeyError(f"no module is named {module!r}{nearest(str(module), self._reader.infos)}")

    def read_in(self, module: str, dtype: torch.dtype) -> LoraFactors:
        """Read one module in ``dtype`` or a better one, in which the scale of its file is folded into the factors."""
        return read_in(self._reader, module, dtype)

    def svd(self, module: str, k: int | None = None) -> SVD | None:
        """Return the SVD of a module's update where its file has a form that gives it without A and B, as LoKr's does.

        Parameters
        ----------
        module : str
            The module.
        k : int, optional
            Number of singular vectors to form; all by default.

        Returns
        -------
        (U, S, Vh) or None
            Of shapes (d_out, k), (q,) with all singular values, and (k, d_in), in float64. None for other forms.
        """
        return svd_of(self._reader, module, k)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.infos)

    def __len__(self) -> int:
        return len(self._reader.infos)

    def __contains__(self, module: object) -> bool:
        return module in self._reader.infos  # the mixin's would read the module

    # Identity, not content: comparing contents would read every file, and hashing is wanted.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def infos(self) -> Mapping[str, ModuleInfo]:
        """Rank, widths and kind by module, known without reading weights."""
        return self._reader.infos

    @property
    def reader(self) -> ModuleReader:
        """What its modules are read from."""
        return self._reader

    @property
    def differences(self) -> Differences | None:
        """What it adds to whole parameters, such as biases and norms; None if its modules are all of its update."""
        return self.provenance.differences

    @property
    def checked(self) -> bool:
        """Whether reading a module refuses NaN and infinite values, so that no second look is needed."""
        return bool(getattr(self._reader, "checked", False))

    @property
    def narrowed(self) -> bool:
        """Whether a factor of 0 took modules out of it, so that it need not share one with other adapters."""
        return bool(getattr(self._reader, "narrowed", False))

    def scale(self, module: str) -> float | None:
        """Return the factor that a module's file gives ``B @ A``, such as ``lora_alpha / r``; None in memory.

        It is folded into the factors already.
        """
        asked: Callable[[str], float | None] | None = getattr(self._reader, "scale", None)
        return None if asked is None else asked(module)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks of its modules, ascending."""
        return tuple(sorted({info.rank for info in self.infos.values()}))

    @property
    def n_parameters(self) -> int:
        """Numbers stored in all factors."""
        return sum(info.n_parameters for info in self.infos.values())

    def renamed(self, name: str) -> Adapter:
        """Return the same adapter under another name."""
        return Adapter.from_reader(self._reader, name=name, provenance=self.provenance)

    def with_provenance(self, **changes: Any) -> Adapter:
        """Return the same adapter with fields of its :class:`~lorakit.adapters.Provenance` replaced."""
        return Adapter.from_reader(self._reader, name=self.name, provenance=replace(self.provenance, **changes))

    def astype(self, dtype: torch.dtype) -> Adapter:
        """Return the same adapter as if it were stored in another dtype, as lazy as it was.

        What is made from it then has this dtype: a merge of half-precision adapters ``.astype(torch.float32)`` is not
        rounded to half precision.

        Parameters
        ----------
        dtype : torch.dtype
            float64, float32, bfloat16 or float16.

        Raises
        ------
        ValueError
            If it is another one.

        Examples
        --------
        >>> import torch
        >>> from lorakit.testing import make_adapters
        >>> (adapter,) = make_adapters(1, dtype=torch.float16, random_state=0)
        >>> adapter.astype(torch.float32)
        Adapter('task0', modules=2, rank=4, dtype=float32)
        """
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype!r}")
        reader = ViewReader(self._reader, {module: module for module in self}, dtype)
        done = (*self.provenance.conversions, {"dtype": dtype_name(dtype)})
        return Adapter.from_reader(reader, name=self.name, provenance=replace(self.provenance, conversions=done))

    def rename_modules(self, rename: Callable[[str], str]) -> Adapter:
        """Return the same adapter with every module name passed through ``rename``.

        Weights that it carries beside its factors keep their names. ``differences`` of parameters are renamed with the
        layers that they belong to.

        Parameters
        ----------
        rename : callable
            From old name to new name; it must keep the names distinct.

        Examples
        --------
        >>> import numpy as np
        >>> from lorakit import Adapter, LoraFactors
        >>> factors = LoraFactors(np.ones((2, 3)), np.ones((4, 2)))
        >>> adapter = Adapter({"model.query": factors})
        >>> list(adapter.rename_modules(lambda m: m.removeprefix("model.")))
        ['query']
        """
        reader = ViewReader(self._reader, {rename(module): module for module in self})
        if len(reader.infos) != len(self):
            raise ValueError(f"{self.name}: rename gives one name to several modules")
        return Adapter.from_reader(reader, name=self.name, provenance=self.provenance_where(rename))

    def select(self, modules: Iterable[str]) -> Adapter:
        """Return the same adapter with only some of its modules, in its own order, as lazy as it was.

        Parameters
        ----------
        modules : iterable of str
            Module names; those that the adapter lacks are ignored. Of its ``differences``, those of these layers stay.
        """
        chosen = set(modules)
        wanted = {module for module in chosen if module in self}
        names = list(wanted) if len(wanted) < 2 else [module for module in self if module in wanted]
        provenance = self.provenance_where(lambda owner: owner if owner in chosen else None)
        return Adapter.from_reader(narrowed(self._reader, names), name=self.name, provenance=provenance)

    def provenance_where(self, rename: Callable[[str], str | None]) -> Provenance:
        """Return its provenance with the differences of layers renamed.

        Parameters
        ----------
        rename : callable
            From the name of a layer to the new one; None leaves out what is added to the layer's parameters.
        """
        if self.differences is None:
            return self.provenance
        old_names = {}
        for name in self.differences.infos:
            layer, _, parameter = name.rpartition(".")
            new = rename(layer)
            if new is not None:
                old_names[f"{new}.{parameter}"] = name
        view = SomeDifferences(self.differences, old_names) if old_names else None
        return replace(self.provenance, differences=view)

    def __repr__(self) -> str:
        ranks = "/".join(map(str, self.ranks)) or "0"
        return f"Adapter({self.name!r}, modules={len(self)}, rank={ranks}, dtype={dtype_name(self.dtype)})"

    def _repr_html_(self) -> str:
        base = f", of {known}" if (known := self.provenance.base_model) else ""
        return modules_table(f"Adapter {self.name!r}: {dtype_name(self.dtype)}{base}", self.infos)


def made_from(adapters: Iterable[Adapter], operation: str) -> Provenance:
    """Return the provenance of one adapter that a function made from several.

    Parameters
    ----------
    adapters : iterable of Adapter
        What it was made from, one or more.
    operation : str
        The function, with every argument that bears on the result.
    """
    given = [(adapter.name, adapter.provenance) for adapter in adapters]
    step = Step(operation, tuple((name, p.origin) for name, p in given), None, tuple(p.conversions for _, p in given))
    return combined([p for _, p in given], Made(step))
