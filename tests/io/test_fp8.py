"""fp8 files: every value is read as it is, and what is made of them is bfloat16."""

import pickle
from functools import partial

import joblib
import pytest
import torch
from click.testing import CliRunner
from peft_files import pair, write_directory
from safetensors.torch import load_file, save_file
from single_files import lora_ab, write_file, write_mlx

from lorakit import Adapter, ConcatMerger, LegoPruner, LoraFactors, SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.cli import main
from lorakit.exceptions import UnsupportedAdapterError

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def every_value(dtype):
    """All finite values of a dtype of fp8."""
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).float()
    return values[values.isfinite()]


def update(tensors, scale=1.0):
    a, b = (t.double() for t in tensors.values())
    return scale * b @ a


@pytest.mark.parametrize("dtype", FP8)
def test_bfloat16_holds_every_value(dtype):
    values = every_value(dtype)
    assert len(values) > 240
    assert torch.equal(values.to(dtype).to(torch.bfloat16).float(), values)


@pytest.mark.parametrize("dtype", FP8)
def test_peft(write_peft, tmp_path, dtype):
    values = every_value(dtype)
    a, b = values[None, :].to(dtype), torch.ones(3, 1).to(dtype)
    names = [f"base_model.model.q.lora_{slot}.weight" for slot in "AB"]
    path = write_peft(dict(zip(names, (a, b), strict=True)), r=1, lora_alpha=1)
    adapter = load_adapter(path)
    assert adapter.dtype == torch.bfloat16
    assert adapter["q"].dtype == torch.float32
    assert torch.equal(adapter["q"].delta(), values.expand(3, -1))
    again = pickle.loads(pickle.dumps(adapter))
    assert joblib.hash(again) == joblib.hash(adapter)
    written = load_file(save_adapter(adapter, tmp_path / "out") / WEIGHTS)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert torch.equal(written[names[0]].float(), a.float())  # its scale is 1, so nothing is rounded


@pytest.mark.parametrize("dtype", FP8)
def test_every_format(tmp_path, dtype):
    a, b = pair(r=2, dtype=dtype).values()
    dense = b.double() @ a.double()
    module = "lora_unet_down_blocks_0_attentions_0_proj_in"
    kohya = {f"{module}.lora_down.weight": a, f"{module}.lora_up.weight": b, f"{module}.alpha": torch.tensor(1.0)}
    stacked = {"model.layers.0.q.lora_a": a.T.contiguous(), "model.layers.0.q.lora_b": b.T.contiguous()}
    named = {
        "kohya.safetensors": kohya,
        "diffusers.safetensors": lora_ab("unet.mid.to_q", dtype=dtype),
        "comfyui.safetensors": lora_ab("diffusion_model.mid.to_q", dtype=dtype),
        "bare.safetensors": lora_ab("transformer_blocks.0.attn.to_q", dtype=dtype),
    }
    for name, tensors in named.items():
        adapter = load_adapter(write_file(tmp_path / name, tensors))
        assert f"{adapter.provenance.format}.safetensors" == name
        assert adapter.dtype == torch.bfloat16
        (factors,) = adapter.values()
        scale = 0.5 if tensors is kohya else 1
        torch.testing.assert_close(factors.delta().double(), scale * dense, rtol=1e-6, atol=1e-6)
    adapter = load_adapter(write_mlx(tmp_path / "mlx", stacked))
    torch.testing.assert_close(adapter["model.layers.0.q"].delta().double(), 20 * dense, rtol=1e-6, atol=1e-5)


def test_pickle(write_peft):
    tensors = pair(dtype=torch.float8_e5m2)
    path = write_peft(tensors)
    (path / WEIGHTS).unlink()
    torch.save(tensors, path / "adapter_model.bin")
    adapter = load_adapter(path, allow_pickle=True)
    torch.testing.assert_close(adapter["enc.0.q"].delta().double(), update(tensors, 2.0), rtol=1e-6, atol=1e-6)


def test_experts(write_peft):
    a, b = torch.randn(6, 5).to(FP8[0]), torch.randn(3, 6).to(FP8[0])
    names = [f"base_model.model.mlp.experts.lora_{slot}.weight" for slot in "AB"]
    path = write_peft(
        dict(zip(names, (a, b), strict=True)), target_modules=[], target_parameters=["mlp.experts.w"], lora_alpha=2
    )
    adapter = load_adapter(path)
    assert list(adapter) == [f"mlp.experts.{i}" for i in range(3)]
    expected = b.double()[:, 1::3] @ a.double()[2:4]
    torch.testing.assert_close(adapter["mlp.experts.1"].delta().double(), expected, rtol=1e-6, atol=1e-6)


def test_loha(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)}
    tensors = {key: torch.randn(shape, generator=generator).to(FP8[0]) for key, shape in shapes.items()}
    path = write_file(tmp_path / "x.safetensors", {f"lora_unet_q.{key}": tensor for key, tensor in tensors.items()})
    w1_a, w1_b, w2_a, w2_b = (tensor.double() for tensor in tensors.values())
    adapter = load_adapter(path)
    torch.testing.assert_close(
        adapter["lora_unet_q"].delta().double(), (w1_a @ w1_b) * (w2_a @ w2_b), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("other", "result"),
    [(torch.float8_e5m2, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_merge(write_peft, other, result):
    tensors = [pair(dtype=FP8[0]), pair(dtype=other, seed=1)]
    paths = [write_peft(content, folder=str(i), lora_alpha=2) for i, content in enumerate(tensors)]
    adapters = load_adapters(paths)
    assert adapters.dtype == result
    merged = ConcatMerger().fit(adapters).merged_
    assert merged.dtype == result
    exact = sum(update(content) for content in tensors) / 2
    error = (merged["enc.0.q"].delta().double() - exact).norm() / exact.norm()
    assert error < 2 * torch.finfo(result).eps
    assert LegoPruner(k=1).fit_transform(adapters[:1])[0].dtype == torch.bfloat16


def test_a_file_of_two_dtypes(write_peft):
    a, b = pair().items()
    path = write_peft({a[0]: a[1].to(FP8[0]), b[0]: b[1].half()})
    assert load_adapter(path).dtype == torch.float16  # which holds the values of fp8 too


def test_extra_weights_are_carried(write_peft, tmp_path):
    head = torch.randn(2, 5).to(FP8[0])
    path = write_peft({**pair(dtype=FP8[0]), "base_model.model.score.weight": head}, modules_to_save=["score"])
    with pytest.warns(UserWarning, match="carried along"):
        adapter = load_adapter(path, modules_to_save="first")
    written = load_file(save_adapter(adapter, tmp_path / "out") / WEIGHTS)["base_model.model.score.weight"]
    assert written.dtype == torch.bfloat16
    assert torch.equal(written.float(), head.float())


def test_a_scale_of_its_own_is_refused(tmp_path):
    for key in ("q.lora_A.scale_weight", "q.lora_B.weight_scale", "scaled_fp8"):
        tensors = {**lora_ab("diffusion_model.q", dtype=FP8[0]), f"diffusion_model.{key}": torch.ones(1)}
        path = write_file(tmp_path / "x.safetensors", tensors)
        for drop in ("refuse", "drop"):  # without the scale the update would be another one
            with pytest.raises(UnsupportedAdapterError, match=f"{key}' belongs to quantized weights.*dequantize"):
                load_adapter(path, modules_to_save=drop)


def test_in_memory():
    a, b = torch.randn(2, 5).to(FP8[0]), torch.randn(3, 2).to(FP8[0])
    factors = LoraFactors(a, b)
    assert factors.dtype == torch.bfloat16
    assert torch.equal(factors.A.float(), a.float())
    merged = SVDMerger(k=2).fit([Adapter({"q": factors})]).merged_
    assert merged.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float64.*got torch\.float8_e4m3fn"):
        merged.astype(FP8[0])


def test_command_line(write_peft, tmp_path):
    paths = [str(write_peft(pair(dtype=FP8[0], seed=i), folder=f"t{i}")) for i in range(2)]
    run = CliRunner().invoke
    merged = str(tmp_path / "out")
    for command in (
        ["inspect", *paths],
        ["merge", *paths, "-o", merged, "-m", "svd", "-k", "2"],
        ["verify", merged, "--sources", *paths],
        ["diff", paths[0], paths[0]],
        ["convert", paths[0], "-o", str(tmp_path / "half"), "--dtype", "float16"],
    ):
        done = run(main, command)
        assert done.exit_code == 0, (command, done.output)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}


@pytest.mark.interop
def test_peft_reads_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(5, 3))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "x")
    file = tmp_path / "x" / WEIGHTS
    save_file({key: tensor.to(FP8[0]) for key, tensor in load_file(file).items()}, file)
    base = torch.nn.Sequential(torch.nn.Linear(5, 3))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "x")
    delta = theirs.base_model.model[0].get_delta_weight("default")
    torch.testing.assert_close(load_adapter(tmp_path / "x")["0"].delta(), delta, rtol=1e-6, atol=1e-6)
