"""What workers are sent and send back: little, and nothing that they have to open twice."""

import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from on_engine import equal
from pickling_engine import pickled

from lorakit import (
    AdapterSet,
    LegoMerger,
    LegoPruner,
    LoraFactors,
    RegMeanMerger,
    SVDMerger,
    TiesMerger,
    load_adapters,
    save_adapter,
)
from lorakit._execution import iter_modules, report_progress
from lorakit.activations import Grams
from lorakit.exceptions import CorruptFileError, OutputError
from lorakit.testing import make_adapters

WIDTH = 400
N = 40  # modules


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    made = make_adapters(n_adapters=3, n_modules=N, d_in=WIDTH, d_out=WIDTH, ranks=(8, 8, 8), random_state=0)
    return load_adapters([save_adapter(adapter, folder / adapter.name) for adapter in made])


@pytest.mark.parametrize(
    "merger", [SVDMerger(k=4), LegoMerger(k=4, random_state=0), TiesMerger(k=4)], ids=lambda m: m.method
)
def test_bytes_of_a_task_and_of_its_result(merger, saved):
    with pickled() as sent:
        result = merger.fit(saved)
    assert len(sent) == N
    factors = 4 * 2 * WIDTH * 4
    for task, back in sent:
        assert task < 2500 + 500 * len(saved)  # names, shapes, parameters: no weights, no other modules
        assert factors < back < factors + 2500
    assert equal(AdapterSet([result.merged_]), AdapterSet([merger.fit(saved).merged_]))


def test_what_an_earlier_fit_learned_stays_here(saved):
    merger = LegoMerger(k=4, random_state=0)
    with pickled() as first:
        merger.fit(saved)
    with pickled() as second:
        merger.fit(saved)
    assert max(second).task < max(first).task + 100


def test_the_size_of_a_task_does_not_depend_on_the_size_of_the_model(saved):
    few = AdapterSet(adapter.select(saved.module_names[:2]) for adapter in saved)
    with pickled() as of_all:
        SVDMerger(k=4).fit(saved)
    with pickled() as of_few:
        SVDMerger(k=4).fit(few)
    assert max(of_all).task < max(of_few).task + 50


def test_in_memory_a_task_takes_one_module_along(saved):
    in_memory = AdapterSet(LegoPruner(k=8, random_state=0).fit_transform(saved))
    with pickled() as sent:
        SVDMerger(k=4).fit(in_memory)
    weights = 3 * 8 * 2 * WIDTH * 4
    assert all(weights < task < weights + 5000 for task, _ in sent)


def test_grams_of_one_module_go_with_it(saved):
    grams = {name: Grams(dict.fromkeys(saved.module_names, np.eye(WIDTH))) for name in saved.names}
    with pickled() as sent:
        RegMeanMerger(k=4, grams=grams).fit(saved)
    one = WIDTH**2 * 8
    assert all(one <= task < 3 * one + 5000 for task, _ in sent)


def test_one_module_of_a_file_pickles_without_opening_it(saved, monkeypatch):
    module = saved.module_names[7]
    data = pickle.dumps(saved.only(module))
    for opens in ("lorakit.io.formats.codec.read_header", "lorakit.io.formats.peft.reading.read_config"):
        monkeypatch.setattr(opens, None)
    again = pickle.loads(data)
    assert again.module_names == (module,)
    assert again.infos(module) == saved.infos(module)
    assert again.dtype == saved.dtype
    assert equal(again, saved.only(module))
    assert equal(pickle.loads(pickle.dumps(again)), again)


def test_a_file_that_has_changed_is_named_with_its_module(tmp_path):
    adapter = make_adapters(n_adapters=1, random_state=0)[0]
    X = load_adapters([save_adapter(adapter, tmp_path / "a")])
    data = pickle.dumps(X.only("layer.1"))
    save_adapter(adapter, tmp_path / "a", overwrite=True)
    with pytest.raises(CorruptFileError, match="has changed since"):
        pickle.loads(data).factors("layer.1")
    with pickled(), pytest.raises(CorruptFileError, match="has changed since") as caught:
        SVDMerger(k=2).fit(X)
    assert "in module 'layer." in caught.value.__notes__[0]


def test_read_only_arrays_are_copied():
    """As Ray and loky hand them out."""
    rebuild, (a, b, dtype) = LoraFactors(torch.ones(2, 3), torch.ones(4, 2)).__reduce__()
    for x in (a, b):
        x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors = rebuild(a, b, dtype)
    factors.A.zero_()
    assert a.sum() == 6


@pytest.mark.parametrize("streams", [True, False])
def test_engines_that_stream_and_engines_that_do_not(streams, saved):
    calls = []
    with pickled(streams=streams), report_progress(lambda *call: calls.append(call)):
        merged = SVDMerger(k=4).fit(saved).merged_
    assert equal(AdapterSet([merged]), AdapterSet([SVDMerger(k=4).fit(saved).merged_]))
    assert calls == [(i + 1, N) for i in range(N)]


@pytest.mark.parametrize(("streams", "at_most"), [(True, 12), (False, 32)])
def test_no_more_is_computed_than_is_asked_for(streams, at_most, saved):
    """All modules at once would be the whole result in memory."""
    with pickled(streams=streams) as sent:
        results = iter_modules(lambda module: rank_of_slowly, saved, n_jobs=None, verbose=0)
        next(results)
        results.close()  # nor a word from joblib, which would be an error here
        assert 0 < len(sent) <= at_most


@pytest.mark.parametrize("streams", [True, False])
def test_an_error_on_this_side_ends_the_loop(streams, saved, monkeypatch):
    def full(self, module, factors):
        raise OutputError("disk full")

    monkeypatch.setattr("lorakit.results.Results.put", full)
    with pickled(streams=streams) as sent, pytest.raises(OutputError, match="disk full"):
        SVDMerger(k=4).fit(saved)
    assert len(sent) < N


def rank_of_slowly(adapters, module):
    """Long enough that a busy machine gets to ``close()`` before many more are done."""
    time.sleep(0.05)
    return adapters.factors(module)[0].rank
