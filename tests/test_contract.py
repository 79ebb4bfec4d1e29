"""Every public estimator keeps the contract, in every variant that changes its way through the code."""

import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans

from lorakit import LegoMerger, LegoPruner, ModuleSelector, NormBalancer, PicoDamper, TiesMerger
from lorakit.discovery import all_estimators
from lorakit.testing import parametrize_with_checks

MERGERS = [
    *(cls() for cls in all_estimators("merger").values() if not cls.needs_data),  # those are tested with theirs
    TiesMerger(space="factors"),
    TiesMerger(convention="official"),
    LegoMerger(align="svd"),
    LegoMerger(align="balance", norm="l2"),
    LegoMerger(norm=None, output_scale=None),
    LegoMerger(metric="cosine"),
    LegoMerger(metric="sign_invariant"),
    LegoMerger(metric="sign_invariant", clusterer=AgglomerativeClustering()),
    LegoMerger(clusterer=KMeans()),
    LegoMerger(backend="torch"),
]
PRUNERS = [
    *(cls() for cls in all_estimators("pruner").values()),
    LegoPruner(align="svd"),
    LegoPruner(metric="sign_invariant"),
    LegoPruner(clusterer=AgglomerativeClustering()),
    LegoPruner(backend="torch"),
]
TRANSFORMERS = [
    *(cls() for cls in all_estimators("transformer").values()),
    NormBalancer(scope="model", target="geometric"),
    PicoDamper(align=None, restore_norm=False),
    ModuleSelector(["*.1", "none"], exclude="*.0"),
]


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")  # of rules that trim all at a low k
@parametrize_with_checks([*MERGERS, *PRUNERS, *TRANSFORMERS])
def test_contract(estimator, check):
    check(estimator)
