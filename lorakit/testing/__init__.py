"""For tests of code that uses lorakit: random adapters, hypothesis strategies, the contract of estimators."""

from ._sklearn_checks import SKIPPED_SKLEARN_CHECKS
from .adapters import make_adapters
from .changes import Gauge
from .contract import (
    MERGER_CHECKS,
    PRUNER_CHECKS,
    TRANSFORMER_CHECKS,
    check_merger,
    check_pruner,
    check_transformer,
    estimator_checks,
    parametrize_with_checks,
)
from .strategies import adapter_sets, adapter_weights, gauges, lora_factors

__all__ = [
    "MERGER_CHECKS",
    "PRUNER_CHECKS",
    "SKIPPED_SKLEARN_CHECKS",
    "TRANSFORMER_CHECKS",
    "Gauge",
    "adapter_sets",
    "adapter_weights",
    "check_merger",
    "check_pruner",
    "check_transformer",
    "estimator_checks",
    "gauges",
    "lora_factors",
    "make_adapters",
    "parametrize_with_checks",
]
