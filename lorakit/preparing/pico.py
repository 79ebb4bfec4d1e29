"""Pico: damp the output directions that many adapters share, before any merge."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from .._sklearn import Interval, StrOptions
from ..base import GAUGES, BaseTransformer
from ..factors import LoraFactors
from ..linalg import align_svd, damp_shared_outputs, frobenius_norm


class PicoDamper(BaseTransformer):
    r"""Damp the output directions that many adapters share (Pico) [1]_; put it before a merger in a pipeline.

    Adapters that were trained separately share a few output directions. A merge adds up what all adapters write there,
    and divides what only one adapter writes by their number. So the B of all T adapters that have the module are
    stacked, :math:`[B_1 \dots B_T] = U \Sigma V^T`, and every direction is damped by its share of the energy:

    .. math:: s_j = \frac{\sigma_j^2}{\sum_k \sigma_k^2}, \qquad \alpha_j = \frac{1}{1 + \gamma (T - 1) s_j}, \qquad
              B_i' = (I + U\,\mathrm{diag}(\alpha - 1)\,U^T)\, B_i

    with :math:`\gamma` = ``strength``. A direction that holds all the energy shrinks to :math:`1 / T`; one that holds
    little hardly changes. A is not changed. The operator is applied by solving one linear system whose size is the sum
    of the ranks, without an SVD of the stack. A single adapter is not changed.

    Parameters
    ----------
    strength : float, default=1.0
        :math:`\gamma`. 1 is the paper, 0 changes nothing.
    align : {'svd'} or None, default='svd'
        Which B the formula takes. 'svd': :math:`U_i \sqrt{S_i}` of each update's own SVD, so that the
        result depends on the updates alone. None is the paper: the B of the files, whose energy depends on how each
        file factors its update.
    restore_norm : bool, default=True
        Scale each damped update to the norm that it had, module by module, as the authors' program does. The paper's
        text rescales the merged update instead, to the mean norm of the adapters: add ``scale='match'`` to the merger.
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
    NormBalancer : Gives adapters a common norm.

    References
    ----------
    .. [1] Tang and Yang, "Crowded in B-Space: Calibrating Shared Directions for LoRA Merging", arXiv 2604.16826.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from lorakit import PicoDamper, SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> pipeline = make_pipeline(PicoDamper(), SVDMerger(k=6, scale="match"))
    >>> pipeline.fit_transform(make_adapters(ranks=(4, 8), random_state=0))
    AdapterSet(['svd' r=6], modules=2, dtype=float32)
    """

    method = "pico"
    paper = "arXiv 2604.16826"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTransformer._parameter_constraints,
        "strength": [Interval(Real, 0, None, closed="left")],
        "align": [StrOptions({"svd"}), None],
        "restore_norm": ["boolean"],
    }

    def __init__(
        self,
        *,
        strength: float = 1.0,
        align: str | None = "svd",
        restore_norm: bool = True,
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.strength = strength
        self.align = align
        self.restore_norm = restore_norm
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def invariances(self) -> frozenset[str]:
        """Changes of the factors that do not change the result: all; with ``align=None`` order and signs of MSUs."""
        return frozenset(GAUGES if self.align == "svd" else ("permutation", "sign"))

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        norms = [frobenius_norm(update).item() for update in updates]
        active = [update for update, norm in zip(updates, norms, strict=True) if norm]  # a zero update shares nothing
        if len(active) < 2:
            return updates
        bases = [align_svd(update)[1] if self.align == "svd" else update.B for update in active]
        damped = iter(damp_shared_outputs(active, bases, self.strength))
        return [self._damped(u, next(damped), norm) if norm else u for u, norm in zip(updates, norms, strict=True)]

    def _damped(self, update: LoraFactors, b: Any, norm: float) -> LoraFactors:
        factors = LoraFactors(update.A, b)
        if not self.restore_norm:
            return factors
        # on B alone: A is left as it is
        return LoraFactors(update.A, b * (norm / frobenius_norm(factors).item()))
