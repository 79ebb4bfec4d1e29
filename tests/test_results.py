"""Results on disk are those in memory, and leave nothing behind."""

import errno
import os
import pickle

import pytest
import torch

from lorakit import (
    Adapter,
    AdapterSet,
    LegoMerger,
    LoraFactors,
    SVDMerger,
    SVDPruner,
    load_adapter,
    results_on_disk,
    save_adapter,
)
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import OutputError
from lorakit.results import Results
from lorakit.testing import make_adapters

X = AdapterSet(make_adapters(n_modules=3, ranks=(3, 5, 5), dtype=torch.bfloat16, random_state=0))


def same(x, y):
    assert list(x) == list(y)
    assert x.infos == y.infos
    assert (x.name, x.dtype, x.provenance) == (y.name, y.dtype, y.provenance)
    for module in x:
        for a, b in zip(x[module], y[module], strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize(
    "merger",
    [SVDMerger(k=4), LegoMerger(random_state=0), SVDMerger(k=4, scale="match", scale_scope="model")],
    ids=["svd", "lego", "whole model"],
)
def test_a_merge_on_disk_is_the_same(merger, n_jobs, tmp_path):
    merger.set_params(n_jobs=n_jobs)
    in_memory = merger.fit(X).merged_
    with results_on_disk(tmp_path):
        on_disk = merger.fit(X).merged_
    same(on_disk, in_memory)  # also after the block
    same(pickle.loads(pickle.dumps(on_disk)), in_memory)


def test_a_pipeline_on_disk_is_the_same():
    in_memory = SVDMerger(k=4).fit(SVDPruner(k=2).fit_transform(X)).merged_
    with results_on_disk():
        pruned = SVDPruner(k=2).fit_transform(X)
        same(SVDMerger(k=4).fit(pruned).merged_, in_memory)


def test_files_have_no_names(tmp_path):
    with results_on_disk(tmp_path):
        merged = SVDMerger(k=4).fit(X).merged_
        assert list(tmp_path.iterdir()) == []
    save_adapter(merged, tmp_path / "out")
    assert load_adapter(tmp_path / "out").dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_kept_in_memory(tmp_path):
    with results_on_disk(tmp_path):
        merged = SVDMerger(k=4).fit(X).merged_
    first, again = merged["layer.0"], merged["layer.0"]
    assert first.A.data_ptr() != again.A.data_ptr()


def test_shapes_layouts_and_empty_modules(tmp_path):
    modules = {
        "conv": LoraFactors(torch.randn(2, 18), torch.randn(4, 2)),
        "empty": LoraFactors(torch.zeros(0, 5), torch.zeros(3, 0)),
        "double": LoraFactors(torch.randn(1, 5).double(), torch.randn(3, 1).double().t().contiguous().t()),
    }
    kinds = {"conv": ModuleKind("conv", (3, 3))}
    with results_on_disk(tmp_path):
        results = Results()
    for module, factors in modules.items():
        results.put(module, factors)
    made = results.adapter(name="mine", kinds=kinds, provenance=Provenance())
    same(made, Adapter(modules, name="mine", kinds=kinds, provenance=Provenance()))
    same(made.select(["double"]), Adapter(modules, name="mine", provenance=Provenance()).select(["double"]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "w+b"))  # noqa: PTH123, SIM115
    with results_on_disk(tmp_path), pytest.raises(OutputError, match=r"free some space") as caught:
        SVDMerger(k=4).fit(X)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(OutputError, match="is no folder"), results_on_disk(tmp_path / "absent"):
        pass


def test_a_worker_is_sent_one_module_only():
    big = Adapter({f"m{i}": LoraFactors(torch.randn(4, 500), torch.randn(500, 4)) for i in range(20)})
    views = [big, big.rename_modules(lambda m: f"model.{m}")]
    with results_on_disk():
        views.append(SVDPruner(k=3).fit_transform([big])[0])
    for view in views:
        whole, one = len(pickle.dumps(AdapterSet([view]))), len(pickle.dumps(AdapterSet([view]).only(list(view)[3])))
        assert one < whole / 10
        same(AdapterSet([view]).only(list(view)[3])[0], view.select([list(view)[3]]))
