"""What save_adapter writes, and that load_adapter reads the same updates back."""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.adapters import ModuleKind, Provenance, Source
from lorakit.exceptions import OutputError
from lorakit.testing import make_adapters

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
LAYOUTS = ("portable", "compact")


def mixed_adapter(seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"h.0.q": (4, 6, 5), "h.1.q": (2, 6, 5), "wte": (3, 11, 6), "conv": (1, 18, 4), "zero": (0, 6, 5)}
    modules = {
        name: LoraFactors(
            torch.randn(r, d_in, generator=rng, dtype=dtype), torch.randn(d_out, r, generator=rng, dtype=dtype)
        )
        for name, (r, d_in, d_out) in shapes.items()
    }
    return Adapter(modules, name="mixed", kinds={"wte": ModuleKind("embedding"), "conv": ModuleKind("conv", (3, 2))})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(tmp_path, layout):
    adapter = mixed_adapter()
    again = load_adapter(save_adapter(adapter, tmp_path / "out", layout=layout))
    assert set(again) == set(adapter)
    for module, info in adapter.infos.items():
        assert again.infos[module][1:] == info[1:]
        assert torch.equal(again[module].delta(), adapter[module].delta())
    assert again.ranks == ((4,) if layout == "portable" else (1, 2, 3, 4))


names = st.lists(
    st.text(alphabet="abq_01.", min_size=1, max_size=8).filter(lambda s: all(s.split("."))),
    min_size=1,
    max_size=4,
    unique=True,
)


@settings(max_examples=40, deadline=None)
@given(names=names, ranks=st.lists(st.integers(1, 4), min_size=4, max_size=4), data=st.data())
def test_round_trip_of_any_adapter(names, ranks, data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    adapter = Adapter(
        {
            name: LoraFactors(torch.randn(r, 3, generator=rng).to(dtype), torch.randn(2, r, generator=rng).to(dtype))
            for name, r in zip(names, ranks, strict=False)
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        again = load_adapter(save_adapter(adapter, f"{folder}/x", layout=layout))
        assert again.dtype == dtype
        for name in adapter:  # exact: the scale of what is written is 1
            wide = adapter[name].to(again[name].dtype)
            assert torch.equal(again[name].A[: wide.rank], wide.A)
            assert torch.equal(again[name].B[:, : wide.rank], wide.B)
            assert not again[name].A[wide.rank :].any()


def test_config_is_a_whitelist(tmp_path):
    adapter = make_adapters(ranks=(3,), random_state=0)[0].with_provenance(
        base_model="org/base", task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    config = json.loads((save_adapter(adapter, tmp_path / "a") / CONFIG).read_text())
    assert config == {
        "alpha_pattern": {},
        "base_model_name_or_path": "org/base",
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 3,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 3,
        "rank_pattern": {},
        "target_modules": ["layer.0", "layer.1"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def test_compact_patterns_and_short_names_match_nothing_else(tmp_path):
    factors = {r: LoraFactors(torch.ones(r, 2), torch.ones(2, r)) for r in (1, 2, 3)}
    adapter = Adapter({"x.0.q": factors[3], "0.q": factors[1], "dense": factors[2], "x.dense": factors[3]})
    path = save_adapter(adapter, tmp_path / "a", layout="compact")
    config = json.loads((path / CONFIG).read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^0.q": 1, "^dense": 2}
    assert not re.fullmatch(config["target_modules"], "pooler.dense")
    assert all(re.fullmatch(config["target_modules"], module) for module in adapter)
    assert {name: info.rank for name, info in load_adapter(path).infos.items()} == {
        "x.0.q": 3,
        "0.q": 1,
        "dense": 2,
        "x.dense": 3,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_what_safetensors_would_write(tmp_path, dtype):
    path = save_adapter(mixed_adapter(), tmp_path / "a", dtype=dtype) / WEIGHTS
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    header, data = header_and_data(path.read_bytes())
    assert "lorakit" in header["__metadata__"]
    del header["__metadata__"]["lorakit"]
    assert (header, data) == header_and_data(save(tensors, {"format": "pt"}))


def header_and_data(file):
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def test_stored_dtype_comes_back(tmp_path):
    half = save_adapter(mixed_adapter(), tmp_path / "half", dtype=torch.bfloat16)
    again = save_adapter(load_adapter(half), tmp_path / "again")
    (_, data), (_, data_again) = (header_and_data((path / WEIGHTS).read_bytes()) for path in (half, again))
    assert data == data_again


def test_values_that_do_not_fit(tmp_path):
    big = Adapter({"m": LoraFactors(torch.full((1, 2), 1e5), torch.ones(2, 1))}, name="big")
    with pytest.raises(OutputError, match=r"big: module 'm' has values up to 1e\+05, float16.*6.55e\+04.*bfloat16"):
        save_adapter(big, tmp_path / "out", dtype=torch.float16)
    nan = Adapter({"m": LoraFactors(torch.full((1, 2), torch.nan), torch.ones(2, 1))}, name="nan")
    with pytest.raises(OutputError, match="nan: module 'm' holds NaN"):
        save_adapter(nan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_parameters_are_checked(tmp_path):
    adapter = mixed_adapter()
    with pytest.raises(ValueError, match="layout must be 'portable' or 'compact' for peft, got 'dense'"):
        save_adapter(adapter, tmp_path / "a", layout="dense")
    with pytest.raises(ValueError, match=r"dtype must be one of torch.float64, .*got torch.int8"):
        save_adapter(adapter, tmp_path / "a", dtype=torch.int8)
    with pytest.raises(OutputError, match="'adapter' has no modules"):
        save_adapter(Adapter({}), tmp_path / "a")


def test_card(tmp_path):
    source = save_adapter(make_adapters(ranks=(2,), random_state=0)[0], tmp_path / "a|b")
    known = Provenance(
        base_model="org/base",
        sources=(*load_adapter(source).provenance.sources, Source("made"), Source("gone", tmp_path / "gone")),
        operations=("SVDMerger(k=4,\n          scale=2)",),
    )
    text = (save_adapter(mixed_adapter().with_provenance(**vars(known)), tmp_path / "out") / CARD).read_text()
    assert text.startswith(
        '---\nbase_model: "org/base"\nlibrary_name: peft\ntags:\n- lora\n- lorakit\n---\n\n# mixed\n'
    )
    digest = hashlib.sha256((source / WEIGHTS).read_bytes()).hexdigest()
    assert f"| a\\|b | `{digest}` |" in text
    assert "| made | made in memory |\n| gone | file no longer there |" in text
    assert "1. `SVDMerger(k=4, scale=2)`" in text
    assert f"torch {torch.__version__}" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("base", ["/models/base", "./base", "C:\\base", None, "a b"])
def test_card_names_only_bases_that_the_hub_accepts(tmp_path, base):
    adapter = mixed_adapter().with_provenance(base_model=base)
    path = save_adapter(adapter, tmp_path / "out")
    assert "base_model" not in (path / CARD).read_text()
    assert json.loads((path / CONFIG).read_text())["base_model_name_or_path"] == base


SCRIPT = """
import hashlib, sys
from lorakit import save_adapter
from lorakit.testing import make_adapters
path = save_adapter(make_adapters(ranks=(4,), random_state=0)[0], sys.argv[1] + "/out", layout="compact")
print(hashlib.sha256(b"".join(file.read_bytes() for file in sorted(path.iterdir()))).hexdigest())
"""


def test_same_bytes_in_every_process(tmp_path):
    digests = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / seed)]
        digests.add(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(("pad_to", "written"), [(None, 5), (5, 5), (7, 7), ("server", 8)])
def test_padding_to_a_rank_keeps_the_update(tmp_path, pad_to, written):
    adapter = make_adapters(1, ranks=5, random_state=0)[0]
    back = load_adapter(save_adapter(adapter, tmp_path / "out", pad_to=pad_to))
    assert back.ranks == (written,)
    for module in adapter:
        torch.testing.assert_close(back[module].delta(), adapter[module].delta())


def test_paddings_that_cannot_be(tmp_path):
    adapter = make_adapters(1, ranks=5, random_state=0)[0]
    with pytest.raises(OutputError, match="rank 5, to be padded to 4"):
        save_adapter(adapter, tmp_path / "out", pad_to=4)
    wide = make_adapters(1, ranks=513, d_in=600, d_out=600, n_modules=1, random_state=0)[0]
    with pytest.raises(OutputError, match="padded to 512"):
        save_adapter(wide, tmp_path / "out", pad_to="server")
    for bad in (0, "other", 2.5):
        with pytest.raises(ValueError, match="pad_to must be"):
            save_adapter(adapter, tmp_path / "out", pad_to=bad)
    with pytest.raises(ValueError, match="portable"):
        save_adapter(adapter, tmp_path / "out", pad_to=8, layout="compact")
    assert not (tmp_path / "out").exists()
