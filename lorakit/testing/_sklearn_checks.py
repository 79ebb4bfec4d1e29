"""scikit-learn's own checks: those that need no data are run; for each of the others, what replaces it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils import estimator_checks as sklearn_checks

_RUN = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
)

_ARRAYS = "adapters are not arrays; LoraFactors refuses all but floating-point numbers when an adapter is made"
_SPARSE = "adapters are not arrays, and never sparse; the tags say that arrays are not accepted"
_COLUMNS = "an AdapterSet has no columns, so no n_features_in_; check_fit_returns_self asks for n_adapters_in_"
SKIPPED_SKLEARN_CHECKS: dict[str, str] = {
    "check_array_api_input": "adapters are no arrays; tests/scikit_learn has array_api_dispatch=True",
    "check_complex_data": _ARRAYS,
    "check_dict_unchanged": "check_fitted_state",
    "check_dont_overwrite_parameters": "check_fitted_state",
    "check_dtype_object": _ARRAYS,
    "check_estimator_sparse_array": _SPARSE,
    "check_estimator_sparse_matrix": _SPARSE,
    "check_estimator_sparse_tag": _SPARSE,
    "check_estimators_dtypes": "check_dtypes and, for transformers, check_transformer_keeps",
    "check_estimators_empty_data_messages": "check_bad_input and, for transformers, check_transformer_bad_input",
    "check_estimators_fit_returns_self": "check_fit_returns_self",
    "check_estimators_nan_inf": "check_not_finite; a transformer may leave what it does not compute with as it is",
    "check_estimators_overwrite_params": "check_input_unchanged",
    "check_estimators_pickle": "check_pickle",
    "check_estimators_unfitted": "check_transform_never_merges; the others need no fit",
    "check_f_contiguous_array_estimator": "check_origin, where the factors of one side are no contiguous tensors",
    "check_fit1d": "check_bad_input and, for transformers, check_transformer_bad_input",
    "check_fit2d_1feature": "check_deterministic fits on one module",
    "check_fit2d_1sample": "check_one_adapter",
    "check_fit2d_predict1d": "check_bad_input and, for transformers, check_transformer_bad_input",
    "check_fit_check_is_fitted": "check_fitted_state",
    "check_fit_idempotent": "check_refit",
    "check_fit_score_takes_y": "check_y_is_ignored",
    "check_methods_sample_order_invariance": "check_adapter_order for mergers, check_pruner_stateless for pruners",
    "check_methods_subset_invariance": "check_transform_never_merges for mergers, check_pruner_stateless for pruners",
    "check_n_features_in": _COLUMNS,
    "check_n_features_in_after_fitting": _COLUMNS,
    "check_pipeline_consistency": "check_in_pipeline and check_transformer_in_pipelines",
    "check_positive_only_tag_during_fit": "no method asks for positive numbers",
    "check_readonly_memmap_input": "check_input_unchanged and check_origin, which reads a file",
    "check_transformer_data_not_an_array": "check_fit_returns_self, with a plain list",
    "check_transformer_general": "check_fit_transform",
    "check_transformer_n_iter": "n_iter_ is a dict by module; the tests of LegoMerger compare it with max_iter",
    "check_transformer_preserve_dtypes": "check_dtypes and, for transformers, check_transformer_keeps",
    "check_transformers_unfitted": "check_transform_never_merges",
    "check_transformers_unfitted_stateless": "check_pruner_stateless and check_transformer_deterministic",
}


def yielded_by_sklearn(estimator: BaseEstimator) -> set[str]:
    """Return the names of the checks that scikit-learn would run on an estimator like this one that took arrays.

    Parameters
    ----------
    estimator : estimator
        An unfitted instance. scikit-learn yields almost no checks for estimators that take no arrays; so a subclass is
        asked that has the tag of one that takes them.
    """
    cls = type(estimator)

    class OnArrays(cls):  # type: ignore[misc, valid-type]
        def __sklearn_tags__(self) -> Any:
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    asked = OnArrays(**estimator.get_params(deep=False))
    return {_name(check) for _, check in sklearn_checks.estimator_checks_generator(asked)}


def _name(check: Any) -> str:
    return _name(check.func) if isinstance(check, partial) else check.__name__


def _bound(name: str) -> Callable[[Any], None]:
    check = getattr(sklearn_checks, name)

    def run(estimator: Any) -> None:
        check(type(estimator).__name__, estimator)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"scikit-learn's {name}."
    return run


def _known() -> Iterator[Callable[[Any], None]]:
    return (_bound(name) for name in _RUN if hasattr(sklearn_checks, name))  # older releases lack some


SKLEARN_CHECKS: tuple[Callable[[Any], None], ...] = tuple(_known())
