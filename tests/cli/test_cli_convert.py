"""``lorakit convert``."""

from __future__ import annotations

import json

import pytest
import torch

from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.testing import make_adapters


def mixed(tmp_path):
    """An adapter of ranks 2 and 6, on disk."""
    small, large = (make_adapters(1, ranks=rank, random_state=rank)[0] for rank in (2, 6))
    return save_adapter(Adapter({"layer.0": small["layer.0"], "layer.1": large["layer.1"]}), tmp_path / "mixed")


def diffusion(tmp_path):
    """Two modules of a UNet, as kohya names them, with scales other than 1 (alpha 3 at rank 4)."""
    torch.manual_seed(0)
    names = ("lora_unet_mid_block_attentions_0_proj_in", "lora_unet_down_blocks_0_attentions_1_proj_out")
    modules = {name: LoraFactors(torch.randn(4, 12), torch.randn(8, 4)).scaled(0.75) for name in names}
    adapter = Adapter(modules, provenance=Provenance(format="kohya"))
    return save_adapter(adapter, tmp_path / "style.safetensors")


def exact(factors):
    return factors.to(torch.float64).delta()


def test_layouts(lorakit_json, tmp_path, out):
    source = mixed(tmp_path)
    there = lorakit_json("convert", source, "-o", out, "--layout", "compact")
    assert (there["rank_in"], there["rank_out"], there["layout"]) == ([6], [2, 6], "compact")
    assert there["identical"] is True
    assert there["bytes_out"] < there["bytes_in"]
    back = lorakit_json("convert", out, "-o", tmp_path / "again", "--layout", "portable", "--pad-to", "server")
    assert back["rank_out"] == [8]
    assert back["identical"] is True
    assert back["relative_error"] == 0
    for module, factors in load_adapter(source).items():
        torch.testing.assert_close(load_adapter(tmp_path / "again")[module].delta(), factors.delta())


@pytest.mark.parametrize(("dtype", "eps"), [("float64", 0), ("float32", 0), ("bfloat16", 2**-7), ("float16", 2**-10)])
def test_rounding_to_a_dtype_is_measured_and_reported(lorakit_json, tasks, out, dtype, eps):
    report = lorakit_json("convert", tasks[1], "-o", out, "--dtype", dtype)
    written, source = load_adapter(out), load_adapter(tasks[1])
    assert written.dtype == getattr(torch, dtype)
    assert report["identical"] is (eps == 0)
    found = {
        module: float((exact(written[module]) - exact(factors)).norm() / exact(factors).norm())
        for module, factors in source.items()
    }
    assert report["relative_errors"] == pytest.approx(found, rel=0.01, abs=1e-9)
    assert report["worst_module"]["relative_error"] == max(report["relative_errors"].values())
    assert report["worst_module"]["relative_error"] <= eps
    if eps:
        assert report["relative_error"] > eps / 50


def test_there_and_back_between_formats(lorakit_, lorakit_json, tmp_path):
    source = diffusion(tmp_path)
    report = lorakit_json("convert", source, "-o", tmp_path / "peft", "--to", "peft")
    assert (report["format_in"], report["format"], report["modules"]) == ("kohya", "peft", 2)
    assert "mid_block.attentions.0.proj_in" in load_adapter(tmp_path / "peft")
    again = tmp_path / "again.safetensors"
    lorakit_("convert", tmp_path / "peft", "-o", again, "--to", "kohya", "--component", "unet")
    one, other = load_adapter(source), load_adapter(again)
    assert set(one) == set(other)
    for module, factors in one.items():
        torch.testing.assert_close(other[module].delta(), factors.delta())


def test_onto_itself(lorakit_json, tasks):
    before = {module: factors.delta() for module, factors in load_adapter(tasks[2]).items()}
    report = lorakit_json("convert", tasks[2], "-o", tasks[2], "--dtype", "bfloat16", "--overwrite")
    assert report["bytes_out"] < report["bytes_in"]
    after = load_adapter(tasks[2])
    assert after.dtype == torch.bfloat16
    for module, delta in before.items():
        torch.testing.assert_close(after[module].delta(), delta, rtol=0.05, atol=0.05)


def test_table(lorakit_, tasks, out, tmp_path):
    text = lorakit_("convert", tasks[0], "-o", out, "--dtype", "float16").stdout
    assert "Read back and compared: relative error of the update 0.000" in text
    assert f"wrote {out} (float16, portable)" in text
    text = lorakit_("convert", tasks[0], "-o", tmp_path / "same").stdout
    assert "the same factors, bit for bit" in text
    assert lorakit_("convert", tasks[0], "-o", tmp_path / "silent", "--quiet").output == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "gguf"], "format must be one of"),
        (["--to", "kohya"], "pass --component text_encoder"),
        (["--layout", "compact", "--pad-to", "8"], "--pad-to goes with --layout portable"),
        (["--pad-to", "2"], "to be padded to 2"),
        (["--name", "a", "--name", "b"], "--name can be given once"),
        (["--to", "comfyui"], "no exact way"),
    ],
)
def test_refusals_leave_nothing(lorakit_, tasks, tmp_path, args, message):
    output = tmp_path / ("x.safetensors" if "kohya" in args or "comfyui" in args else "x")
    result = lorakit_("convert", tasks[0], "-o", output, *args, code=2)
    assert message in result.stderr
    assert not output.exists()


def test_what_is_there_is_kept(lorakit_, tasks, out):
    out.mkdir()
    assert "pass --overwrite" in lorakit_("convert", tasks[0], "-o", out, code=2).stderr


def test_overflow_names_the_option(lorakit_, tmp_path, out):
    huge = Adapter({"m": LoraFactors(torch.full((1, 2), 1e6), torch.full((2, 1), 1e6))})
    result = lorakit_("convert", save_adapter(huge, tmp_path / "huge"), "-o", out, "--dtype", "float16", code=2)
    assert "--dtype bfloat16" in result.stderr
    assert not out.exists()


def test_a_loss_is_an_error(lorakit_, tasks, out, monkeypatch):
    """If what is read back were something else, it would be said."""
    import lorakit.io.formats.peft.codec as peft

    right = peft.tensors
    monkeypatch.setattr(peft, "tensors", lambda *args, **kw: (tensor * 1.01 for tensor in right(*args, **kw)))
    result = lorakit_("convert", tasks[0], "-o", out, code=70)
    assert "holds other updates" in result.stderr


def test_the_record_stays(lorakit_, tasks, out, tmp_path):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    lorakit_("convert", out, "-o", tmp_path / "half", "--dtype", "bfloat16")
    lorakit_("verify", tmp_path / "half", "--sources", *tasks)
    assert json.loads(lorakit_("diff", out, tmp_path / "half", "--json").stdout)["same"]
