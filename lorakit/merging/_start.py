"""A merge that there is, as the start of a training."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import IncompatibleAdaptersError, ParameterError
from ..factors import LoraFactors
from ..linalg import truncate


def cut_start(start: Adapter, X: AdapterSet, k: Any) -> Adapter:
    """Cut a merge to a rank.

    Parameters
    ----------
    start : Adapter
        The merge.
    X : AdapterSet
        The adapters that it is a merge of.
    k : int or None
        Rank; None leaves it as it is.

    Raises
    ------
    ParameterError
        If ``k`` asks for a rank to be chosen.
    IncompatibleAdaptersError
        If the merge does not have the modules of the adapters.
    """
    if k is not None and not isinstance(k, Integral):
        raise ParameterError(
            f"got k={k!r}, and start={start.name!r}, an Adapter, which is cut to one rank",
            expected="an int, or None to keep its rank",
            remedy="cut it with SVDPruner first, and leave k out",
        )
    if different := set(start) ^ set(X.module_names):
        module = min(different)
        raise IncompatibleAdaptersError(
            f"{'has' if module in start else 'lacks'} the module {module!r}, unlike the adapters that are merged",
            adapters=[start.name],
            module=module,
            remedy="start from a merge of these adapters",
        )
    modules = {m: f if k is None else LoraFactors(*truncate(f, min(int(k), f.rank))) for m, f in start.items()}
    return Adapter(modules, name=start.name, kinds={m: info.kind for m, info in start.infos.items()})
