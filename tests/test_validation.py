"""Checks on sets of adapters and on weights; what estimators refuse is in the contract."""

from unicodedata import normalize

import numpy as np
import pytest

from lorakit import Adapter, AdapterSet
from lorakit._validation import check_adapters, check_equal_ranks, check_weights
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.testing import make_adapters

A, B, C = make_adapters(ranks=(2, 3, 4), random_state=0)


def test_a_list_becomes_a_set():
    assert isinstance(check_adapters([A, B]), AdapterSet)
    X = AdapterSet([A, B])
    assert check_adapters(X) is X


def test_different_layouts():
    conv = Adapter(dict(B), name="conv", kinds={"layer.0": ModuleKind("conv", (2, 2))})
    with pytest.raises(IncompatibleAdaptersError, match=r"'layer.0'.*linear.*'task0'.*conv 2 2.*'conv'"):
        check_adapters([A, conv])


def test_prefix_drift_is_explained():
    longer = B.rename_modules(lambda m: f"model.{m}")
    with pytest.raises(IncompatibleAdaptersError, match=r"removeprefix\('model\.'\)"):
        check_adapters([longer, A])
    with pytest.raises(IncompatibleAdaptersError, match=r"'model\.' \+ m"):
        check_adapters([A, longer])


def test_no_common_module_and_no_prefix():
    other = B.rename_modules(lambda m: m.replace("layer", "block"))
    with pytest.raises(IncompatibleAdaptersError, match=r"'task0' shares no module.*'layer.0'.*'block.0'"):
        check_adapters([A, other])


def test_one_name_in_two_forms_of_unicode():
    """Composed and decomposed characters look the same; two adapters may come from file systems that differ in them."""
    composed, decomposed = "couche_\u00e9.0", "couche_e\u0301.0"
    one, other = (B.rename_modules(lambda m, n=name: m.replace("layer.0", n)) for name in (composed, decomposed))
    with pytest.raises(IncompatibleAdaptersError, match=r"'couche_\\xe9\.0' of '\w+' and 'couche_e\\u0301\.0' of.*NFC"):
        check_adapters([one, other.renamed("other")])
    same = other.rename_modules(lambda m: normalize("NFC", m))
    assert check_adapters([one, same.renamed("other")]).module_names == tuple(sorted(one))
    both = Adapter({**one, **other})
    with pytest.raises(IncompatibleAdaptersError, match="two forms of Unicode"):
        check_adapters([both, one.renamed("other")])
    assert check_adapters([both])  # alone it merges with nothing


def test_families_do_not_mix():
    kohya = B.with_provenance(format="kohya")
    with pytest.raises(IncompatibleAdaptersError, match="'task0' is peft, 'task1' is kohya"):
        check_adapters([A, kohya])


def test_base_models_that_differ_warn():
    named = [a.with_provenance(base_model=name) for a, name in zip((A, B, C), ("llama", "mistral", None), strict=True)]
    with pytest.warns(UserWarning, match="'llama' .*'mistral'"):
        check_adapters(named)
    check_adapters([named[0], named[2]])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ([1, 1, 2], [0.25, 0.25, 0.5]),
        (np.array([0.0, 0.0, 5.0]), [0, 0, 1]),
        ({"a": 1, "c": 3, "b": 0, "unused": 9}, [0.25, 0, 0.75]),
        ([1, -1, 0], [0.5, -0.5, 0]),
    ],
    ids=str,
)
def test_weights(weights, expected):
    np.testing.assert_allclose(check_weights(weights, ["a", "b", "c"], signed=True), expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"one number for each of 3.*\(2,\)"),
        ([[1, 2, 3]], r"\(1, 3\)"),
        ([1, np.nan, 1], "finite"),
        ([np.inf, 1, 1], "finite"),
        ([0, 0, 0], "not all zero"),
        ({"a": 1, "b": 1}, r"\['c'\]"),
        ([1, -1, 1], "negative"),
    ],
    ids=str,
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights, ["a", "b", "c"], signed=False)


def test_equal_ranks_of_adapters_that_share_a_name():
    same = [a.renamed("adapter") for a in (A, B)]
    with pytest.raises(IncompatibleAdaptersError, match="'adapter': 2, 'adapter': 3"):
        check_equal_ranks(AdapterSet(same))
    check_equal_ranks(AdapterSet([A, A]))


def test_an_adapter_without_modules_is_named():
    with pytest.raises(ValueError, match="'bare' has no modules"):
        check_adapters([A, Adapter({}, name="bare")])
