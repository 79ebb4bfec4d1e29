"""The contract of estimators: what every one of a kind promises, as checks that take an unfitted instance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sklearn.base import clone

from ..base import BaseMerger, BasePruner, BaseTransformer
from ._common_checks import (
    check_bad_input,
    check_deterministic,
    check_dtypes,
    check_html,
    check_input_unchanged,
    check_pickle,
    check_set_output,
)
from ._fit_checks import (
    check_fit_returns_self,
    check_fit_transform,
    check_fitted_state,
    check_float64,
    check_gauges,
    check_not_finite,
    check_one_adapter,
    check_origin,
    check_refit,
    check_y_is_ignored,
)
from ._merger_checks import (
    check_adapter_order,
    check_copies,
    check_in_pipeline,
    check_left_out,
    check_merged,
    check_missing_module,
    check_negative_weights,
    check_rank_path,
    check_scale,
    check_score,
    check_strengths,
    check_transform_never_merges,
    check_weights,
    check_zero,
)
from ._sklearn_checks import SKLEARN_CHECKS
from ._step_checks import (
    check_pruned,
    check_pruner_idempotent,
    check_pruner_stateless,
    check_transformer_bad_input,
    check_transformer_deterministic,
    check_transformer_in_pipelines,
    check_transformer_keeps,
)

Check = Callable[[Any], None]
ExpectedFailures = Mapping[Any, Mapping[str, str]] | Callable[[Any], Mapping[str, str] | None] | None

_ALL: tuple[Check, ...] = (
    *SKLEARN_CHECKS,
    check_input_unchanged,
    check_fit_returns_self,
    check_fit_transform,
    check_y_is_ignored,
    check_fitted_state,
    check_refit,
    check_one_adapter,
    check_origin,
    check_gauges,
    check_float64,
    check_pickle,
    check_html,
    check_set_output,
)
_COMMON: tuple[Check, ...] = (*_ALL, check_bad_input, check_deterministic, check_dtypes, check_not_finite)
MERGER_CHECKS: tuple[Check, ...] = (
    *_COMMON,
    check_merged,
    check_transform_never_merges,
    check_score,
    check_adapter_order,
    check_weights,
    check_strengths,
    check_left_out,
    check_copies,
    check_negative_weights,
    check_zero,
    check_scale,
    check_missing_module,
    check_rank_path,
    check_in_pipeline,
)
PRUNER_CHECKS: tuple[Check, ...] = (
    *_COMMON,
    check_pruned,
    check_pruner_stateless,
    check_pruner_idempotent,
    check_transformer_in_pipelines,
)
TRANSFORMER_CHECKS: tuple[Check, ...] = (
    *_ALL,
    check_transformer_bad_input,
    check_transformer_deterministic,
    check_transformer_keeps,
    check_transformer_in_pipelines,
)


def _checks_of(estimator: Any) -> tuple[Check, ...]:
    if isinstance(estimator, type):
        raise TypeError(f"checks are of instances, got the class {estimator.__name__}; pass {estimator.__name__}()")
    for base, checks in (
        (BaseMerger, MERGER_CHECKS),
        (BasePruner, PRUNER_CHECKS),
        (BaseTransformer, TRANSFORMER_CHECKS),
    ):
        if isinstance(estimator, base):
            return checks
    raise TypeError(
        f"{estimator!r} derives from none of BaseMerger, BasePruner and BaseTransformer of lorakit.base, "
        "so that no contract is known for it"
    )


def estimator_checks(estimator: BaseMerger | BaseTransformer) -> Iterator[tuple[Any, Check]]:
    """Yield the checks of the contract for an estimator's kind; pytest is not needed.

    The checks make adapters named ``task0``, ``task1``, ... (and ``lacking``), of modules ``layer.0`` and ``layer.1``
    with d_in = 24 and d_out = 16, and of ranks 3 and 5, or of rank 5 alone if ``needs_equal_ranks``.

    Parameters
    ----------
    estimator : BaseMerger, BasePruner or BaseTransformer
        An unfitted instance.

    Yields
    ------
    estimator
        A clone, for this check alone.
    check : callable
        ``check(estimator)`` raises an error if the promise is broken. ``check.__name__`` names it, its docstring says
        what is promised.

    Raises
    ------
    TypeError
        For a class instead of an instance, and for estimators of other kinds.

    Examples
    --------
    >>> from lorakit import SVDPruner
    >>> from lorakit.testing import estimator_checks
    >>> for estimator, check in estimator_checks(SVDPruner()):
    ...     check(estimator)
    """
    return ((clone(estimator), check) for check in _checks_of(estimator))


def parametrize_with_checks(
    estimators: Iterable[Any], *, expected_failed_checks: ExpectedFailures = None, xfail_strict: bool | None = None
) -> Any:
    """Decorate a pytest test so that it runs once for each estimator and each check of its contract.

    Parameters
    ----------
    estimators : list of BaseMerger, BasePruner and BaseTransformer
        Unfitted instances, of any kinds.
    expected_failed_checks : callable or dict, default=None
        Which checks an estimator is known to fail, and why: a function from the estimator to a dict of check name to
        reason, or a dict of estimator (one of the instances above) to such a dict. Those are marked ``xfail``.
    xfail_strict : bool, default=None
        Whether a check that was expected to fail and passes is a failure. None leaves it to pytest's configuration.

    Returns
    -------
    pytest.MarkDecorator
        For a test with the arguments ``estimator`` and ``check``.

    Raises
    ------
    TypeError
        For classes instead of instances, and for estimators of other kinds.
    ValueError
        If an expected failure names no check of the estimator, or is of an estimator that is not among those above.

    See Also
    --------
    estimator_checks : The same without pytest.

    Examples
    --------
    >>> from lorakit import LegoMerger, SVDPruner
    >>> from lorakit.testing import parametrize_with_checks
    >>> @parametrize_with_checks([LegoMerger(k=4), SVDPruner()])
    ... def test_contract(estimator, check):
    ...     check(estimator)
    """
    import pytest

    estimators = list(estimators)
    if isinstance(expected_failed_checks, Mapping):
        strangers = [key for key in expected_failed_checks if not any(key is estimator for estimator in estimators)]
        if strangers:
            raise ValueError(f"expected_failed_checks has {strangers}, which are not among the estimators")
        by_identity = {id(estimator): failures for estimator, failures in expected_failed_checks.items()}

        def expected_of(estimator: Any) -> Mapping[str, str]:
            return by_identity.get(id(estimator), {})
    else:

        def expected_of(estimator: Any) -> Mapping[str, str]:
            return (expected_failed_checks(estimator) if expected_failed_checks else None) or {}

    strict: dict[str, Any] = {} if xfail_strict is None else {"strict": xfail_strict}
    params = []
    for estimator in estimators:
        expected = expected_of(estimator)
        if unknown := set(expected) - {check.__name__ for check in _checks_of(estimator)}:
            raise ValueError(f"{_label(estimator)} has no checks {sorted(unknown)}; see lorakit.testing")
        for instance, check in estimator_checks(estimator):
            name = check.__name__
            marks = [pytest.mark.xfail(reason=expected[name], **strict)] if name in expected else []
            params.append(pytest.param(instance, check, id=f"{_label(estimator)}-{name}", marks=marks))
    return pytest.mark.parametrize(("estimator", "check"), params)


def _label(estimator: Any) -> str:
    """Its repr, in one line."""
    return " ".join(repr(estimator).split())


def check_merger(merger: BaseMerger) -> None:
    """Run the contract of mergers on one.

    Parameters
    ----------
    merger : BaseMerger
        An unfitted instance.

    Raises
    ------
    AssertionError
        From the first check that fails; its note names the check.

    Examples
    --------
    >>> from lorakit import SVDMerger
    >>> from lorakit.testing import check_merger
    >>> check_merger(SVDMerger())
    """
    _run(merger, MERGER_CHECKS)


def check_pruner(pruner: BasePruner) -> None:
    """Run the contract of pruners on one.

    Parameters
    ----------
    pruner : BasePruner
        An unfitted instance.

    Raises
    ------
    AssertionError
        From the first check that fails; its note names the check.

    Examples
    --------
    >>> from lorakit import SVDPruner
    >>> from lorakit.testing import check_pruner
    >>> check_pruner(SVDPruner())
    """
    _run(pruner, PRUNER_CHECKS)


def check_transformer(transformer: BaseTransformer) -> None:
    """Run the contract of transformers on one: steps before a merge that give as many adapters as they take.

    Parameters
    ----------
    transformer : BaseTransformer
        An unfitted instance; one that drops modules must keep ``layer.1``.

    Raises
    ------
    AssertionError
        From the first check that fails; its note names the check.

    Examples
    --------
    >>> from lorakit import NormBalancer
    >>> from lorakit.testing import check_transformer
    >>> check_transformer(NormBalancer())
    """
    _run(transformer, TRANSFORMER_CHECKS)


def _run(estimator: Any, checks: tuple[Check, ...]) -> None:
    for check in checks:
        try:
            check(clone(estimator))
        except Exception as error:
            error.add_note(f"{check.__name__} of {_label(estimator)}: {(check.__doc__ or '').splitlines()[0]}")
            raise
