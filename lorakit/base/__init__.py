"""Base classes of the estimators: validate, loop over modules, store. A method fills in one hook."""

from ._estimator import GAUGES
from ._merger import BaseMerger, Learned, leading_msus
from ._pruner import BasePruner
from ._transformer import BaseTransformer

__all__ = ["GAUGES", "BaseMerger", "BasePruner", "BaseTransformer", "Learned", "leading_msus"]
