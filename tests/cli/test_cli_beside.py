"""Records name the base and the initial adapter that a source was read with, and verify checks them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import load_adapter
from lorakit.files.checkpoint import headers_digest
from lorakit.files.open_checkpoint import open_checkpoint
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import file_digest, read_record


@pytest.fixture
def files(tmp_path):
    """A PiSSA, the adapter that it began as, and its base."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=rng)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    before = {"A": s[:2].sqrt()[:, None] * vh[:2], "B": u[:, :2] * s[:2].sqrt()}
    after = {part: tensor + torch.randn(tensor.shape, generator=rng) / 4 for part, tensor in before.items()}
    for folder, factors, init in (("before", before, True), ("after", after, "pissa")):
        (tmp_path / folder).mkdir()
        tensors = {f"base_model.model.q.lora_{part}.weight": t.contiguous() for part, t in factors.items()}
        save_file(tensors, tmp_path / folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": init}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"q.weight": weight}, tmp_path / "base.safetensors")
    save_file({"q.weight": weight, "other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    return tmp_path


def record_of(path):
    return read_record(read_header(path / "adapter_model.safetensors").metadata)


def another(files):
    """An initial adapter of the same shapes."""
    shutil.copytree(files / "before", files / "again")
    weights = files / "again" / "adapter_model.safetensors"
    save_file({key: tensor * 1.01 for key, tensor in load_file(weights).items()}, weights)
    return files / "again"


@pytest.mark.parametrize("command", ["convert", "merge", "prune"])
def test_a_record_names_the_initial_adapter(lorakit_, lorakit_json, files, out, command):
    lorakit_(command, files / "after", "-o", out, "--initial", files / "before", *(["-k", 3] * (command == "prune")))
    (source,) = record_of(out)["sources"]
    first = files / "before"
    assert source["initial"] == {
        "name": "before",
        "sha256": file_digest(first / "adapter_model.safetensors"),
        "config_sha256": file_digest(first / "adapter_config.json"),
    }
    assert "base" not in source
    if command == "convert":  # what was only read and written has no operation, and cannot be made again
        return
    verify = ("verify", out, "--sources", files / "after")
    report = lorakit_json(*verify, "--initial", first)
    assert (report["verdict"], report["sources_differ"]) == ("yes", [])
    assert report["sources"][0]["same_initial"] is True
    result = lorakit_(*verify, "--initial", another(files), code=None)
    assert result.exit_code == 1
    assert "after: read with another initial adapter than the record names" in result.stdout


def test_a_record_names_the_base(lorakit_, lorakit_json, files, out):
    lorakit_("prune", files / "after", "-o", out, "-k", 3, "--base", files / "base.safetensors")
    (source,) = record_of(out)["sources"]
    digest = headers_digest(open_checkpoint(files / "base.safetensors"))
    assert source["base"] == {"name": "base.safetensors", "headers_sha256": digest}
    assert "initial" not in source
    verify = ("verify", out, "--sources", files / "after", "--base")
    report = lorakit_json(*verify, files / "base.safetensors")
    assert (report["verdict"], report["sources"][0]["same_base"], report["sources_differ"]) == ("yes", True, [])
    report = lorakit_json(*verify, files / "other.safetensors")
    assert (report["verdict"], report["sources"][0]["same_base"], report["sources_differ"]) == ("yes", False, ["after"])
    text = lorakit_(*verify, files / "other.safetensors").stdout
    assert "after: read with another base model than the record names" in text


def test_what_was_not_needed_is_not_named(lorakit_, files, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "--base", files / "base.safetensors")
    assert all({"base", "initial"}.isdisjoint(source) for source in record_of(out)["sources"])
    both = load_adapter(files / "after", base=files / "base.safetensors", initial=files / "before")
    (source,) = both.provenance.sources
    assert source.base is None
    assert source.initial.name == "before"


def test_a_baked_model_names_the_initial_adapter(lorakit_, lorakit_json, files):
    out = files / "baked.safetensors"
    lorakit_("bake", files / "base.safetensors", files / "after", "-o", out, "--initial", files / "before")
    verify = ("verify", out, "--sources", files / "base.safetensors", files / "after")
    assert lorakit_json(*verify, "--initial", files / "before")["verdict"] == "yes"
    report = lorakit_json(*verify, "--initial", another(files), code=3)
    assert "another initial adapter" in report["reason"]


def test_a_recipe_has_the_hash_of_the_initial_adapter(lorakit_, files, out, tmp_path):
    recipe = tmp_path / "r.yaml"
    lorakit_("prune", files / "after", "-k", 3, "-o", out, "--initial", files / "before", "--save-recipe", recipe)
    assert f"initial_sha256: {file_digest(files / 'before' / 'adapter_model.safetensors')}" in recipe.read_text()
    lorakit_("prune", "--recipe", recipe, "-o", tmp_path / "two")
    changed = another(files) / "adapter_model.safetensors"
    shutil.copyfile(changed, files / "before" / "adapter_model.safetensors")
    text = lorakit_("prune", "--recipe", recipe, "-o", tmp_path / "three", code=2).stderr
    assert "initial_sha256" in text
