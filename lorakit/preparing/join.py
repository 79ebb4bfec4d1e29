"""Join layers into fused ones."""

from __future__ import annotations

from collections.abc import Callable

from ..adapters import Adapter
from ..pieces import join_modules
from ._parts import Parts, PartsTransformer


class ModuleJoiner(PartsTransformer):
    """Join layers into fused ones, such as Q, K and V into one; exactly, and lazily.

    A is stacked and B is block-diagonal, so that three modules of rank r make one of rank 3 r. Units of different parts
    that have the same row of A become one, so that what :class:`ModuleSplitter` split has its rank again.

    Parameters
    ----------
    parts : mapping of str to mapping of str to int, default=None
        From a fused layer to its parts in order, each with its number of outputs. The parts are whole names of modules,
        or the ends of these after a dot, which stand for those layers of every block; the name of the fused layer takes
        the place of the same end. A part that an adapter lacks counts as a zero update. None joins nothing.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    ModuleSplitter : The reverse.
    join_modules : The same on one adapter, by whole names.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, ModuleJoiner
    >>> factors = {name: LoraFactors(np.full((2, 6), 0.5 + i), np.ones((4, 2))) for i, name in enumerate("qk", 1)}
    >>> adapter = Adapter({f"blocks.0.{name}_proj": part for name, part in factors.items()})
    >>> (joined,) = ModuleJoiner({"qkv_proj": {"q_proj": 4, "k_proj": 4, "v_proj": 4}}).fit_transform([adapter])
    >>> joined["blocks.0.qkv_proj"]
    LoraFactors(rank=4, d_in=6, d_out=12, dtype=float64)
    """

    method = "join"

    def __init__(self, parts: Parts | None = None) -> None:
        self.parts = parts

    def _function(self) -> Callable[[Adapter, Parts], Adapter]:
        return join_modules

    def _ends(self) -> dict[str, str]:
        ends: dict[str, str] = {}
        for fused, sizes in (self.parts or {}).items():
            for part in sizes:
                if ends.setdefault(part, fused) != fused:
                    raise ValueError(f"{part!r} is a part of {ends[part]!r} and of {fused!r}; expected one of the two")
        return ends
