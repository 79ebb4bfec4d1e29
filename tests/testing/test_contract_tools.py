"""parametrize_with_checks and estimator_checks, and that scikit-learn's checks are all answered for."""

import re
import subprocess
import sys

import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge

from lorakit import LegoMerger, LegoPruner, ModuleSelector, NormBalancer, PicoDamper, SVDMerger, SVDPruner
from lorakit.discovery import all_estimators
from lorakit.testing import (
    MERGER_CHECKS,
    PRUNER_CHECKS,
    SKIPPED_SKLEARN_CHECKS,
    TRANSFORMER_CHECKS,
    estimator_checks,
    parametrize_with_checks,
)
from lorakit.testing._sklearn_checks import SKLEARN_CHECKS, yielded_by_sklearn

ALL_CHECKS = {*MERGER_CHECKS, *PRUNER_CHECKS, *TRANSFORMER_CHECKS}


def argvalues(mark):
    return mark.mark.args[1]


@pytest.mark.parametrize(
    ("estimator", "checks"),
    [(SVDMerger(), MERGER_CHECKS), (SVDPruner(), PRUNER_CHECKS), (NormBalancer(), TRANSFORMER_CHECKS)],
    ids=["merger", "pruner", "transformer"],
)
def test_each_kind_has_its_checks(estimator, checks):
    pairs = list(estimator_checks(estimator))
    assert [check for _, check in pairs] == list(checks)
    instances = [instance for instance, _ in pairs]
    assert estimator not in instances
    assert len(set(map(id, instances))) == len(pairs)  # one cannot spoil another


def test_every_check_has_a_name_and_says_what_is_promised():
    assert len({check.__name__ for check in ALL_CHECKS}) == len(ALL_CHECKS)
    for check in ALL_CHECKS:
        assert check.__name__.startswith("check_")
        assert check.__doc__, check.__name__


def test_ids_name_the_estimator_and_the_check():
    mark = parametrize_with_checks([LegoMerger(k=4, weights=[1, 2, 3]), SVDPruner()])
    ids = [param.id for param in argvalues(mark)]
    assert len(ids) == len(set(ids)) == len(MERGER_CHECKS) + len(PRUNER_CHECKS)
    assert ids[0] == "LegoMerger(k=4, weights=[1, 2, 3])-check_estimator_cloneable"
    assert not any("\n" in name for name in ids)


def test_expected_failures_are_marked():
    merger, pruner = SVDMerger(), SVDPruner()
    wanted = {"check_scale": "for a test"}
    by_dict = parametrize_with_checks([merger, pruner], expected_failed_checks={merger: wanted}, xfail_strict=True)
    by_function = parametrize_with_checks(
        [merger, pruner], expected_failed_checks=lambda e: wanted if isinstance(e, SVDMerger) else None
    )
    for mark, kwargs in ((by_dict, {"strict": True}), (by_function, {})):
        marked = [param for param in argvalues(mark) if param.marks]
        assert [param.id for param in marked] == ["SVDMerger()-check_scale"]
        assert marked[0].marks[0].name == "xfail"
        assert marked[0].marks[0].kwargs == {"reason": "for a test", **kwargs}


def test_expected_failures_that_cannot_be():
    with pytest.raises(ValueError, match=r"SVDPruner\(\) has no checks \['check_scale'\]"):
        parametrize_with_checks([SVDPruner()], expected_failed_checks=lambda e: {"check_scale": "no such promise"})
    with pytest.raises(ValueError, match="not among the estimators"):
        parametrize_with_checks([SVDPruner()], expected_failed_checks={SVDPruner(): {"check_pruned": "another one"}})


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match=r"got the class SVDMerger; pass SVDMerger\(\)"):
        estimator_checks(SVDMerger)
    for stranger in (Ridge(), BaseEstimator(), "svd"):
        with pytest.raises(TypeError, match="BaseMerger"):
            parametrize_with_checks([stranger])


def test_no_pytest_is_needed():
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from lorakit import SVDPruner; from lorakit.testing import check_pruner; check_pruner(SVDPruner())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("strategy", ["adapter_sets", "lora_factors", "gauges", "adapter_weights"])
def test_strategies_say_how_to_install_hypothesis(strategy, monkeypatch):
    import lorakit.testing

    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(
        ImportError, match=rf"{strategy} needs the package hypothesis: pip install 'lorakit\[testing\]'"
    ):
        getattr(lorakit.testing, strategy)(*([3] if strategy == "adapter_weights" else []))


ESTIMATORS = [
    *(cls() for kind in ("merger", "pruner", "transformer") for cls in all_estimators(kind).values()),
    ModuleSelector("*.1"),
    PicoDamper(strength=0.5),
    LegoPruner(k=2),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_every_check_of_scikit_learn_is_run_or_answered_for(estimator):
    run = {check.__name__ for check in SKLEARN_CHECKS}
    assert not run & set(SKIPPED_SKLEARN_CHECKS)
    yielded = yielded_by_sklearn(estimator)
    assert len(yielded) > 30
    assert yielded <= run | set(SKIPPED_SKLEARN_CHECKS)


def test_the_answers_name_checks_that_there_are():
    known = {check.__name__ for check in ALL_CHECKS}
    for name, answer in SKIPPED_SKLEARN_CHECKS.items():
        assert set(re.findall(r"\bcheck_\w+", answer)) <= known, name
