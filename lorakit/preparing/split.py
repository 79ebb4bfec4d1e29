"""Split fused layers into their parts."""

from __future__ import annotations

from collections.abc import Callable

from ..adapters import Adapter
from ..pieces import split_modules
from ._parts import Parts, PartsTransformer


class ModuleSplitter(PartsTransformer):
    """Split fused layers, such as Q, K and V in one, into modules of their own; exactly, and lazily.

    Each part has its rows of B, and all parts share A, so that the ranks stay. Put it before a merger where some
    adapters were trained on fused layers and others on their parts, or before a step that is to treat the parts
    differently.

    Parameters
    ----------
    parts : mapping of str to mapping of str to int, default=None
        From a fused layer to its parts in order, each with its number of outputs. A layer is the whole name of a
        module, or the end of it after a dot, which stands for that layer of every block; the names of its parts take
        the place of the same end. The numbers may differ, as those of Q, K and V do under grouped-query attention.
        None splits nothing.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    ModuleJoiner : The reverse.
    split_modules : The same on one adapter, by whole names.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, ModuleSplitter
    >>> blocks = {f"blocks.{i}.qkv_proj": LoraFactors(np.ones((2, 6)), np.ones((8, 2))) for i in range(2)}
    >>> splitter = ModuleSplitter({"qkv_proj": {"q_proj": 4, "k_proj": 2, "v_proj": 2}})
    >>> (split,) = splitter.fit_transform([Adapter(blocks)])
    >>> {name: info.d_out for name, info in split.infos.items() if name.startswith("blocks.1.")}
    {'blocks.1.q_proj': 4, 'blocks.1.k_proj': 2, 'blocks.1.v_proj': 2}
    """

    method = "split"

    def __init__(self, parts: Parts | None = None) -> None:
        self.parts = parts

    def _function(self) -> Callable[[Adapter, Parts], Adapter]:
        return split_modules

    def _ends(self) -> dict[str, str]:
        return {fused: fused for fused in self.parts or {}}
