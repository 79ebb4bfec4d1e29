"""Adapters of fused experts and of the linear modules of experts merge together, and PEFT loads what comes out."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from test_peft_moe import targets, tuned, updates
from tiny_moe import EXPERTS, build_moe

from lorakit import ConcatMerger, load_adapter, load_adapters, save_adapter
from lorakit.cli import main
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("quiet_peft"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
]
if not hasattr(peft.tuners.lora.layer, "ParamWrapper"):
    pytest.skip("this PEFT knows no target_parameters", allow_module_level=True)

WIDTHS = {"mixtral": 24, "qwen3_moe": 12, "gpt_oss": 24, "llama4": 24}  # of an expert; the model has 16
PARTS = ("gate_proj", "up_proj", "down_proj")
OLD = {"mixtral": ("block_sparse_moe.experts", ("w1", "w3", "w2"))}  # where files call them otherwise


def write_linear(path, name, base="org/base", experts=range(4), parts=(0, 1, 2), width=None):
    """Write what a program writes in which every expert is three linear layers; return the dense updates."""
    width = WIDTHS[name] if width is None else width
    owner, names = OLD.get(name, (EXPERTS[name], PARTS))
    rng = torch.Generator().manual_seed(5)
    tensors, dense = {}, {}
    for layer in range(2):
        for expert in experts:
            for part in parts:
                d_in, d_out = (width, 16) if part == 2 else (16, width)
                a, b = torch.randn(3, d_in, generator=rng) * 0.3, torch.randn(d_out, 3, generator=rng) * 0.3
                key = f"base_model.model.model.layers.{layer}.{owner}.{expert}.{names[part]}.lora_"
                tensors |= {f"{key}A.weight": a, f"{key}B.weight": b}
                dense[layer, expert, part] = 2 * b @ a
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    targets = [names[part] for part in parts]
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return dense


def write_fused(path, name, base="org/base", **config):
    """Write with PEFT, and return its own answer: what is added to each parameter."""
    model = tuned(name, **config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(path)
    return updates(model)


def added(name, dense):
    """What linear modules add to the two parameters of each layer, as the model stores them."""
    found = {}
    for layer in range(2):
        gate, up, down = (torch.stack([dense[layer, e, part] for e in range(4)]) for part in range(3))
        rows = torch.stack([gate, up], 2).flatten(1, 2) if name == "gpt_oss" else torch.cat([gate, up], 1)
        turned = name in ("gpt_oss", "llama4")  # stored as (in, out)
        path = f"model.layers.{layer}.{EXPERTS[name]}"
        found[f"{path}.base_layer"], found[path] = (x.mT if turned else x for x in (rows, down))
    return found


@pytest.mark.parametrize("name", WIDTHS)
def test_both_orders(name, tmp_path):
    """PEFT's own updates of the merge, and the linear modules of it, are the sums of what the two adapters add."""
    base = "openai/gpt-oss-20b" if name == "gpt_oss" else "org/base"
    fused = write_fused(tmp_path / "fused", name, base)
    dense = write_linear(tmp_path / "linear", name, base)
    order = "outputs of gate and up in turns" if name == "gpt_oss" else "gate above up"
    with pytest.warns(UserWarning, match=rf"24 modules of 'linear' were joined into 16.*gate_up_proj holds {order}"):
        adapters = load_adapters([tmp_path / "fused", tmp_path / "linear"])
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    loaded = peft.PeftModel.from_pretrained(build_moe(name), save_adapter(merged, tmp_path / "out"))
    expected = added(name, dense)
    for layer, update in updates(loaded).items():
        torch.testing.assert_close(update, fused[layer] + expected.get(layer, 0), rtol=1e-5, atol=1e-5)

    with pytest.warns(UserWarning, match=r"16 modules of 'fused' were split into 24"):
        adapters = load_adapters([tmp_path / "linear", tmp_path / "fused"])
    assert {info.rank for info in adapters["fused"].infos.values()} == {2}  # as PEFT wrote it
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    owner, names = OLD.get(name, (EXPERTS[name], PARTS))
    for (layer, expert, part), update in dense.items():
        path = f"model.layers.{layer}.{EXPERTS[name]}"
        theirs = fused[path if part == 2 else f"{path}.base_layer"][expert]
        theirs = theirs.T if name in ("gpt_oss", "llama4") else theirs
        if part < 2:
            theirs = theirs[part::2] if name == "gpt_oss" else theirs.chunk(2)[part]
        module = f"model.layers.{layer}.{owner}.{expert}.{names[part]}"
        torch.testing.assert_close(merged[module].delta(), theirs + update, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_joined_as_peft_joins(name, tmp_path):
    """PEFT fuses the linear modules of an older adapter when it loads it into the model; so does lorakit."""
    write_fused(tmp_path / "fused", name)
    write_linear(tmp_path / "linear", name)
    theirs = peft.PeftModel.from_pretrained(build_moe(name), tmp_path / "linear")
    if not any(".experts" in layer for layer in updates(theirs)):
        pytest.skip("this PEFT does not fuse them")
    with pytest.warns(UserWarning, match="experts were brought to the layout of 'fused'"):
        adapters = load_adapters([tmp_path / "fused", tmp_path / "linear"])
    ours = peft.PeftModel.from_pretrained(build_moe(name), save_adapter(adapters["linear"], tmp_path / "out"))
    assert set(updates(ours)) == set(updates(theirs))
    for layer, update in updates(theirs).items():
        torch.testing.assert_close(updates(ours)[layer], update, rtol=1e-6, atol=1e-6)


def test_fused_differently(tmp_path):
    """One adapter has one parameter, the other both; PEFT takes only adapters of the same ones together."""
    down = write_fused(tmp_path / "down", "mixtral", target_parameters=targets("mixtral", "down_proj"))
    both = write_fused(tmp_path / "both", "mixtral", seed=2)
    with pytest.warns(UserWarning, match="8 modules of 'down' were arranged as 8, of gate_up_proj and down_proj"):
        adapters = load_adapters([tmp_path / "down", tmp_path / "both"])
    path = save_adapter(ConcatMerger(scale=2).fit(adapters).merged_, tmp_path / "out")
    for layer, update in updates(peft.PeftModel.from_pretrained(build_moe("mixtral"), path)).items():
        expected = both[layer] + (0 if "base_layer" in layer else down[layer])
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-5)


def test_some_experts_and_parts(tmp_path):
    """What the linear adapter lacks counts as nothing."""
    fused = write_fused(tmp_path / "fused", "qwen3_moe")
    dense = write_linear(tmp_path / "linear", "qwen3_moe", experts=[1, 3], parts=[1])
    with pytest.warns(UserWarning, match="4 modules of 'linear' were joined into 4"):
        adapters = load_adapters([tmp_path / "fused", tmp_path / "linear"])
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    path = "model.layers.1.mlp.experts.base_layer"
    expected = fused[path].clone()
    for expert in (1, 3):
        expected[expert, 12:] += dense[1, expert, 1]
    for expert in range(4):
        torch.testing.assert_close(merged[f"{path}.{expert}"].delta(), expected[expert], rtol=1e-5, atol=1e-5)


def test_on_the_command_line(tmp_path):
    write_fused(tmp_path / "fused", "mixtral", target_parameters=[*targets("mixtral"), "mlp.gate.weight"])
    write_linear(tmp_path / "linear", "mixtral")
    paths = [str(tmp_path / "linear"), str(tmp_path / "fused")]
    out = str(tmp_path / "out")
    done = CliRunner().invoke(main, ["merge", *paths, "-o", out, "--method", "concat", "--scale", "2"])
    assert done.exit_code == 0, done.output
    assert "18 modules of 'fused' were split into 24, of w1, w3, w2 of each expert" in done.stderr
    assert "model.layers.0.block_sparse_moe.gate" in load_adapter(out)
    verified = CliRunner().invoke(main, ["verify", out, *(word for path in paths for word in ("--sources", path))])
    assert verified.exit_code == 0, verified.output
    again = str(tmp_path / "again")
    replayed = CliRunner().invoke(main, ["replay", out, "-o", again])
    assert replayed.exit_code == 0, replayed.output
    assert (tmp_path / "again/adapter_model.safetensors").read_bytes() == (
        tmp_path / "out/adapter_model.safetensors"
    ).read_bytes()


def test_ambiguous(tmp_path):
    write_linear(tmp_path / "linear", "qwen3_moe", base=None)
    write_fused(tmp_path / "fused", "qwen3_moe", None)
    with pytest.raises(
        UnsupportedAdapterError,
        match=r"fused.*names its base model.*gate first, as in most.*alternating, as in gpt-oss",
    ):
        load_adapters([tmp_path / "linear", tmp_path / "fused"])
    write_linear(tmp_path / "square", "qwen3_moe", width=16, parts=[2])
    model = build_moe("qwen3_moe")
    model.config.moe_intermediate_size = 16
    square = type(model)(model.config)
    wrapped = peft.get_peft_model(
        square, peft.LoraConfig(r=2, target_parameters=["mlp.experts.down_proj"], target_modules=["q_proj"])
    )
    wrapped.save_pretrained(tmp_path / "down")
    with pytest.raises(UnsupportedAdapterError, match=r"down.*16 x 16.*transposed=False\) or transposed=True"):
        load_adapters([tmp_path / "square", tmp_path / "down"])


def test_of_other_models(tmp_path):
    write_fused(tmp_path / "fused", "qwen3_moe")
    write_linear(tmp_path / "linear", "qwen3_moe", width=20)
    with pytest.raises(
        IncompatibleAdaptersError, match="shares no module"
    ):  # other widths: nothing is brought together
        ConcatMerger().fit(load_adapters([tmp_path / "fused", tmp_path / "linear"]))
    write_linear(tmp_path / "more", "qwen3_moe", experts=[5])
    with pytest.raises(IncompatibleAdaptersError, match=r"has an expert 5, and 'fused' is for 4 experts"):
        load_adapters([tmp_path / "fused", tmp_path / "more"])
