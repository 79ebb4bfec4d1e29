"""Adapters of one base in several naming schemes merge together, and it is said what was renamed."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from single_files import lora_ab, pair, write_file

from lorakit import ConcatMerger, load_adapter, load_adapters, save_adapter
from lorakit.cli import main
from lorakit.exceptions import IncompatibleAdaptersError

D = 8


def kohya(path, seed=0):
    sizes = {"double_blocks_0_img_attn_qkv": (D, 3 * D), "double_blocks_0_img_mlp_0": (D, 4 * D),
             "single_blocks_0_linear1": (D, 7 * D)}  # fmt: skip
    tensors = {}
    for i, (name, (d_in, d_out)) in enumerate(sizes.items()):
        start = f"lora_unet_{name}.lora_"
        tensors |= pair(f"{start}down.weight", f"{start}up.weight", d_in=d_in, d_out=d_out, seed=seed + i)
    return write_file(path, tensors)


def ai_toolkit(path, seed=10):
    sizes = {
        "transformer_blocks.0.attn.to_q": (D, D),
        "transformer_blocks.0.attn.to_v": (D, D),
        "transformer_blocks.0.ff.net.0.proj": (D, 4 * D),
        "single_transformer_blocks.0.proj_mlp": (D, 4 * D),
    }
    tensors = {}
    for i, (name, (d_in, d_out)) in enumerate(sizes.items()):
        tensors |= lora_ab(f"transformer.{name}", d_in=d_in, d_out=d_out, seed=seed + i)
    return write_file(path, tensors)


def test_kohya_and_ai_toolkit(tmp_path):
    """The names of the second could be HunyuanVideo's too; the first shows that they are FLUX.1's."""
    paths = [kohya(tmp_path / "a.safetensors"), ai_toolkit(tmp_path / "b.safetensors")]
    with pytest.warns(UserWarning, match=r"names of flux in kohya files: 4 modules of 'b', which is diffusers"):
        adapters = load_adapters(paths)
    assert {adapter.provenance.format for adapter in adapters} == {"kohya"}
    assert adapters["b"].provenance.conversions == ({"to": "kohya", "family": "flux"},)
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    a, b = (load_adapter(path) for path in paths)
    qkv = a["lora_unet_double_blocks_0_img_attn_qkv"].delta()
    qkv[:D] += b["transformer.transformer_blocks.0.attn.to_q"].delta()
    qkv[2 * D :] += b["transformer.transformer_blocks.0.attn.to_v"].delta()
    torch.testing.assert_close(merged["lora_unet_double_blocks_0_img_attn_qkv"].delta(), qkv)
    linear1 = a["lora_unet_single_blocks_0_linear1"].delta()
    linear1[3 * D :] += b["transformer.single_transformer_blocks.0.proj_mlp"].delta()
    torch.testing.assert_close(merged["lora_unet_single_blocks_0_linear1"].delta(), linear1)
    path = save_adapter(merged, tmp_path / "out.safetensors")
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["lorakit"])
    assert record["operations"][-1]["inputs"][1]["conversions"] == [{"family": "flux", "to": "kohya"}]


def test_the_other_order_splits(tmp_path):
    paths = [ai_toolkit(tmp_path / "b.safetensors"), kohya(tmp_path / "a.safetensors")]
    with pytest.warns(UserWarning, match=r"in diffusers files: 3 modules of 'a', which is kohya"):
        adapters = load_adapters(paths)
    assert "transformer.transformer_blocks.0.attn.to_k" in adapters["a"]
    assert all(info.rank == 2 for info in adapters["a"].infos.values())


def test_merged_and_verified_on_the_command_line(tmp_path):
    paths = [str(kohya(tmp_path / "a.safetensors")), str(ai_toolkit(tmp_path / "b.safetensors"))]
    out = str(tmp_path / "out.safetensors")
    done = CliRunner().invoke(main, ["merge", *paths, "-o", out, "--method", "concat"])
    assert done.exit_code == 0, done.output
    assert "modules were renamed to be merged, to the names of flux in kohya files: 4 modules of 'b'" in done.stderr
    verified = CliRunner().invoke(main, ["verify", out, *(word for path in paths for word in ("--sources", path))])
    assert verified.exit_code == 0, verified.output


def test_kept_as_they_are(tmp_path):
    paths = [kohya(tmp_path / "a.safetensors"), ai_toolkit(tmp_path / "b.safetensors")]
    adapters = load_adapters(paths, same_names=False)
    assert [adapter.provenance.format for adapter in adapters] == ["kohya", "diffusers"]
    with pytest.raises(IncompatibleAdaptersError, match="different file families"):
        ConcatMerger().fit(adapters)


def test_without_an_exact_way_they_are_refused(tmp_path):
    other = write_file(tmp_path / "c.safetensors", lora_ab("diffusion_model.new_layer"))
    adapters = load_adapters([kohya(tmp_path / "a.safetensors"), other])
    with pytest.raises(IncompatibleAdaptersError, match="different file families"):
        ConcatMerger().fit(adapters)
