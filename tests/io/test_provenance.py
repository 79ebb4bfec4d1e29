"""The record in the header: what made a file, from what."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from recorded import CONFIG, WEIGHTS, record_at, saved, sha256
from safetensors import safe_open
from sklearn.pipeline import make_pipeline

from lorakit import (
    Adapter,
    LegoMerger,
    ModuleSelector,
    NormBalancer,
    SVDMerger,
    SVDPruner,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.files import digests
from lorakit.io.formats.record import KEY, header_metadata, make_record, read_record
from lorakit.testing import make_adapters


@pytest.fixture
def paths(tmp_path):
    return saved(tmp_path)


def test_a_merge(paths, tmp_path):
    (merged,) = LegoMerger(k=4, random_state=0, weights={"task0": 2, "task1": 1, "task2": 1}).fit_transform(
        load_adapters(paths)
    )
    out = save_adapter(merged, tmp_path / "out", dtype=torch.bfloat16, pad_to=8)
    record = record_at(out)
    assert record["sources"] == [
        {"name": p.name, "sha256": sha256(p / WEIGHTS), "config_sha256": sha256(p / CONFIG), "in_memory": False}
        for p in paths
    ]
    (operation,) = record["operations"]
    assert operation["class"] == "LegoMerger"
    assert operation["params"]["k"] == 4
    assert operation["params"]["weights"] == {"dict": [["task0", 2], ["task1", 1], ["task2", 1]]}
    assert set(operation["params"]) == set(LegoMerger().get_params()) - {"n_jobs", "verbose"}
    assert operation["inputs"] == [{"name": p.name, "source": i} for i, p in enumerate(paths)]
    assert record["result"] == {"operation": 0, "output": 0}
    assert (record["dtype"], record["layout"], record["modules"], record["rounded_to"]) == (
        "bfloat16",
        "portable",
        2,
        [],
    )
    raw = (out / WEIGHTS).read_bytes()
    assert str(tmp_path).encode() not in raw  # no paths
    with safe_open(out / WEIGHTS, framework="pt") as file:
        text = file.metadata()[KEY]
        assert file.metadata()["format"] == "pt"  # what transformers asks for
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_the_card_says_the_same(paths, tmp_path):
    (merged,) = SVDMerger(k=4).fit_transform(load_adapters(paths))
    out = save_adapter(merged, tmp_path / "out")
    card = (out / "README.md").read_text()
    record = record_at(out)
    for source in record["sources"]:
        assert f"| {source['name']} | `{source['sha256']}` |" in card
    assert merged.provenance.operations[0] in card


def test_who_was_given_what(paths, tmp_path):
    """Each pruner works on one adapter, NormBalancer on all together; the merge on what came out."""
    X = load_adapters(paths[:2])
    pruned = SVDPruner(k=2).fit_transform(X)
    mixed = [pruned[0], X[1]]
    (merged,) = make_pipeline(NormBalancer(), SVDMerger(k=3)).fit_transform(mixed)
    record = make_record(merged, layout="portable", dtype=torch.float32)
    assert [operation["class"] for operation in record["operations"]] == [
        "SVDPruner",
        "NormBalancer",
        "SVDMerger",
    ]
    assert [operation["inputs"] for operation in record["operations"]] == [
        [{"name": "task0", "source": 0}],
        [{"name": "task0", "operation": 0, "output": 0}, {"name": "task1", "source": 1}],
        [{"name": "task0", "operation": 1, "output": 0}, {"name": "task1", "operation": 1, "output": 1}],
    ]
    alone = make_record(pruned[1], layout="portable", dtype=torch.float32)
    assert [source["name"] for source in alone["sources"]] == ["task1"]
    (selected,) = ModuleSelector(include="layer.0").fit_transform(X[:1])
    assert make_record(selected, layout="portable", dtype=torch.float32)["result"] == {"operation": 0, "output": 0}


def test_one_adapter_twice_is_one_source(paths):
    X = load_adapters(paths[:1])
    record = make_record(SVDMerger().fit([X[0], X[0].renamed("again")]).merged_, layout="portable", dtype=torch.float32)
    assert len(record["sources"]) == 1
    assert [given["name"] for given in record["operations"][0]["inputs"]] == ["task0", "again"]


def test_written_again(paths, tmp_path):
    (merged,) = SVDMerger(k=4).fit_transform(load_adapters(paths))
    first = save_adapter(merged, tmp_path / "first", dtype=torch.float16)
    second = save_adapter(load_adapter(first), tmp_path / "second", dtype=torch.bfloat16, layout="compact")
    third = save_adapter(load_adapter(second), tmp_path / "third", dtype=torch.float32)
    before, after = record_at(first), record_at(third)
    for key in ("sources", "operations", "result", "versions"):
        assert after[key] == before[key]
    assert record_at(second)["layout"] == "compact"
    assert after["rounded_to"] == ["bfloat16", "float16"]
    assert "float32, and bfloat16, float16 before that" in (third / "README.md").read_text()
    part = save_adapter(load_adapter(first).select(["layer.0"]), tmp_path / "part")
    assert record_at(part)["sources"][0]["sha256"] == sha256(first / WEIGHTS)  # it is no longer what was made


def test_a_copy_of_an_adapter_names_it(paths, tmp_path):
    record = record_at(save_adapter(load_adapter(paths[0]), tmp_path / "copy"))
    assert record["operations"] == []
    assert record["result"] == {"source": 0}
    assert record["sources"][0]["sha256"] == sha256(paths[0] / WEIGHTS)


def test_what_is_not_known(paths, tmp_path):
    (merged,) = SVDMerger(k=4).fit_transform(load_adapters(paths))
    edited = Adapter(dict(merged)).with_provenance(
        operations=("by hand",), sources=merged.provenance.sources, made=None
    )
    record = record_at(save_adapter(edited, tmp_path / "edited"))
    assert record["result"] is None
    assert record["operations"] == [{"text": "by hand", "inputs": None}]
    assert len(record["sources"]) == 3
    (again,) = SVDMerger(k=4).fit_transform([edited, *load_adapters(paths[:1])])
    assert make_record(again, layout="portable", dtype=torch.float32)["result"] is None
    memory = record_at(save_adapter(Adapter(dict(merged), name="mine"), tmp_path / "memory"))
    assert memory["sources"] == [{"name": "mine", "sha256": None, "config_sha256": None, "in_memory": True}]


def test_each_source_is_read_once(paths, tmp_path, monkeypatch):
    read = []
    digest = digests.digest.__wrapped__
    counted = lru_cache(lambda path, version: read.append(path) or digest(path, version))
    monkeypatch.setattr(digests, "digest", counted)
    X = load_adapters(paths)
    for i, merger in enumerate((SVDMerger(k=4), LegoMerger(k=4, random_state=0))):
        save_adapter(merger.fit(X).merged_, tmp_path / f"out{i}")
    assert len(read) == len(set(read)) == 6  # weights and config of three


def test_names_that_are_no_text(tmp_path):
    name = b"law\xe9".decode("utf-8", "surrogateescape")
    (adapter,) = make_adapters(1, random_state=0)
    out = save_adapter(SVDMerger().fit([adapter.with_provenance(sources=(), operations=())]).merged_, tmp_path / "a")
    assert record_at(out)["result"] is None
    (renamed,) = make_adapters(1, random_state=0)
    renamed = Adapter(dict(renamed), name=name)
    out = save_adapter(SVDMerger().fit([renamed]).merged_, tmp_path / "b")
    assert record_at(out)["sources"][0]["name"] == name


GOOD = {
    "record": 2,
    "versions": {"lorakit": "1"},
    "dtype": "float32",
    "layout": "portable",
    "modules": 1,
    "rounded_to": [],
    "sources": [{"name": "a", "sha256": None, "config_sha256": None}],
    "operations": [{"class": "X", "params": {}, "inputs": [{"name": "a", "source": 0}]}],
    "result": {"operation": 0, "output": 0},
}


def test_a_record_that_is_none():
    assert read_record({"format": "pt"}) is None
    assert read_record(header_metadata(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record": 3}, "version 3"),
        ({"record": None}, "version None"),
        ({"sources": None}, "not as lorakit writes"),
        ({"sources": [{"name": "a"}]}, "not as lorakit writes"),
        ({"sources": [{"name": 1, "sha256": None, "config_sha256": None}]}, "not as lorakit writes"),
        ({"operations": [{"class": 1, "params": {}, "inputs": []}]}, "not as lorakit writes"),
        ({"operations": [{"class": "X", "inputs": []}]}, "not as lorakit writes"),
        ({"operations": [{"class": "X", "params": [], "inputs": []}]}, "not as lorakit writes"),
        ({"operations": [{"class": "X", "params": {}, "inputs": None}]}, "not as lorakit writes"),
        (
            {"operations": [{"class": "X", "params": {}, "inputs": [{"name": "a", "source": 1}]}]},
            "not as lorakit writes",
        ),
        ({"operations": [{"class": "X", "params": {}, "inputs": [{"source": 0}]}]}, "not as lorakit writes"),
        # an operation on its own result
        (
            {"operations": [{"class": "X", "params": {}, "inputs": [{"name": "a", "operation": 0, "output": 0}]}]},
            "not as lorakit writes",
        ),
        ({"result": {"operation": 1, "output": 0}}, "not as lorakit writes"),
        ({"result": {"operation": 0, "output": -1}}, "not as lorakit writes"),
        ({"result": {"source": True}}, "not as lorakit writes"),
        ({"result": "all"}, "not as lorakit writes"),
        ({"modules": "1"}, "not as lorakit writes"),
        ({"rounded_to": [1]}, "not as lorakit writes"),
        ({"versions": 1}, "not as lorakit writes"),
        ({"versions": {"torch": "2"}}, "not as lorakit writes"),
        ({"versions": {"lorakit": 1}}, "not as lorakit writes"),
    ],
)
def test_a_record_that_cannot_be_used(changes, message):
    with pytest.raises(ValueError, match=message):
        read_record(header_metadata({**GOOD, **changes}))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"', "[" * 100_000])
def test_a_text_that_is_no_record(text):
    with pytest.raises(ValueError, match="its record is"):
        read_record({KEY: text})
