"""``lorakit inspect --servers``, and the rules under it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from lorakit import Adapter, LoraFactors, convert_adapter, load_adapter, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.io.servers import check_servers
from lorakit.testing import make_adapters

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
LLAMA = [f"model.layers.{i}.{kind}" for i in range(2) for kind in KINDS]


def factors(rank):
    return LoraFactors(torch.ones(rank, 20), torch.ones(20, rank))


def written(folder, modules, *, layout="portable", kinds=None, **config):
    """A PEFT directory of these modules (names, or ranks by name), with fields of its config changed."""
    ranks = modules if isinstance(modules, dict) else dict.fromkeys(modules, 8)
    adapter = Adapter({name: factors(rank) for name, rank in ranks.items()}, kinds=kinds)
    path = save_adapter(adapter.with_provenance(base_model="org/base"), folder / "a", layout=layout)
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


def checks(path, **reading):
    return {check.server: check for check in check_servers(load_adapter(path, **reading))}


def loads(path, **reading):
    return {server: check.loads for server, check in checks(path, **reading).items()}


def test_what_lorakit_writes_is_loaded_by_all_that_read_peft(tmp_path):
    found = checks(written(tmp_path, LLAMA))
    for server in ("vLLM", "SGLang", "TGI", "LoRAX", "llama.cpp", "PEFT"):
        assert (found[server].loads, found[server].reasons) == ("yes", []), server
    assert "lorakit convert --to diffusers or --to kohya" in found["diffusers"].reasons[0]
    assert "lorakit convert --to mlx" in found["MLX"].reasons[0]
    assert all(check.version for check in found.values())


@pytest.mark.parametrize(
    ("rank", "setting"), [(1, None), (16, None), (17, "32"), (64, "64"), (257, "320"), (512, "512")]
)
def test_largest_rank_of_vllm(tmp_path, rank, setting):
    check = checks(written(tmp_path, dict.fromkeys(LLAMA, rank)))["vLLM"]
    assert check.loads == "yes"
    assert check.setting == (setting and f"--max-lora-rank {setting}")


def test_a_rank_above_all_that_vllm_takes(tmp_path):
    check = checks(written(tmp_path, dict.fromkeys(LLAMA, 513)))["vLLM"]
    assert check.loads == "no"
    assert "512, this is 513" in check.reasons[0]


def test_rslora(tmp_path):
    """The scale is alpha over the root of the rank: who divides by the rank is wrong by its root, and says nothing."""
    path = written(tmp_path, LLAMA, use_rslora=True)
    assert load_adapter(path).scale(LLAMA[0]) == pytest.approx(8**0.5)
    found = loads(path)
    assert [server for server, answer in found.items() if answer == "wrong"] == ["SGLang", "llama.cpp"]
    assert found["vLLM"] == found["TGI"] == found["LoRAX"] == found["PEFT"] == "yes"


def test_ranks_that_differ(tmp_path):
    ranks = {module: 4 if "q_proj" in module else 8 for module in LLAMA}
    found = checks(written(tmp_path, ranks, layout="compact"))
    assert found["vLLM"].loads == found["PEFT"].loads == "yes"
    assert "older versions" in found["vLLM"].notes[0]
    assert found["SGLang"].loads == "no"  # tensors of another shape than its buffer
    # each kind of layer has one rank, so these stack; 4 is padded to 8, and lora_alpha = 8 over that is right
    assert found["TGI"].loads == found["LoRAX"].loads == "yes"
    assert found["llama.cpp"].loads == "wrong"  # 8 over 4
    assert "layers.0.self_attn.q_proj" in found["llama.cpp"].reasons[0]
    wider = {module: 8 if "q_proj" in module else 16 for module in LLAMA}
    found = checks(written(tmp_path / "wider", wider, layout="compact"))
    assert found["TGI"].loads == "wrong"  # 16 over the 8 of q_proj, for k_proj
    assert "after it: k_proj; write it with --pad-to 16" in found["TGI"].reasons[0]
    uneven = {module: 4 if "layers.0" in module else 8 for module in LLAMA}
    found = checks(written(tmp_path / "b", uneven, layout="compact"))
    assert found["TGI"].loads == found["LoRAX"].loads == "no"
    assert "--layout portable" in found["TGI"].reasons[0]


def test_an_alpha_pattern(tmp_path):
    found = loads(written(tmp_path, LLAMA, alpha_pattern={"q_proj": 16}))
    assert found["vLLM"] == found["PEFT"] == "yes"
    assert [found[server] for server in ("SGLang", "TGI", "LoRAX", "llama.cpp")] == ["wrong"] * 4


@pytest.mark.parametrize(("rank", "pad"), [(8, None), (16, None), (48, None), (4, 8), (12, 16), (17, 32), (24, 32)])
def test_padding_by_tgi_and_lorax(tmp_path, rank, pad):
    found = checks(written(tmp_path, dict.fromkeys(LLAMA, rank)))
    for server in ("TGI", "LoRAX"):
        assert found[server].loads == ("yes" if pad is None else "wrong")
        assert pad is None or f"--pad-to {pad}" in found[server].reasons[0]
    only_one = checks(written(tmp_path / "one", dict.fromkeys([m for m in LLAMA if "o_proj" in m], rank)))
    assert only_one["TGI"].loads == "yes"  # the scale is wrong for the kinds after the first alone


def test_layers_that_are_left_out(tmp_path):
    part = [module for module in LLAMA if not module.startswith("model.layers.0.mlp")]
    found = checks(written(tmp_path, part))
    assert found["TGI"].loads == found["LoRAX"].loads == "wrong"
    assert "in all 2 layers: down_proj, gate_proj and 1 more" in found["TGI"].reasons[0]
    assert found["SGLang"].loads == "yes"


def test_projections_that_sglang_joins(tmp_path):
    for i, (kinds, answer) in enumerate(
        [
            (("q_proj", "v_proj"), "yes"),
            (("q_proj",), "no"),
            (("q_proj", "k_proj"), "no"),
            (("k_proj", "v_proj"), "wrong"),
            (("gate_proj",), "yes"),
            (("up_proj", "down_proj"), "wrong"),
            (("o_proj",), "yes"),
        ]
    ):
        modules = [module for module in LLAMA if module.rpartition(".")[2] in kinds]
        assert checks(written(tmp_path / str(i), modules))["SGLang"].loads == answer, kinds


def test_names(tmp_path):
    found = checks(written(tmp_path, ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]))
    assert found["SGLang"].loads == found["TGI"].loads == "wrong"
    assert "transformer.h.0.attn.c_attn" in found["SGLang"].reasons[0]
    assert found["vLLM"].loads == found["llama.cpp"].loads == "yes"


def test_targets_as_a_regular_expression(tmp_path):
    assert loads(written(tmp_path, LLAMA, target_modules="q_proj|v_proj"))["SGLang"] == "no"
    assert loads(written(tmp_path / "b", LLAMA, target_modules="all-linear"))["SGLang"] == "yes"


def test_layers_of_other_kinds(tmp_path):
    modules = [*LLAMA, "model.conv", "model.embed_tokens"]
    kinds = {"model.conv": ModuleKind("conv", (2, 2)), "model.embed_tokens": ModuleKind("embedding")}
    found = checks(written(tmp_path, modules, kinds=kinds))
    assert [found[server].loads for server in ("vLLM", "SGLang", "llama.cpp")] == ["no"] * 3
    assert found["TGI"].loads == found["LoRAX"].loads == "wrong"
    assert found["PEFT"].loads == "yes"
    assert any("embeddings take LoRA: model.embed_tokens" in note for note in found["vLLM"].notes)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_modules_to_save(tmp_path):
    path = written(tmp_path, LLAMA, modules_to_save=["score"])
    found = loads(path, modules_to_save="drop")
    assert found["vLLM"] == found["PEFT"] == "yes"
    assert [found[server] for server in ("SGLang", "TGI", "LoRAX")] == ["wrong"] * 3
    assert found["llama.cpp"] == "no"
    path = written(tmp_path / "b", LLAMA, modules_to_save=["embed_tokens"])
    assert loads(path, modules_to_save="drop")["vLLM"] == "no"


def test_other_formats(tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    kohya = Adapter({name: factors(4)}, provenance=Provenance(format="kohya"))
    assert loads(save_adapter(kohya, tmp_path / "a.safetensors"))["diffusers"] == "yes"
    found = checks(save_adapter(convert_adapter(kohya, "diffusers"), tmp_path / "b.safetensors"))
    assert found["diffusers"].loads == "yes"
    assert found["vLLM"].reasons == ["does not read diffusers files: lorakit convert --to peft"]
    assert [server for server, check in found.items() if check.loads == "yes"] == ["diffusers"]


def test_only_what_was_read():
    with pytest.raises(ValueError, match="was not read from files"):
        check_servers(make_adapters(1)[0])


def test_command(lorakit_, lorakit_json, tmp_path):
    path = written(tmp_path, dict.fromkeys(LLAMA, 20), use_rslora=True)
    (row,) = lorakit_json("inspect", path, "--servers")["adapters"]
    by_name = {check["server"]: check for check in row["servers"]}
    assert by_name["vLLM"] == {
        "server": "vLLM", "version": "0.33.0", "loads": "yes", "setting": "--max-lora-rank 32", "reasons": [],
        "notes": [],
    }  # fmt: skip
    assert by_name["SGLang"]["loads"] == "wrong"
    text = lorakit_("inspect", path, "--servers").stdout
    assert "a, rank 20:" in text
    (line,) = [line for line in text.splitlines() if line.startswith("vLLM")]
    assert line.split() == ["vLLM", "0.33.0", "yes", "--max-lora-rank", "32"]
    assert "servers" not in lorakit_json("inspect", path)["adapters"][0]


def test_a_config_that_says_little(tmp_path):
    save_file(
        {
            "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": torch.ones(4, 8),
            "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight": torch.ones(8, 4),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    found = checks(tmp_path)
    assert found["PEFT"].loads == "yes"


def test_other_kinds_are_for_those_that_take_them(tmp_path):
    """A LoHa of kohya's is for none, one in a PEFT directory for PEFT; diffusers takes LoKr of ComfyUI's files."""
    loha = {f"hada_w{i}_{side}": torch.ones(3, 3) for i in "12" for side in "ab"}
    lokr = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3)}
    path = tmp_path / "x.safetensors"
    save_file({f"lora_unet_x.{part}": tensor for part, tensor in loha.items()}, path)
    assert set(loads(path).values()) == {"no"}
    assert checks(path)["diffusers"].reasons == ["does not take LoHa: lorakit convert writes plain LoRA"]
    save_file({f"diffusion_model.x.{part}": tensor for part, tensor in lokr.items()}, path)
    assert [name for name, answer in loads(path).items() if answer == "yes"] == ["diffusers"]
    assert "FLUX.2" in checks(path)["diffusers"].notes[0]
    pair = {"diffusion_model.y.lora_A.weight": torch.ones(1, 3), "diffusion_model.y.lora_B.weight": torch.ones(3, 1)}
    save_file({f"diffusion_model.x.{part}": tensor for part, tensor in lokr.items()} | pair, path)
    assert set(loads(path).values()) == {"no"}
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {f"base_model.model.layers.0.q_proj.{part}": tensor for part, tensor in loha.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 3, "alpha": 3}))
    assert [name for name, answer in loads(folder).items() if answer == "yes"] == ["PEFT"]
