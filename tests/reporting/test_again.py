"""The command and the Python that a report shows make the same factors again, bit for bit."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from sklearn.pipeline import make_pipeline

from lorakit import (
    DareMerger,
    Isotropizer,
    LegoMerger,
    LegoPruner,
    NormBalancer,
    RankBudget,
    RankRule,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    TSVMerger,
    load_adapters,
    save_adapter,
)
from lorakit.cli import main
from lorakit.io.formats.record import make_record
from lorakit.reporting._again import chain_of, command_of, in_order, python_of, recipe_of_chain
from lorakit.testing import make_adapters

MERGERS = [
    TSVMerger(),
    TSVMerger(k=6, scale="match"),
    SVDMerger(k=RankBudget(5, 7), weights={"task0": 2, "task1": 1, "task2": 1}),
    SVDMerger(k=0.9, weights=[1, 2, 3], scale=0.5),
    SVDMerger(k="auto"),
    SVDMerger(k=RankRule(sv_ratio=3, max_rank=5)),
    SVDMerger(k=6, strengths=[0.7, -0.3, 1.0]),
    TSVMerger(k=6, strengths={"task2": 0.5, "task0": 0.7, "task1": 1}),
    LegoMerger(k=6, random_state=3, align="svd", norm=None),
    TiesMerger(k=6, density=0.3, space="core", scale="match"),
    DareMerger(k=6, density=0.5, random_state=1),
    Isotropizer(TiesMerger(density=0.3, scale=1.0), k=5),
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for adapter in make_adapters(random_state=0):
        save_adapter(adapter, adapter.name)
    return load_adapters(["task0", "task1", "task2"])


def record_of(adapter):
    return in_order(make_record(adapter, layout="portable", dtype=adapter.dtype))


def chain(*adapters):
    return chain_of([record_of(adapter) for adapter in adapters])


def weights(folder):
    """The tensors of a file; its record may spell a number differently."""
    return {name: t.numpy().tobytes() for name, t in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_the_command_makes_the_same_factors(merger, tasks, tmp_path):
    merged = merger.fit(tasks).merged_
    expected = save_adapter(merged, tmp_path / "expected")
    command = command_of(chain(merged))
    result = CliRunner().invoke(main, [*shlex.split(command)[1:], "-q"])
    assert result.exit_code == 0, result.output
    assert weights(tmp_path / "merged") == weights(expected), command


@pytest.mark.parametrize("merger", [*MERGERS, make_pipeline(NormBalancer(), SVDPruner(k=3), TSVMerger(k=5))], ids=str)
def test_the_python_makes_the_same_factors(merger, tasks, tmp_path):
    (merged,) = merger.fit_transform(tasks)
    expected = save_adapter(merged, tmp_path / "expected")
    exec(python_of(chain(merged)), {})
    assert weights(tmp_path / "result") == weights(expected)


@pytest.mark.parametrize("merger", [*MERGERS, make_pipeline(NormBalancer(), SVDPruner(k=3), TSVMerger(k=5))], ids=str)
def test_the_recipe_makes_the_same_factors(merger, tasks, tmp_path):
    (merged,) = merger.fit_transform(tasks)
    expected = save_adapter(merged, tmp_path / "expected")
    Path("merge.yaml").write_text(recipe_of_chain(chain(merged), record_of(merged)["sources"]))
    result = CliRunner().invoke(main, ["merge", "--recipe", "merge.yaml", "-o", "merged", "-q"])
    assert result.exit_code == 0, result.output
    assert weights(tmp_path / "merged") == weights(expected)


@pytest.mark.parametrize("pruner", [SVDPruner(k=3), LegoPruner(k=3, random_state=2)], ids=str)
def test_pruners_again(pruner, tasks, tmp_path):
    pruned = pruner.fit_transform(tasks)
    expected = [save_adapter(adapter, tmp_path / "expected" / adapter.name) for adapter in pruned]
    found = chain(*pruned)
    result = CliRunner().invoke(main, [*shlex.split(command_of(found))[1:], "-q"])
    assert result.exit_code == 0, result.output
    commanded = {name: weights(tmp_path / "pruned" / name) for name in tasks.names}
    shutil.rmtree(tmp_path / "pruned")
    exec(python_of(found), {})
    for name, path in zip(tasks.names, expected, strict=True):
        assert weights(tmp_path / "pruned" / name) == commanded[name] == weights(path)
    assert shlex.split(command_of(chain(pruned[1])))[:5] == ["lorakit", "prune", "task1", "-o", "pruned"]


def test_what_cannot_be_said_in_one_command(tasks):
    pipeline = make_pipeline(NormBalancer(), TSVMerger(k=5))
    (merged,) = pipeline.fit_transform(tasks)
    assert command_of(chain(merged)) is None
    record = record_of(TSVMerger().fit(tasks).merged_)
    record["operations"][0]["params"]["weights"] = {"unrecorded": "a function"}
    assert command_of(chain_of([record])) is None
    assert chain_of([{"operations": [{"text": "by hand", "inputs": None}], "sources": [], "result": None}]) is None
    others = [record_of(adapter) for k in (2, 3) for adapter in SVDPruner(k=k).fit_transform(tasks[:1])]
    assert chain_of(others) is None  # two ranks
    backwards = record_of(TSVMerger().fit(tasks).merged_)
    backwards["operations"][0]["inputs"].reverse()
    assert chain_of([backwards]) is None
    balanced = NormBalancer().fit_transform(tasks)
    assert chain(balanced[1]) is None  # one of three that were made together


def test_names_are_quoted(tasks):
    record = record_of(TSVMerger().fit(tasks).merged_)
    record["operations"][0]["inputs"][0]["name"] = "a; rm -rf ~ $(x) 'y'"
    assert shlex.split(command_of(chain_of([record])))[2] == "a; rm -rf ~ $(x) 'y'"
    compile(python_of(chain_of([record])), "shown", "exec")
    record["operations"][0]["inputs"][0]["name"] = "--overwrite"
    assert command_of(chain_of([record])) is None
