"""``lorakit inspect`` on what has no factors, and on files that are refused: how much, of what, and whose they are."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.cli import main
from lorakit.differences import MemoryDifferences
from lorakit.io.servers import check_servers

M = "diffusion_model.blocks.0"


def run(*words):
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


def written(path, seed=0, metadata=None, **more):
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        f"{M}.q.lora_A.weight": torch.randn(2, 5, generator=rng),
        f"{M}.q.lora_B.weight": torch.randn(3, 2, generator=rng),
        f"{M}.q.diff_b": torch.randn(3, generator=rng),
        f"{M}.norm.w_norm": torch.randn(5, generator=rng),
        f"{M}.norm.b_norm": torch.randn(5, generator=rng),
    }
    save_file({**tensors, **more}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("options", "then"),
    [
        ([], "refused by merge and others, unless --differences keep or drop says what to do"),
        (["--differences", "keep"], "added up by the methods concat, svd and task_arithmetic, kept by prune and"),
        (["--differences", "drop"], "left out"),
    ],
)
def test_how_many_of_which_layers_and_what_is_done(tmp_path, options, then):
    path = written(tmp_path / "a.safetensors")
    done = run(path, *options)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert f"Also adds to 3 parameters without factors, of 2 layers ({M}.norm, {M}.q); {then}" in text
    (row,) = json.loads(run(path, *options, "--json").stdout)["adapters"]
    found = row["differences"]
    assert found.pop("then").startswith(then)
    assert found == {"parameters": 3, "numbers": 13, "layers": [f"{M}.norm", f"{M}.q"], "without_factors": 1}


def test_several(tmp_path):
    paths = [written(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab")]
    text = " ".join(run(*paths).output.split())
    assert "a: also adds to 3 parameters" in text
    assert "They can be merged with one another, by concat, svd and task_arithmetic, and by others with --diff" in text
    plain = load_adapter(paths[0], differences="keep").with_provenance(differences=None)
    path = save_adapter(plain, tmp_path / "c.safetensors")
    assert json.loads(run(path, "--json").stdout)["adapters"][0]["differences"] is None


def test_damaged_ones_are_found(tmp_path):
    path = written(tmp_path / "a.safetensors", **{f"{M}.q.diff_b": torch.tensor([1.0, torch.nan, 0.0])})
    done = run(path)
    assert done.exit_code == 2
    assert "diff_b' has NaN" in done.stderr


REFUSED = {
    "sd-scripts": ({"lora_unet_a.oft_blocks": torch.ones(2, 2, 2)}, {"ss_sd_scripts_commit_hash": "abc"}, "sd-scripts"),
    "LyCORIS": ({"lycoris_a.oft_blocks": torch.ones(2, 2, 2)}, None, "LyCORIS"),
    "nobody": ({"lora_unet_a.oft_blocks": torch.ones(2, 2, 2)}, None, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_trainer_of_a_refused_file(tmp_path, case):
    tensors, metadata, trainer = REFUSED[case]
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    done = run(tmp_path / "a.safetensors")
    assert done.exit_code == 2
    assert ("a.safetensors: trainer" in done.stderr) == (trainer is not None)
    assert trainer is None or f"a.safetensors: trainer {trainer}" in done.stderr
    (row,) = json.loads(run(tmp_path / "a.safetensors", "--json").stdout)["unreadable"]
    assert row["trainer"] == trainer


def test_the_trainer_of_a_refused_directory(tmp_path):
    save_file({"base_model.model.q.ia3_l": torch.ones(3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "peft_version": "0.21.2"}))
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "trainer PEFT 0.21.2" in done.stderr


def test_files_that_cannot_be_read_at_all_have_no_trainer(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no safetensors")
    done = run(tmp_path / "a.safetensors", tmp_path / "missing")
    assert done.exit_code == 2
    assert "trainer" not in done.stderr


def test_servers_know_biases_beside_b(tmp_path):
    """vLLM's names of tensors and llama.cpp's converter stop at them, TGI and LoRAX leave them out."""
    names = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkvo"]
    modules = {name: LoraFactors(torch.ones(8, 20), torch.ones(20, 8)) for name in names}
    added = MemoryDifferences({f"{name}.bias": torch.ones(20) for name in names})
    adapter = Adapter(modules, provenance=Provenance(base_model="org/base", differences=added))
    path = save_adapter(adapter, tmp_path / "a")
    for read in (load_adapter(path, differences="keep"), _dropped(path)):
        checks = {check.server: check for check in check_servers(read)}
        loads = {server: check.loads for server, check in checks.items()}
        assert (loads["vLLM"], loads["llama.cpp"], loads["PEFT"]) == ("no", "no", "yes")
        assert (loads["SGLang"], loads["TGI"], loads["LoRAX"]) == ("wrong", "wrong", "wrong")
        assert all(any("lora_bias" in r for r in checks[s].reasons) for s in ("vLLM", "SGLang", "TGI", "llama.cpp"))
    plain = save_adapter(adapter.with_provenance(differences=None), tmp_path / "plain")
    assert not any("lora_bias" in r for check in check_servers(load_adapter(plain)) for r in check.reasons)


def _dropped(path):
    with pytest.warns(UserWarning, match="left out"):
        return load_adapter(path, differences="drop")
