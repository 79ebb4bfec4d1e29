"""Baked checkpoints and extracted adapters that were made, or changed, to deceive; and records that ask for much."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraFactors, TiesMerger, load_adapters, save_adapter
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import KEY
from lorakit.testing import make_adapters

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def base(tmp_path):
    """A folder with a checkpoint that the adapters fit, a config and a tokenizer."""
    folder = tmp_path / "base"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    content = {f"model.layer.{i}.weight": torch.randn(16, 24, generator=generator) for i in range(2)}
    save_file(content, folder / "model.safetensors")
    (folder / "config.json").write_text('{"eos": 1}')
    (folder / "merges.txt").write_text("a b")
    (folder / "README.md").write_text("# Base")
    return folder


@pytest.fixture
def law(tmp_path):
    (adapter,) = make_adapters(1, ranks=4, random_state=0)
    return str(save_adapter(adapter, tmp_path / "law"))


@pytest.fixture
def baked(lorakit_, base, law, out):
    lorakit_("bake", base, f"{law}:0.7", "-o", out, "-q")
    return out


@pytest.fixture
def extracted(lorakit_, base, baked, tmp_path):
    lorakit_("extract", baked, base, "-k", 4, "-o", tmp_path / "extracted", "-q")
    return tmp_path / "extracted"


def edit(path, change):
    """Change the record in the header of a file."""
    metadata = read_header(path).metadata
    record = json.loads(metadata[KEY])
    change(record)
    save_file(load_file(path), path, {**metadata, KEY: json.dumps(record)})


@pytest.mark.parametrize("name", ["config.json", "merges.txt"])
@pytest.mark.parametrize("change", [lambda file: file.write_text("{}"), Path.unlink])
def test_files_beside_a_baked_model(lorakit_, lorakit_json, baked, base, law, name, change):
    assert lorakit_json("verify", baked, "--sources", base, law)["other_than_made"] == []
    change(baked / name)
    report = lorakit_json("verify", baked, "--sources", base, law, code=1)
    assert report["other_than_made"] == [f"the file {name!r} is not that of the base"]
    assert f"the file {name!r} is not" in lorakit_("verify", baked, "--sources", base, law, code=1).stdout


def test_a_model_card_may_be_another(lorakit_json, baked, base, law):
    (baked / "README.md").write_text("# Law")
    assert lorakit_json("verify", baked, "--sources", base, law)["verdict"] == "yes"


def test_files_that_untying_changes(lorakit_, lorakit_json, tmp_path, out):
    base = tmp_path / "tied"
    base.mkdir()
    save_file(
        {"model.embed_tokens.weight": torch.ones(6, 4), "model.norm.weight": torch.ones(4)}, base / "model.safetensors"
    )
    (base / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}')
    head = save_adapter(Adapter({"lm_head": LoraFactors(torch.ones(1, 4), torch.ones(6, 1))}), tmp_path / "head")
    lorakit_("bake", base, head, "-o", out, "-q")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert lorakit_json("verify", out, "--sources", base, head)["verdict"] == "yes"
    (out / "config.json").write_text('{"tie_word_embeddings": true}')
    assert lorakit_json("verify", out, "--sources", base, head, code=1)["verdict"] == "no"


def test_another_version_is_no_excuse_of_a_baked_model(lorakit_json, baked, base, law):
    def other(record):
        record["versions"]["lorakit"] = "0.0.0"
        record["params"]["strengths"] = [0.5]

    edit(baked / "model.safetensors", other)
    report = lorakit_json("verify", baked, "--sources", base, law, code=1)
    assert report["verdict"] == "no"
    assert "ask that version" in report["remark"]


def test_other_files_are_named_by_a_baked_model(lorakit_, lorakit_json, baked, base, law, tmp_path):
    again = save_adapter(load_adapters([law])[0], tmp_path / "again")
    report = lorakit_json("verify", baked, "--sources", base, again)
    assert (report["verdict"], report["sources_differ"]) == ("yes", ["law"])
    assert "'law' by other files than the record names" in lorakit_("verify", baked, "--sources", base, again).stdout


@pytest.mark.parametrize("strength", [10**400, float("nan"), float("inf"), True])
def test_strengths_that_are_no_numbers(lorakit_, baked, base, law, strength):
    edit(baked / "model.safetensors", lambda r: r["params"].update(strengths=[strength]))
    code = 1 if strength is True else 3
    lorakit_("verify", baked, "--sources", base, law, code=code)
    lorakit_("replay", baked, "--sources", base, law, code=code)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base_model_name_or_path": "other/base"}, "base_model is 'other/base'"),
        ({"target_modules": []}, "target_modules"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"modules_to_save": ["head"]}, None),  # which is not in the file: it cannot be read
    ],
)
def test_what_the_config_of_an_extracted_adapter_says(lorakit_json, lorakit_, extracted, baked, base, changes, named):
    config = extracted / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    if named is None:
        lorakit_("verify", extracted, "--sources", baked, base, code=2)
        return
    (finding,) = lorakit_json("verify", extracted, "--sources", baked, base, code=1)["other_than_made"]
    assert named in finding


def test_extra_weights_of_an_extracted_adapter(lorakit_json, extracted, baked, base):
    config, weights = extracted / CONFIG, extracted / WEIGHTS
    metadata = read_header(weights).metadata
    save_file({**load_file(weights), "base_model.model.head.weight": torch.ones(2, 3)}, weights, metadata)
    config.write_text(json.dumps({**json.loads(config.read_text()), "modules_to_save": ["head"]}))
    first = lorakit_json("verify", extracted, "--sources", baked, base, "--modules-to-save", "first", code=1)
    assert "the extra weight 'head.weight' is not of its sources" in first["other_than_made"]


def test_sources_of_an_extracted_adapter(lorakit_, lorakit_json, base, law, tmp_path, out):
    """Single files have hashes; the folder of the base may have moved."""
    one, tuned = base / "model.safetensors", tmp_path / "tuned.safetensors"
    lorakit_("bake", one, law, "-o", tuned, "-q")
    lorakit_("extract", tuned, one, "-k", 4, "-o", out, "-q")
    report = lorakit_json("verify", out, "--sources", tuned, one)
    assert [row["matched_by"] for row in report["sources"]] == ["sha256", "sha256"]
    moved = tmp_path / "moved.safetensors"
    save_file(load_file(one), moved, {"another": "header"})
    report = lorakit_json("verify", out, "--sources", tuned, moved)
    assert (report["verdict"], report["sources_differ"]) == ("yes", ["model.safetensors"])
    assert "'model.safetensors' by other files" in lorakit_("verify", out, "--sources", tuned, moved).stdout


def test_a_base_that_has_moved(lorakit_json, extracted, baked, base, tmp_path):
    base.rename(tmp_path / "elsewhere")
    report = lorakit_json("verify", extracted, "--sources", baked, tmp_path / "elsewhere")
    assert (report["verdict"], report["sources_differ"]) == ("yes", ["base"])


EXTRACT_BOMBS = {
    "patterns": lambda p: p.update(modules={"tuple": ["(a|b)*c"] * 200_000}),
    "characters": lambda p: p.update(modules="(" * 1_100_000),
    "a regular expression": lambda p: p.update(modules="([a-z0-9]+[.]?)+!"),
    "no k": lambda p: p.update(k="all"),
    "a budget": lambda p: p.update(k={"class": "RankBudget", "params": {"mean": 1e300}}),
    "a size": lambda p: p.update(k={"class": "RankBudget", "params": {"size": "9" * 5000}}),
    "another class": lambda p: p.update(k={"class": "SVDMerger", "params": {}}),
    "a seed": lambda p: p.update(random_state=10**400),
    "no parameter": lambda p: p.update(evil=1),
    "nothing": lambda p: p.clear(),
}


@pytest.mark.parametrize("change", EXTRACT_BOMBS.values(), ids=EXTRACT_BOMBS)
def test_an_extraction_cannot_ask_for_endless_work(lorakit_json, lorakit_, extracted, baked, base, change):
    edit(extracted / WEIGHTS, lambda record: change(record["operations"][0]["params"]))
    started = time.process_time()
    assert lorakit_json("verify", extracted, "--sources", baked, base, code=3)["reason"]
    lorakit_("replay", extracted, "--sources", baked, base, code=3)
    assert time.process_time() - started < 30


@pytest.mark.parametrize("sources", [[], [{"name": "a", "sha256": None, "config_sha256": None}] * 3])
def test_an_extraction_of_other_sources_than_two(lorakit_json, lorakit_, extracted, baked, base, sources):
    def change(record):
        record.update(sources=sources)
        record["operations"][0].update(inputs=[])

    edit(extracted / WEIGHTS, change)
    lorakit_json("verify", extracted, "--sources", baked, base, code=3)
    lorakit_("replay", extracted, "--sources", baked, base, code=3)


MERGE_BOMBS = {
    "iterations": ("CtMMerger", {"random_state": 0, "max_iter": 10**6, "tol": 0.0}),
    "starts of iterations": ("LegoMerger", {"random_state": 0, "n_init": 1000, "max_iter": 9000}),
    "weights": ("SVDMerger", {"weights": [1.0] * 200_000}),
    "a name": ("SVDMerger", {"weights": {"dict": [["a" * 1_100_000, 1.0]]}}),
    "a number without end": ("SVDMerger", {"scale": 10**400}),
    "a weight without end": ("SVDMerger", {"weights": [10**400, 1, 1]}),
    "nested": ("Isotropizer", {"merger": {"class": "LegoMerger", "params": {"random_state": 0, "n_init": 10**6}}}),
}


@pytest.mark.parametrize(("name", "given"), MERGE_BOMBS.values(), ids=MERGE_BOMBS)
def test_parameters_of_a_record(lorakit_json, lorakit_, tasks, out, name, given):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    edit(out / WEIGHTS, lambda record: record["operations"][0].update({"class": name, "params": given}))
    started = time.process_time()
    assert lorakit_json("verify", out, "--sources", *tasks, code=3)["reason"]
    assert time.process_time() - started < 30


@pytest.mark.parametrize("rank", [10**9, 100_000, 513])
def test_a_record_cannot_ask_for_endless_padding(lorakit_, lorakit_json, tasks, out, rank):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    edit(out / WEIGHTS, lambda record: record["written"][0].update(rank=rank))
    assert "was padded to" in lorakit_json("replay", out, "--sources", *tasks, code=3)["reason"]


def test_whole_updates_of_thin_factors(lorakit_, lorakit_json, tmp_path, out):
    """Two files of 160 kB; their updates have 400 million entries."""
    thin = LoraFactors(torch.ones(1, 20_000), torch.ones(20_000, 1))
    paths = [save_adapter(Adapter({"m": thin}), tmp_path / name) for name in "ab"]
    lorakit_("merge", *paths, "-o", out, "-m", "svd", "-k", 1)
    recipe = {"class": "TiesMerger", "params": {"k": 1, "space": "delta"}}
    for record in (recipe, {"class": "Isotropizer", "params": {"merger": recipe, "k": 1}}):
        edit(out / WEIGHTS, lambda r, new=record: r["operations"][0].update(new))
        report = lorakit_json("verify", out, "--sources", *paths, code=3)
        assert "would be 20000 x 20000" in report["reason"]


def test_whole_updates_of_ordinary_factors(lorakit_json, tasks, out):
    merged = TiesMerger(k=4, space="delta").fit(load_adapters(tasks)).merged_
    assert lorakit_json("verify", save_adapter(merged, out), "--sources", *tasks)["verdict"] == "yes"


def test_a_record_cannot_ask_for_endless_conversions(lorakit_, lorakit_json, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)

    def change(record):
        for given in record["operations"][0]["inputs"]:
            given["conversions"] = [{"without_padding": True}] * 100

    edit(out / WEIGHTS, change)
    assert "times the work" in lorakit_json("verify", out, "--sources", *tasks, code=3)["reason"]
