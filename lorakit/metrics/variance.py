"""Variance of the outputs of a merged adapter, and how it grows with the rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._execution import map_modules, read_module
from .._validation import check_adapters
from ..activations import Gram
from ..adapter_set import AdapterSet
from ..adapters import Adapter

Moments = Mapping[str, Gram | ArrayLike]


@dataclass(frozen=True, eq=False)
class OutputVariance:
    """Variances of the outputs of merges at several ranks, and of the adapters that were merged.

    Parameters
    ----------
    ks : ndarray of shape (n_ks,)
        Ranks, ascending.
    modules : tuple of str
        The modules.
    merged : ndarray of shape (n_ks, n_modules)
        Variance of one output of the merge of each rank at each module.
    adapters : ndarray of shape (n_adapters, n_modules)
        Variance of one output of each adapter; 0 where the adapter lacks the module.
    """

    ks: NDArray[Any]
    modules: tuple[str, ...]
    merged: NDArray[np.float64]
    adapters: NDArray[np.float64]

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Variance of each merge over the mean of the adapters', (n_ks, n_modules); NaN where that mean is zero."""
        mean = np.broadcast_to(self.adapters.mean(axis=0), self.merged.shape)
        return np.divide(self.merged, mean, out=np.full_like(self.merged, np.nan), where=mean > 0)


def output_variance(adapter: Adapter, *, grams: Moments | None = None, n_jobs: int | None = None) -> dict[str, float]:
    r"""Variance of one output that an adapter adds, module by module.

    It is the mean square over the outputs of a module, whose mean is taken to be zero:
    :math:`\operatorname{tr}(B A G A^T B^T) / d_{out}` for inputs of second moments :math:`G`.

    Parameters
    ----------
    adapter : Adapter
        Of any rank.
    grams : mapping of module to Gram or array of shape (d_in, d_in), default=None
        Second moments of the modules' inputs, from :func:`lorakit.collect_grams`. None stands for independent inputs of
        variance 1, so that the variance is :math:`\|B A\|^2 / d_{out}`, and no data are needed.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    dict of str to float
        By module.

    Raises
    ------
    ValueError
        If ``grams`` lack a module, or have it in another width, or a weight is not finite.

    Examples
    --------
    >>> from lorakit.metrics import output_variance
    >>> from lorakit.testing import make_adapters
    >>> (task,) = make_adapters(1, ranks=4, random_state=0)
    >>> {module: round(variance) for module, variance in output_variance(task).items()}
    {'layer.0': 112, 'layer.1': 78}
    """
    X = check_adapters([adapter])
    found = _variances(X, grams, n_jobs)
    return dict(zip(X.module_names, found[0].tolist(), strict=True))


def output_variance_path(
    path: Mapping[Any, Any],
    adapters: AdapterSet | Iterable[Adapter],
    *,
    grams: Moments | None = None,
    n_jobs: int | None = None,
) -> OutputVariance:
    r"""Variance of the outputs of merges at several ranks, and of the adapters that were merged.

    Without output reweighting the variance of a LoRA-LEGO merge grows with its rank; the factor
    :math:`\sqrt{\bar r / k}` is meant to keep it constant.

    Parameters
    ----------
    path : mapping of int to fitted merger or Adapter
        What :func:`lorakit.rank_path` returns, or merged adapters by rank.
    adapters : AdapterSet or list of Adapter
        The adapters that were merged.
    grams : mapping of module to Gram or array of shape (d_in, d_in), default=None
        As in :func:`output_variance`.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    OutputVariance

    Raises
    ------
    TypeError
        If a value of ``path`` is neither an adapter nor has one in ``merged_``.
    ValueError
        If ``path`` is empty or has other modules than the adapters, or for the reasons that :func:`output_variance`
        names.

    Examples
    --------
    >>> from lorakit import LegoMerger, rank_path
    >>> from lorakit.metrics import output_variance_path
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(4, ranks=4, random_state=0)
    >>> raw = LegoMerger(output_scale=None, random_state=0)
    >>> output_variance_path(rank_path(raw, adapters, [4, 8, 16]), adapters).ratio.mean(axis=1).round(1)
    array([1. , 2.4, 3.9])
    >>> path = rank_path(raw.set_params(output_scale="sqrt"), adapters, [4, 8, 16])
    >>> output_variance_path(path, adapters).ratio.mean(axis=1).round(1)
    array([1. , 1.2, 1. ])
    """
    if not path:
        raise ValueError("path must hold at least one merge; got none")
    ks = sorted(path)
    merged = [_adapter_of(path[k], k) for k in ks]
    X = check_adapters(adapters)
    lacking = {module for adapter in merged for module in set(adapter) ^ set(X.module_names)}
    if lacking:
        raise ValueError(
            f"the merges and the adapters differ in {len(lacking)} modules, first {min(lacking)!r}; pass the adapters "
            "that were merged"
        )
    found = _variances(AdapterSet([*X, *merged]), grams, n_jobs)
    return OutputVariance(np.array(ks), X.module_names, found[len(X) :], found[: len(X)])


def _adapter_of(value: Any, k: Any) -> Adapter:
    found = getattr(value, "merged_", value)
    if not isinstance(found, Adapter):
        raise TypeError(f"the path has a {type(value).__name__} at {k!r}; expected a fitted merger or an Adapter")
    return found


def _variances(X: AdapterSet, grams: Moments | None, n_jobs: int | None) -> NDArray[np.float64]:
    """Variances of shape (n_adapters, n_modules)."""
    if grams is not None:
        _check_grams(grams, X)
    task = partial(_module_variances, grams=grams)
    return np.stack(map_modules(task, X, n_jobs=n_jobs, verbose=0), axis=1)


def _module_variances(X: AdapterSet, module: str, *, grams: Moments | None) -> NDArray[np.float64]:
    gram = None if grams is None else _gram(grams[module])
    found = []
    for a, b in read_module(X, module, None):
        a, b = a.double(), b.double()
        inputs = a @ a.mT if gram is None else _moments(a, gram.tensors())  # (r, r)
        found.append(((b.mT @ b) * inputs).sum().item() / len(b))
    return np.maximum(found, 0)


def _moments(a: torch.Tensor, gram: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return ``A G A^T``."""
    if isinstance(gram, tuple):
        diagonal, factor = gram
        thin = factor @ a.mT
        return (a * diagonal) @ a.mT + thin.mT @ thin
    return a @ gram @ a.mT


def _gram(value: Gram | ArrayLike) -> Gram:
    return value if isinstance(value, Gram) else Gram(1, np.asarray(value))


def _check_grams(grams: Moments, X: AdapterSet) -> None:
    for adapter in X:
        for module, info in adapter.infos.items():
            if module not in grams:
                raise ValueError(
                    f"grams lack module {module!r} of {adapter.name!r}; they have {list(grams)[:3]}; collect them with "
                    "collect_grams on an adapter that has all the modules"
                )
            if (width := _gram(grams[module]).d_in) != info.d_in:
                raise ValueError(
                    f"grams have width {width} at module {module!r}, expected {info.d_in}, its d_in in {adapter.name!r}"
                )
