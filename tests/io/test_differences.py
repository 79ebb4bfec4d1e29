"""Differences of biases and norms: read, refused, written, converted."""

import pickle

import joblib
import pytest
import torch
from click.testing import CliRunner
from difference_files import ADDED, P, assert_added, contents, kept, read, vectors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import lora_ab, write_file

from lorakit import (
    ConcatMerger,
    SVDMerger,
    convert_adapter,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.cli import main
from lorakit.exceptions import (
    CorruptFileError,
    OutputError,
    UnsupportedAdapterError,
)


def test_read(tmp_path):
    path = write_file(tmp_path / "x.safetensors", contents())
    adapter = kept(path)
    assert list(adapter) == [f"{P}q"]
    assert_added(adapter, vectors(0))
    assert adapter.differences.infos[f"{P}q.bias"] == (torch.float32, (3,))
    again = pickle.loads(pickle.dumps(adapter))
    assert joblib.hash(again) == joblib.hash(adapter)
    assert_added(again, vectors(0))
    with pytest.raises(
        UnsupportedAdapterError, match=r"b_norm' belongs to .*without factors \(so do 3 more\).*'keep'.*'drop'"
    ):
        load_adapter(path)
    with pytest.warns(UserWarning, match=r"left out, because of differences='drop'"):
        assert load_adapter(path, differences="drop").differences is None
    with pytest.raises(ValueError, match="differences must be 'refuse', 'keep' or 'drop', got 'first'"):
        load_adapter(path, differences="first")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_dtypes(tmp_path, dtype):
    adapter = kept(write_file(tmp_path / "x.safetensors", contents(dtype=dtype)))
    assert_added(adapter, {name: vector.to(dtype) for name, vector in vectors(0).items()})


def test_kohya_and_bare(tmp_path):
    flat = {f"lora_unet_{key.removeprefix(P)}": tensor for key, tensor in contents().items()}
    kohya = {key.replace("lora_A.", "lora_down.").replace("lora_B.", "lora_up."): t for key, t in flat.items()}
    adapter = kept(write_file(tmp_path / "kohya.safetensors", kohya))
    assert adapter.provenance.format == "kohya"
    assert set(adapter.differences.infos) == {f"lora_unet_{name}" for name in ADDED}
    bare = {f"double_blocks.0.{key.removeprefix(P)}": tensor for key, tensor in contents().items()}
    adapter = kept(write_file(tmp_path / "bare.safetensors", bare))
    assert adapter.provenance.format == "bare"
    for format in ("kohya", "bare"):
        path = tmp_path / f"{format}.safetensors"
        given = kept(path)
        again = kept(save_adapter(given, tmp_path / f"{format}-out.safetensors"))
        assert read(again).keys() == read(given).keys()
        assert all(torch.equal(vector, read(given)[name]) for name, vector in read(again).items())


BAD = {
    "a matrix": (
        {"norm.w_norm": torch.ones(2, 5)},
        CorruptFileError,
        r"has the shape \(2, 5\), expected a vec",
    ),
    "twice": ({"norm.diff": torch.ones(5)}, CorruptFileError, r"norm\.\w+' and '.*norm\.\w+' are both added to"),
    "empty": ({"q.diff_b": torch.ones(0)}, CorruptFileError, "diff_b' is empty"),
    "integers": ({"q.diff_b": torch.ones(3).int()}, UnsupportedAdapterError, "diff_b' is stored as I32"),
    "replaced": ({"norm.set_weight": torch.ones(3)}, UnsupportedAdapterError, "set_weight' belongs to whole"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    changes, error, message = BAD[case]
    path = write_file(tmp_path / "x.safetensors", contents() | {P + key: t for key, t in changes.items()})
    with pytest.raises(error, match=message):
        kept(path)


def test_not_finite(tmp_path):
    tensors = contents() | {f"{P}q.diff_b": torch.tensor([1, torch.nan, 3])}
    adapter = kept(write_file(tmp_path / "x.safetensors", tensors))
    with pytest.raises(CorruptFileError, match=r"q\.diff_b' has NaN .*differences='drop'"):
        adapter.differences.read(f"{P}q.bias")


def test_written(tmp_path):
    two = load_adapters([write_file(tmp_path / f"{i}.safetensors", contents(i)) for i in range(2)], differences="keep")
    merged = SVDMerger(k=2).fit(two).merged_
    path = save_adapter(merged, tmp_path / "out.safetensors", dtype=torch.bfloat16)
    stored = load_file(path)
    assert {key: tensor.dtype for key, tensor in stored.items() if "lora" not in key} == {
        P + key: torch.bfloat16 for key in ("q.diff_b", "norm.w_norm", "norm.b_norm", "scale.w_norm")
    }
    assert_added(kept(path), {n: v.bfloat16() for n, v in read(merged).items()})
    for format in ("control_lora", "xlabs"):
        with pytest.raises((OutputError, UnsupportedAdapterError), match="also adds to"):
            save_adapter(merged, tmp_path / "x.safetensors", format=format)
    with pytest.raises((OutputError, UnsupportedAdapterError), match="also adds to"):
        save_adapter(merged, tmp_path / "x", format="mlx")
    large = load_adapters([tmp_path / "0.safetensors"], differences="keep")[0]
    huge = ConcatMerger(strengths=[1e6]).fit([large]).merged_
    with pytest.raises(OutputError, match=r"float16 holds at most"):
        save_adapter(huge, tmp_path / "y.safetensors", dtype=torch.float16)
    assert not (tmp_path / "y.safetensors").exists()


def test_conversion(tmp_path):
    tensors = lora_ab("diffusion_model.transformer_blocks.0.attn.to_q", d_in=4, d_out=4)
    tensors |= {"diffusion_model.transformer_blocks.0.attn.to_q.diff_b": torch.arange(4.0)}
    adapter = kept(write_file(tmp_path / "q.safetensors", tensors))
    converted = convert_adapter(adapter, "bare", family="qwen-image")
    assert list(converted.differences.infos) == ["transformer_blocks.0.attn.to_q.bias"]
    (new,) = converted
    assert new == "transformer_blocks.0.attn.to_q"
    norm = {"diffusion_model.transformer_blocks.0.attn.norm_q.w_norm": torch.ones(2)}
    adapter = kept(write_file(tmp_path / "norm.safetensors", tensors | norm))
    converted = convert_adapter(adapter, "bare", family="qwen-image")
    assert set(converted.differences.infos) == {
        "transformer_blocks.0.attn.to_q.bias", "transformer_blocks.0.attn.norm_q.weight"
    }  # fmt: skip
    odd = {"diffusion_model.transformer_blocks.0.attn.odd.w_norm": torch.ones(2)}
    adapter = kept(write_file(tmp_path / "odd.safetensors", tensors | odd))
    with pytest.raises(UnsupportedAdapterError, match=r"also adds to .*odd\.weight'.*differences='drop'"):
        convert_adapter(adapter, "bare", family="qwen-image")


def test_command_line(tmp_path):
    paths = [str(write_file(tmp_path / f"{i}.safetensors", contents(i))) for i in range(2)]
    out, run = str(tmp_path / "out.safetensors"), CliRunner().invoke
    merge = ["merge", *paths, "-o", out, "-m", "svd", "-k", "2"]
    other = run(main, [*merge, "-m", "ties", "--differences", "keep"])
    assert other.exit_code == 2
    assert "merge by --method concat, svd or task_arithmetic, which add them up" in other.stderr
    matched = run(main, [*merge, "--differences", "keep", "--overwrite"])
    assert matched.exit_code == 0, matched.output
    means = [(vectors(0)[name].norm() + vectors(1)[name].norm()) / 2 for name in ADDED]
    torch.testing.assert_close([read(kept(out))[name].norm() for name in ADDED], means)
    merge += ["--scale", "1", "--overwrite"]
    refused = run(main, merge)
    assert refused.exit_code == 2
    assert "--differences keep" in refused.stderr
    done = run(main, [*merge, "--differences", "keep", "--save-recipe", str(tmp_path / "recipe.yaml")])
    assert done.exit_code == 0, done.output
    assert_added(kept(out), {name: (vectors(0)[name] + vectors(1)[name]) / 2 for name in ADDED})
    verify = ["verify", out, "--sources", *paths, "--differences"]
    done = run(main, [*verify, "keep"])
    assert done.exit_code == 0, done.output
    changed = load_file(out)
    changed[f"{P}q.diff_b"] += 1
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    save_file(changed, out, metadata)
    done = run(main, [*verify, "keep"])
    assert done.exit_code == 1
    assert "q.bias' is not what its sources give" in done.output
    done = run(main, ["merge", "--recipe", str(tmp_path / "recipe.yaml"), "--overwrite"])
    assert done.exit_code == 0, done.output
    assert_added(kept(out), {name: (vectors(0)[name] + vectors(1)[name]) / 2 for name in ADDED})
    done = run(main, ["diff", *paths, "--differences", "keep"])
    assert done.exit_code == 2
    assert "lorakit diff does not take into account" in done.stderr
    half = str(tmp_path / "half.safetensors")
    done = run(main, ["convert", paths[0], "-o", half, "--dtype", "float16", "--differences", "keep"])
    assert done.exit_code == 0, done.output
    assert_added(kept(half), {name: v.half() for name, v in vectors(0).items()})
    done = run(main, ["prune", *paths, "-o", str(tmp_path / "pruned"), "-m", "svd", "-k", "1", "--differences", "keep"])
    assert done.exit_code == 0, done.output
