"""Base classes of the estimators: validate, loop over modules, store. A method fills in one hook."""

from .._listing import GAUGES
from ._merger import BaseMerger
from ._pruner import BasePruner
from ._results import OVERLAP, Learned, Merge, leading_msus
from ._transformer import BaseTransformer

__all__ = ["GAUGES", "OVERLAP", "BaseMerger", "BasePruner", "BaseTransformer", "Learned", "Merge", "leading_msus"]
