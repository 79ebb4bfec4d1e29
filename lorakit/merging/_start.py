"""What a training starts from: the usual merge, or one that there is."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import IncompatibleAdaptersError, ParameterError
from ..factors import LoraFactors
from ..linalg import truncate
from .tsv import TSVMerger

LONGEST = 1.4  # norm of a start, in mean norms of the adapters


class LongTSV(TSVMerger):
    """TSV at the norm that it comes at, in each module at most LONGEST times the mean norm of the adapters.

    Several adapters that differ add up to more than one of them, and a training keeps more if it begins there. Of one
    adapter, or of copies, the merge is as long as each, and stays so.
    """

    def _matching_scale(self, norms: np.ndarray, weights: np.ndarray) -> float:
        return min(1.0, super()._matching_scale(norms, weights))


def usual_start() -> LongTSV:
    """Return the merger that a training starts from where none is given."""
    return LongTSV(scale="match", scale_target=LONGEST)


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
