"""Scale every adapter's update to a common norm."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from .._execution import map_modules, read_module
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..base import BaseTransformer
from ..factors import LoraFactors
from ..linalg import frobenius_norm


class NormBalancer(BaseTransformer):
    r"""Give the updates of all adapters one Frobenius norm; put it before a merger in a pipeline.

    .. math:: W_i' = \frac{t}{\|W_i\|}\, W_i

    Adapters that were trained for longer, or with a larger alpha, have larger updates, and dominate a merge. After this
    step all adapters count equally, with any merger. A zero update stays zero. An adapter that lacks a module does not
    count in that module's mean norm. The mean is over the adapters that are passed together.

    Parameters
    ----------
    scope : {'module', 'model'}, default='module'
        What gets the common norm: the update of each module by itself, or an adapter's update of the whole model.
        'model' keeps the proportions between an adapter's modules.
    target : {'mean', 'geometric'} or float, default='mean'
        The common norm t: the arithmetic or the geometric mean of the adapters' norms, or a number.
    n_jobs : int, default=None
        Modules changed at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the algebra; None is the CPU.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    PicoDamper : Damps the directions that adapters share.

    Examples
    --------
    >>> from lorakit import NormBalancer
    >>> from lorakit.testing import make_adapters
    >>> adapters = NormBalancer(target=2.0).fit_transform(make_adapters(ranks=(4, 8), random_state=0))
    >>> [round(float(adapter["layer.0"].delta().norm()), 4) for adapter in adapters]
    [2.0, 2.0]
    """

    method = "balance"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTransformer._parameter_constraints,
        "scope": [StrOptions({"module", "model"})],
        "target": [StrOptions({"mean", "geometric"}), Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        *,
        scope: str = "module",
        target: Any = "mean",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.scope = scope
        self.target = target
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _prepare(self, X: AdapterSet) -> list[float] | None:
        """Return each adapter's factor where it is one for the whole model."""
        if self.scope == "module":
            return None
        task = partial(_norms, device=self.device)
        norms = np.array(map_modules(task, X, n_jobs=self.n_jobs, verbose=self.verbose))  # (n_modules, n_adapters)
        return self._factors(np.sqrt((norms**2).sum(axis=0)))

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        factors = prepared or self._factors(np.array([frobenius_norm(update).item() for update in updates]))
        return [update.scaled(factor) for update, factor in zip(updates, factors, strict=True)]

    def _factors(self, norms: np.ndarray) -> list[float]:
        alive = norms > 0
        if not alive.any():
            return [1.0] * len(norms)
        if self.target == "mean":
            target = norms[alive].mean()
        elif self.target == "geometric":
            target = np.exp(np.log(norms[alive]).mean())
        else:
            target = self.target
        return np.divide(target, norms, out=np.ones_like(norms), where=alive).tolist()


def _norms(X: AdapterSet, module: str, *, device: str | None) -> list[float]:
    return [frobenius_norm(update).item() for update in read_module(X, module, device)]
