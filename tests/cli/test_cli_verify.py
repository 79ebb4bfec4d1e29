"""``lorakit verify``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.pipeline import make_pipeline

from lorakit import (
    Adapter,
    Isotropizer,
    LegoMerger,
    LegoPruner,
    LoraFactors,
    ModuleSelector,
    NormBalancer,
    PicoDamper,
    RankBudget,
    RegMeanMerger,
    SVCCalibrator,
    SVDMerger,
    SVDPruner,
    load_adapters,
    save_adapter,
)
from lorakit.activations import Grams
from lorakit.adapters import Provenance
from lorakit.discovery import all_estimators
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import KEY

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def verify(lorakit_json):
    """Run the command; return its report, and check that the exit code says the same."""

    def run(result, sources, *args, verdict="yes"):
        code = {"yes": 0, "no": 1, "cannot tell": 3}[verdict]
        report = lorakit_json("verify", result, "--sources", *sources, *args, code=code)
        assert report["verdict"] == verdict
        return report

    return run


def edit_record(folder, edit):
    """Change the record in a file, and nothing else of it."""
    path = Path(folder) / WEIGHTS
    metadata = read_header(path).metadata
    record = json.loads(metadata[KEY])
    edit(record)
    save_file(load_file(path), path, {**metadata, KEY: json.dumps(record)})


@pytest.mark.parametrize("method", [name for name, cls in all_estimators("merger").items() if not cls.needs_data])
def test_every_method(lorakit_, verify, equal_tasks, out, method):
    lorakit_("merge", *equal_tasks, "-o", out, "-m", method, "-k", 4, "--seed", 3)
    report = verify(out, equal_tasks)
    assert report["identical"] is True
    assert report["modules"] == 2
    assert [row["matched_by"] for row in report["sources"]] == ["sha256"] * 3
    assert [row["same_config"] for row in report["sources"]] == [True] * 3


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("layout", [["--layout", "compact"], ["--pad-to", "server"]])
def test_how_it_is_stored_does_not_matter(lorakit_, verify, tasks, out, order, dtype, layout):
    lorakit_("merge", *tasks, "-o", out, "-k", 5, "--weights", "task0=1,task1=3,task2=2", "--dtype", dtype, *layout)
    report = verify(out, [tasks[i] for i in order])
    assert report["identical"] is True
    assert report["dtype"] == dtype


def test_half_precision_of_updates_that_cancel(lorakit_, verify, tmp_path, out):
    """Units a hundred times as large as what is left of them: rounding is a large part of the update."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 40), torch.randn(30, 4)
    paths = [
        save_adapter(Adapter({"m": LoraFactors(a + shift, b)}), tmp_path / name)
        for name, shift in (("x", 0.0), ("y", 0.02 * torch.randn(4, 40)))
    ]
    lorakit_("merge", *paths, "-o", out, "-m", "concat", "--weights", "1,-1", "--dtype", "bfloat16")
    report = verify(out, paths)
    assert report["relative_error"] > 0.03


@pytest.mark.parametrize(
    "steps",
    [
        [SVDPruner(k=3), LegoMerger(k=4, random_state=0)],
        [PicoDamper(), SVDMerger(k=RankBudget(3, 5), weights=np.array([1.0, 0.5, 0.25]))],
        [ModuleSelector(exclude=["*.1"]), NormBalancer(target=2.5), SVDMerger(k=0.9, scale="match")],
        [LegoPruner(k=2, random_state=1), SVDMerger(k=np.int64(3), scale=np.float64(0.5))],
        [SVCCalibrator(LegoMerger(k=6, random_state=2), alpha=0.4, k=3, weights=[1, 2, 1])],
        [SVDMerger(weights={"task0": 1, "task1": -2, "task2": 1}, scale=-1.0)],
    ],
    ids=lambda steps: "+".join(type(step).__name__ for step in steps),
)
def test_steps_one_after_another(verify, tasks, out, steps):
    (merged,) = make_pipeline(*steps).fit_transform(load_adapters(tasks))
    report = verify(save_adapter(merged, out), tasks, "--jobs", 2)
    assert report["identical"] is True
    assert len(report["operations"]) >= len(steps)


def test_merges_of_merges_and_some_pruned(verify, tasks, out):
    X = load_adapters(tasks)
    first = SVDMerger(k=5).fit(X[:2]).merged_
    (pruned,) = SVDPruner(k=3).fit_transform(X[2:])
    second = LegoMerger(k=6, random_state=2, weights={"svd": 2, "task2": 1}).fit([first, pruned]).merged_
    report = verify(save_adapter(second, out), tasks[::-1])
    assert report["identical"] is True
    assert [row["name"] for row in report["sources"]] == ["task0", "task1", "task2"]


def test_pruned_each_by_itself(lorakit_, verify, tasks, out):
    lorakit_("prune", *tasks, "-o", out, "-k", 6)  # above the rank of the first
    for path in tasks:
        report = verify(out / Path(path).name, [path])
        assert len(report["sources"]) == 1
    assert verify(out / "task1", [tasks[0]], verdict="no")["sources"][0]["matched_by"] == "order"


def test_written_again_and_in_another_format(lorakit_, verify, tmp_path, out):
    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    paths = [
        save_adapter(
            Adapter({name: LoraFactors(torch.randn(4, 12), torch.randn(8, 4))}, provenance=Provenance(format="kohya")),
            tmp_path / f"{i}.safetensors",
        )
        for i in range(2)
    ]
    merged = tmp_path / "merged.safetensors"
    lorakit_("merge", *paths, "-o", merged, "-m", "svd", "-k", 3)
    assert verify(merged, paths)["identical"] is True
    lorakit_("convert", merged, "-o", out, "--to", "peft", "--dtype", "bfloat16")
    lorakit_("convert", out, "-o", tmp_path / "wide", "--dtype", "float32")
    report = verify(tmp_path / "wide", paths)
    assert report["relative_error"] > 1e-4  # once rounded to bfloat16, which is allowed for
    text = lorakit_("verify", tmp_path / "wide", "--sources", *paths).stdout
    assert "it says that it was stored as bfloat16 before" in text
    peft = [tmp_path / f"peft{i}" for i in range(2)]
    for path, copy in zip(paths, peft, strict=True):
        lorakit_("convert", path, "-o", copy, "--to", "peft")
    report = verify(merged, peft)  # other files with the same updates
    assert [row["matched_by"] for row in report["sources"]] == ["order", "order"]


def test_no(lorakit_, verify, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 6)
    tensors = load_file(out / WEIGHTS)
    tensors["base_model.model.layer.1.lora_A.weight"][0, 0] += 0.01
    save_file(tensors, out / WEIGHTS, read_header(out / WEIGHTS).metadata)
    report = verify(out, tasks, verdict="no")
    (row,) = report["differences"]
    assert row["module"] == "layer.1"
    assert row["tolerance"] < row["relative_error"] < 0.01
    text = lorakit_("verify", out, "--sources", *tasks, code=1).stdout
    assert "no: 1 of 2 modules" in text
    assert "made again" in text
    assert verify(out, tasks, "--tolerance", 0.1)["modules_different"] == 0


def test_other_sources(lorakit_, verify, tasks, out, tmp_path):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 6)
    other = tmp_path / "other" / "task1"
    shutil.copytree(tasks[1], other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    report = verify(out, [tasks[0], other, tasks[2]], verdict="no")  # the scale is in the config
    assert report["sources"][1] == {
        **report["sources"][1], "matched_by": "sha256", "same_config": False,
    }  # fmt: skip
    (other / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    assert verify(out, [tasks[0], other, tasks[2]])["sources"][1]["same_config"] is False
    save_adapter(load_adapters([tasks[0]])[0], tmp_path / "task2")
    report = verify(out, [tasks[0], tasks[1], tmp_path / "task2"], verdict="no")
    assert report["sources"][2]["matched_by"] == "name"


def test_more_and_fewer_sources(lorakit_, verify, tasks, out):
    lorakit_("merge", *tasks[:2], "-o", out, "-m", "svd", "-k", 6)
    assert verify(out, tasks)["unused"] == [tasks[2]]
    reason = verify(out, tasks[1:2], verdict="cannot tell")["reason"]
    assert reason.startswith("the source 'task0' (sha256 ")
    assert f"Given, and not a source: {tasks[2]}" in lorakit_("verify", out, "--sources", *tasks).stdout


def is_first(module):
    return module == "layer.0"


def cannot(tasks):
    X = load_adapters(tasks)
    grams = Grams({f"layer.{i}": np.eye(24) for i in range(2)})
    yield LegoMerger(k=4).fit(X).merged_, "without a seed"
    yield LegoMerger(k=4, random_state=np.random.RandomState(0)).fit(X).merged_, "which no record can hold"
    yield LegoMerger(k=4, random_state=0, clusterer=KMeans()).fit(X).merged_, "clusterer=KMeans()"
    yield Isotropizer(LegoMerger(k=4)).fit(X).merged_, "LegoMerger drew random numbers without a seed"
    yield RegMeanMerger(grams=dict.fromkeys(X.names, grams)).fit(X).merged_, "grams="
    (selected, *_) = ModuleSelector(include=is_first).fit_transform(X)
    yield selected, "which no record can hold"
    yield SVDMerger().fit(X).merged_.with_provenance(made=None), "left no record"


def test_what_cannot_be_done_again(verify, tasks, tmp_path):
    for i, (made, reason) in enumerate(cannot(tasks)):
        path = save_adapter(made, tmp_path / str(i))
        assert reason in verify(path, tasks, verdict="cannot tell")["reason"]


def edit_operation(record, **changes):
    record["operations"][0].update(changes)


def edit_params(record, **changes):
    record["operations"][0]["params"].update(changes)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda r: r.update(record=9), "version 9"),
        (lambda r: r.update(sources="all"), "not as lorakit writes"),
        (lambda r: edit_operation(r, **{"class": "ShinyMerger"}), "no method 'ShinyMerger'"),
        (lambda r: edit_operation(r, **{"class": "Pipeline"}), "no method 'Pipeline'"),
        (lambda r: edit_params(r, shine=2), "SVDMerger has changed"),
        (lambda r: edit_params(r, k=99), "cannot be run again"),
        (lambda r: edit_params(r, k={"float": "12"}), "SVDMerger had k="),
        (lambda r: edit_params(r, weights={"dict": [[[1], 2]]}), "unhashable"),
        (lambda r: edit_params(r, weights={"dict": [1]}), "SVDMerger had weights="),
        (lambda r: edit_params(r, k={"class": "RankBudget", "params": {"mean": -1}}), "RankBudget has changed"),
        (lambda r: edit_params(r, weights=json.loads("[" * 500 + "]" * 500)), "nested too deeply"),
        (lambda r: r.update(operations=[{"text": "by hand", "inputs": []}]), "no estimator with its parameters"),
        (lambda r: r.update(result={"operation": 0, "output": 1}), "made 1 adapters"),
    ],
)
def test_records_that_cannot_be_followed(lorakit_, verify, tasks, out, edit, reason):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    edit_record(out, edit)
    assert reason in verify(out, tasks, verdict="cannot tell")["reason"]
    last = lorakit_("verify", out, "--sources", *tasks, code=3).stdout.splitlines()[-1]
    assert last.startswith("cannot tell: ")
    assert reason in last


def test_an_older_version_that_agrees(lorakit_, verify, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    edit_record(out, lambda r: r["versions"].update(lorakit="0.0.0"))
    verify(out, tasks)


def test_without_a_record(lorakit_, verify, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    save_file(load_file(out / WEIGHTS), out / WEIGHTS, {"format": "pt"})
    assert "holds no record" in verify(out, tasks, verdict="cannot tell")["reason"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{0}"], "--sources"),
        (["{0}", "--sources"], "--sources needs the adapters"),
        (["{0}", "--sources", "--json"], "--sources needs the adapters"),
        (["{0}", "--sources", "{0}x"], "does not exist"),
        (["{0}x", "--sources", "{0}"], "does not exist"),
        (["{0}", "--sources", "{0}", "{1}", "--name", "x"], "--name must be given 2 times"),
    ],
)
def test_errors(lorakit_, tasks, args, message):
    assert message in lorakit_("verify", *(arg.format(*tasks) for arg in args), code=2).stderr


def test_options_may_stand_anywhere(lorakit_, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    for args in (
        [out, "--sources", *tasks, "--jobs", 2],
        ["--jobs", 2, out, "--sources", *tasks],
        ["--sources", *tasks, "--jobs", 2, out],
        ["--sources", tasks[0], "--jobs", 2, "--sources", *tasks[1:], "--", out],
    ):
        assert "yes: the same factors, bit for bit, in all 2 modules" in lorakit_("verify", *args).stdout


def test_real_adapters(lorakit_, verify, real_adapter_paths, out):
    paths = [real_adapter_paths[name] for name in ("icd10", "langid_r16", "wn_noun_r4")]
    lorakit_("merge", *paths, "-o", out, "-k", 12, "--dtype", "float16")
    assert verify(out, paths)["identical"] is True
    assert verify(out, [*paths[:2], real_adapter_paths["wn_pos"]], verdict="no")["modules_different"] == 36
