"""AdapterSet: a sequence that scikit-learn can index."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import KFold, LeaveOneOut
from sklearn.utils import _safe_indexing, resample

from lorakit import Adapter, AdapterSet
from lorakit.adapters import Provenance
from lorakit.testing import make_adapters


@pytest.fixture
def adapters():
    return AdapterSet(make_adapters(ranks=(2, 3, 4), random_state=0))


def test_sequence(adapters):
    assert len(adapters) == 3
    assert adapters.shape == (3,)
    assert adapters.ndim == 1
    assert adapters.names == ("task0", "task1", "task2")
    assert [a.name for a in adapters] == list(adapters.names)
    assert adapters[0] in adapters


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (slice(1, None), ("task1", "task2")),
        ([2, 0], ("task2", "task0")),
        (np.array([1, 1]), ("task1", "task1")),
        (np.array([True, False, True]), ("task0", "task2")),
        (["task2", "task0"], ("task2", "task0")),
        (([0, 2], ...), ("task0", "task2")),
        ([], ()),
        (-1, "task2"),
        (np.int64(1), "task1"),
        ("task1", "task1"),
    ],
    ids=str,
)
def test_indexing(adapters, key, names):
    item = adapters[key]
    assert (item.name if isinstance(item, Adapter) else item.names) == names


def test_unknown_names(adapters):
    with pytest.raises(KeyError, match="task0"):
        adapters["nobody"]
    with pytest.raises(KeyError, match="2 adapters are named"):
        adapters[[0, 0]]["task0"]
    with pytest.raises(IndexError):
        adapters[5]


def test_other_objects():
    with pytest.raises(TypeError, match="load_adapters"):
        AdapterSet(["some/path"])
    with pytest.raises(TypeError, match="load_adapters"):
        AdapterSet("some/path")
    with pytest.raises(TypeError, match=r"got a mapping; pass list\(mapping.values\(\)\)"):
        AdapterSet({"task0": make_adapters(1)[0]})
    with pytest.raises(TypeError, match="takes a list of adapters, got int"):
        AdapterSet(3)


def test_shape_is_a_tuple_that_has_no_columns(adapters):
    assert adapters.shape == (3,)
    assert adapters.shape[0] == adapters.shape[-1] == 3
    assert adapters.shape[:1] == (3,)
    assert pickle.loads(pickle.dumps(adapters.shape)) == (3,)
    with pytest.raises(IndexError, match="no columns"):
        adapters.shape[1]


def test_scikit_learn_splits_it(adapters):
    for train, test in [*KFold(3).split(adapters), *LeaveOneOut().split(adapters)]:
        assert isinstance(_safe_indexing(adapters, train), AdapterSet)
        assert len(_safe_indexing(adapters, test)) == 1
    assert isinstance(resample(adapters, random_state=0), AdapterSet)
    assert clone(adapters, safe=False) is adapters


def test_factors_of_a_missing_module(adapters):
    partial = Adapter({"layer.1": adapters[0]["layer.1"]}, name="partial")
    both = AdapterSet([partial, adapters[1]])
    assert both.module_names == ("layer.1", "layer.0")
    assert [f.rank for f in both.factors("layer.0")] == [0, 3]
    assert both.msus("layer.0").shape == (3, 40)
    with pytest.raises(KeyError, match="nowhere"):
        both.factors("nowhere")


def test_msus(adapters):
    units = adapters.msus("layer.0")
    assert units.shape == (9, 40)
    assert torch.equal(units[2, :24], adapters[1]["layer.0"].A[0])
    assert torch.equal(units[2, 24:], adapters[1]["layer.0"].B[:, 0])


def test_dtype_holds_all():
    mixed = AdapterSet([*make_adapters(1, dtype=torch.bfloat16), *make_adapters(1, dtype=torch.float16)])
    assert mixed.dtype == torch.float32


def test_no_array(adapters):
    with pytest.raises(TypeError, match="msus"):
        np.asarray(adapters)


def test_repr(adapters):
    assert repr(adapters) == "AdapterSet(['task0' r=2, 'task1' r=3, 'task2' r=4], modules=2, dtype=float32)"
    assert "... 4 more" in repr(AdapterSet(make_adapters(10, random_state=0)))


def test_html_is_a_table_and_escapes(adapters):
    nasty = adapters[0].renamed("<script>").with_provenance(base_model="a&b")
    html = AdapterSet([nasty, adapters[1]])._repr_html_()
    assert html.count("<tr>") == 3
    assert "&lt;script&gt;" in html
    assert "a&amp;b" in html
    assert "<script>" not in html


def test_pickle_and_hash(adapters):
    back = pickle.loads(pickle.dumps(adapters))
    assert back.names == adapters.names
    assert torch.equal(back.msus("layer.0"), adapters.msus("layer.0"))
    assert joblib.hash(back) == joblib.hash(adapters)


def test_identity(adapters):
    assert adapters == adapters
    assert adapters != AdapterSet(adapters)
    assert isinstance(hash(adapters), int)
    assert adapters[0].provenance == Provenance(sources=adapters[0].provenance.sources)
