"""Kohya's single files: what is read, what is refused, and that what is written holds the same updates."""

import hashlib
import json
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kohya_files import CONV, TEXT, UNET, pair
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch.nn.functional import conv2d

from lorakit import Adapter, LegoMerger, LoraFactors, convert_adapter, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import LorakitError, OutputError, UnsupportedAdapterError


@pytest.fixture
def write(tmp_path):
    def write_file(tensors, name="task", **metadata):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata or None)
        return tmp_path / f"{name}.safetensors"

    return write_file


def delta_of(tensors, module=UNET):
    return tensors[f"{module}.lora_up.weight"].flatten(1) @ tensors[f"{module}.lora_down.weight"].flatten(1)


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        (None, 1.0),
        (torch.tensor(3.0, dtype=torch.float64), 1.5),
        (torch.tensor(3.0, dtype=torch.bfloat16), 1.5),
        (torch.tensor([0.5], dtype=torch.float16), 0.25),
        (torch.tensor(-1.0), -0.5),
        (torch.tensor(8), 4.0),
    ],
)
def test_alpha_of_any_kind(write, alpha, scale):
    tensors = pair(alpha=alpha)
    adapter = load_adapter(write(tensors))
    assert adapter.provenance.format == "kohya"
    assert list(adapter) == [UNET]
    assert adapter.scale(UNET) == scale
    torch.testing.assert_close(adapter[UNET].delta(), scale * delta_of(tensors))


def test_assumed_alpha_is_for_files_without_one(write):
    path = write(pair(alpha=1.0) | pair(TEXT))
    adapter = load_adapter(path, assume_alpha=6)
    assert (adapter.scale(UNET), adapter.scale(TEXT)) == (0.5, 3.0)


@pytest.mark.parametrize(
    ("down", "up", "layout"),
    [
        ((2, 5), (3, 2), ModuleKind()),
        ((2, 5, 1, 1), (3, 2, 1, 1), ModuleKind("conv", (1, 1))),
        ((2, 5, 1, 1), (3, 2), ModuleKind("conv", (1, 1))),
        ((2, 5, 3, 2), (3, 2, 1, 1), ModuleKind("conv", (3, 2))),
        ((2, 5, 3, 3), (3, 2), ModuleKind("conv", (3, 3))),
        ((2, 5, 3), (3, 2, 1), ModuleKind("conv", (3,))),
    ],
    ids=str,
)
def test_shapes(write, down, up, layout):
    tensors = pair(down=down, up=up, alpha=1.0)
    adapter = load_adapter(write(tensors))
    assert adapter.infos[UNET].kind == layout
    torch.testing.assert_close(adapter[UNET].delta(), delta_of(tensors) / 2)


def test_the_third_factor_of_a_convolution_is_folded_in(write):
    """Three convolutions after one another are the one whose kernel we hold."""
    rng = torch.Generator().manual_seed(1)
    tensors = pair(CONV, down=(4, 5, 1, 1), up=(6, 3, 1, 1), alpha=2.0)
    mid = torch.randn(3, 4, 3, 2, generator=rng)
    adapter = load_adapter(write(tensors | {f"{CONV}.lora_mid.weight": mid}))
    assert adapter.infos[CONV] == (3, 30, 6, ModuleKind("conv", (3, 2)))
    assert adapter.scale(CONV) == 0.5  # alpha over the rank of lora_down, as trainers and readers have it
    x = torch.randn(2, 5, 7, 7, generator=rng)
    thrice = conv2d(conv2d(conv2d(x, tensors[f"{CONV}.lora_down.weight"]), mid), tensors[f"{CONV}.lora_up.weight"])
    torch.testing.assert_close(conv2d(x, adapter[CONV].delta().reshape(6, 5, 3, 2)), thrice / 2)
    again = pickle.loads(pickle.dumps(adapter.select([CONV])))
    assert torch.equal(again[CONV].A, adapter[CONV].A)


PREFIXES = (
    "lora_unet",
    "lora_te",
    "lora_te1",
    "lora_te2",
    "lora_te3",
    "lora_transformer",
    "lora_prior_unet",
    "lycoris",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_is_known_by_content(write, prefix):
    assert load_adapter(write(pair(f"{prefix}_a_b"))).provenance.format == "kohya"


def mixed_adapter(dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    shapes = {UNET: (4, 6, 5), TEXT: (2, 6, 5), CONV: (1, 18, 4), "lora_unet_zero": (0, 6, 5), "lora_unet_b": (2, 3, 3)}
    modules = {
        name: LoraFactors(
            torch.randn(r, d_in, generator=rng, dtype=dtype), torch.randn(d_out, r, generator=rng, dtype=dtype)
        )
        for name, (r, d_in, d_out) in shapes.items()
    }
    return Adapter(
        modules, name="mixed", kinds={CONV: ModuleKind("conv", (3, 2))}, provenance=Provenance(format="kohya")
    )


@pytest.mark.parametrize(
    ("options", "ranks", "alpha"),
    [
        ({}, (1, 2, 4), 2.0),
        ({"layout": "compact"}, (1, 2, 4), 2.0),
        ({"layout": "portable"}, (4,), 4.0),
        ({"layout": "portable", "pad_to": "server"}, (8,), 8.0),
    ],
    ids=str,
)
def test_round_trip(tmp_path, options, ranks, alpha):
    adapter = mixed_adapter()
    path = save_adapter(adapter, tmp_path / "out.safetensors", **options)
    again = load_adapter(path)
    assert again.provenance.format == "kohya"
    assert set(again) == set(adapter)
    assert again.ranks == ranks
    for module, info in adapter.infos.items():
        assert again.infos[module][1:] == info[1:]
        torch.testing.assert_close(again[module].delta(), adapter[module].delta())
    tensors = load_file(path)
    assert tensors[f"{CONV}.lora_down.weight"].shape[1:] == (3, 3, 2)
    assert tensors[f"{CONV}.lora_up.weight"].shape[2:] == (1, 1)
    # one alpha for all: where they differ, diffusers takes some modules with the alpha of others
    assert {tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")} == {alpha}
    assert {tensor.dtype for key, tensor in tensors.items() if key.endswith(".alpha")} == {torch.float32}


@given(
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    layout=st.sampled_from(["compact", "portable"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_round_trip_of_any_ranks(ranks, layout, dtype):
    rng = torch.Generator().manual_seed(len(ranks))
    modules = {
        f"lora_unet_{i}": LoraFactors(
            torch.randn(r, 4, generator=rng).to(dtype), torch.randn(3, r, generator=rng).to(dtype)
        )
        for i, r in enumerate(ranks)
    }
    adapter = Adapter(modules, provenance=Provenance(format="kohya"))
    with tempfile.TemporaryDirectory() as folder:
        once = save_adapter(adapter, f"{folder}/once.safetensors", layout=layout)
        again = load_adapter(once)
        twice = load_adapter(save_adapter(again, f"{folder}/twice.safetensors", layout=layout))
        assert again.dtype == dtype
        exact = layout == "portable" or len({max(r, 1) for r in ranks}) == 1
        for name in adapter:
            wide = adapter[name].to(again[name].dtype)
            if exact:
                assert torch.equal(again[name].A[: wide.rank], wide.A)
                assert torch.equal(again[name].B[:, : wide.rank], wide.B)
                assert torch.equal(twice[name].A, again[name].A)
            bound = 4 * torch.finfo(dtype).eps * wide.B.norm() * wide.A.norm()
            assert (again[name].delta() - wide.delta()).norm() <= bound
            assert (twice[name].delta() - again[name].delta()).norm() <= bound


def sd_scripts_hashes(path):
    """By its recipe: save the tensors with nothing but the ss_ metadata, hash what comes out."""
    with safe_open(path, "pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key.startswith("ss_")}
    raw = save(load_file(path), metadata)
    start = 8 + int.from_bytes(raw[:8], "little")
    legacy = hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]
    return hashlib.sha256(raw[start:]).hexdigest(), legacy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hashes_are_those_of_sd_scripts(tmp_path, dtype):
    rng = torch.Generator().manual_seed(0)
    modules = {
        f"lora_unet_{name}": LoraFactors(torch.randn(r, 600, generator=rng), torch.randn(700, r, generator=rng))
        for name, r in (("a_b", 300), ("a", 300), ("c", 200))  # over 1 MiB, where the older hash begins
    }
    known = Provenance(format="kohya", metadata={"ss_tag": 'Kätzchen "1"\n\\', "modelspec.title": "x"})
    path = save_adapter(Adapter(modules, provenance=known), tmp_path / "a.safetensors", dtype=dtype)
    metadata = load_adapter(path).provenance.metadata
    assert metadata["ss_tag"] == 'Kätzchen "1"\n\\'
    with safe_open(path, "pt") as file:
        written = file.metadata()
    assert (written["sshs_model_hash"], written["sshs_legacy_hash"]) == sd_scripts_hashes(path)
    assert written["sshs_legacy_hash"] != hashlib.sha256(b"").hexdigest()[:8]
    # and the tensors lie as safetensors would order them
    ours, theirs = path.read_bytes(), save(load_file(path))
    assert ours[8 + int.from_bytes(ours[:8], "little") :] == theirs[8 + int.from_bytes(theirs[:8], "little") :]


def test_same_bytes_every_time(tmp_path):
    paths = [save_adapter(mixed_adapter(), tmp_path / f"{i}.safetensors") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_training_metadata(write, tmp_path):
    trained = {
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "some.safetensors",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_network_args": json.dumps({"conv_dim": "2", "conv_alpha": "1", "preset": "full"}),
        "sshs_model_hash": "f" * 64,
        "modelspec.title": "task",
        "modelspec.hash_sha256": "0xff",
        "format": "pt",
    }
    tensors = pair(alpha=1.0, r=4) | pair(CONV, down=(2, 5, 3, 3), up=(3, 2, 1, 1), alpha=1.0)
    adapter = load_adapter(write(tensors, **trained))
    assert adapter.provenance.base_model == "sd_v1"
    assert not {"sshs_model_hash", "modelspec.hash_sha256", "format"} & set(adapter.provenance.metadata)
    again = load_adapter(save_adapter(adapter, tmp_path / "again.safetensors"))
    assert again.provenance.metadata == {
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "some.safetensors",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "4", "preset": "full"}',
        "modelspec.title": "task",
    }
    without = adapter.with_provenance(metadata={"ss_network_module": "x"}, base_model="org/base")
    again = load_adapter(save_adapter(without, tmp_path / "without.safetensors"))
    assert again.provenance.base_model == "org/base"
    assert again.provenance.metadata == {
        "ss_network_module": "x",
        "ss_sd_model_name": "org/base",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "4",
    }


@pytest.mark.parametrize("args", ["", "[]", "no JSON", "[" * 100_000])
def test_strange_network_args_are_kept_out_of_the_way(write, tmp_path, args):
    adapter = load_adapter(write(pair(), ss_network_args=args))
    assert len(load_adapter(save_adapter(adapter, tmp_path / "again.safetensors"))) == 1


def test_a_merge_keeps_what_all_sources_say(write, tmp_path):
    paths = [
        write(pair(r=2, seed=i, alpha=1.0) | pair(TEXT, r=4, seed=i), str(i), ss_tag=str(i), ss_network_module="m")
        for i in range(3)
    ]
    merged = LegoMerger(k=3, random_state=0).fit(load_adapters(paths)).merged_
    path = save_adapter(merged, tmp_path / "merged.safetensors")
    again = load_adapter(path)
    assert again.provenance.metadata == {"ss_network_module": "m", "ss_network_dim": "3", "ss_network_alpha": "3"}
    for module in merged:
        assert torch.equal(again[module].delta(), merged[module].delta())


def test_bases_are_compared_by_version(write):
    same = [write(pair(seed=i), str(i), ss_base_model_version="sd_v1", ss_sd_model_name=f"{i}.ckpt") for i in range(2)]
    LegoMerger(k=2).fit(load_adapters(same))
    other = write(pair(seed=3), "other", ss_base_model_version="sdxl_base_v1-0")
    with pytest.warns(UserWarning, match=r"different base models.*'sd_v1'.*'sdxl_base_v1-0'"):
        LegoMerger(k=2).fit(load_adapters([same[0], other]))


def test_two_spellings_of_one_module_are_pointed_out(write):
    sgm = write(pair("lora_unet_input_blocks_4_1_proj_in", r=2) | pair("lora_te1_text_projection"), "sgm")
    other = write(pair("lora_unet_down_blocks_1_attentions_0_proj_in", r=2) | pair("lora_te1_text_projection"), "other")
    with pytest.warns(UserWarning, match=r"input_blocks_4_1_proj_in' \('sgm'\) and .* \('other'\) are one module"):
        adapters = load_adapters([sgm, other])
    merged = LegoMerger(k=2).fit([convert_adapter(adapter, "diffusers") for adapter in adapters]).merged_
    assert list(merged) == ["text_encoder.text_projection", "unet.down_blocks.1.attentions.0.proj_in"]


def test_two_spellings_of_transformers_are_pointed_out(write):
    """sd-scripts' names of FLUX.1, where Q, K and V are one layer, and OneTrainer's."""
    sd_scripts = write(pair("lora_unet_double_blocks_0_img_attn_qkv", down=(2, 6), up=(18, 2)), "sd_scripts")
    one_trainer = write(pair("lora_transformer_transformer_blocks_0_attn_to_k", down=(2, 6), up=(6, 2)), "one_trainer")
    other = write(pair("lora_transformer_transformer_blocks_1_attn_to_k", down=(2, 6), up=(6, 2)), "other")
    with pytest.warns(
        UserWarning, match=r"img_attn_qkv' \('sd_scripts'\) and .*to_k' \('one_trainer'\) are one module"
    ):
        load_adapters([sd_scripts, one_trainer])
    load_adapters([sd_scripts, other])  # a warning would be an error
    load_adapters([one_trainer, other])


QKV, PROJ = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_attn_proj"


def test_split_qkv_is_pointed_out(write):
    with pytest.warns(UserWarning, match=f"1 modules such as {QKV!r} hold Q, K and V side by side"):
        load_adapter(write(pair(QKV, r=6) | pair(PROJ, r=2)))
    with pytest.warns(UserWarning, match="split_qkv"):
        load_adapter(write(pair(QKV, r=6), ss_network_args='{"split_qkv": "True"}'))
    load_adapter(write(pair(QKV, r=2) | pair(PROJ, r=2)))  # a warning would be an error


def test_what_is_beside(write):
    path = write(pair() | {"bundle_emb.cat.string_to_param.*": torch.zeros(1, 4)})
    with pytest.raises(UnsupportedAdapterError, match=r"task.safetensors: 'bundle_emb.cat.*modules_to_save='drop'"):
        load_adapter(path)
    with pytest.warns(UserWarning, match=r"left out.*bundle_emb.cat"):
        assert list(load_adapter(path, modules_to_save="drop")) == [UNET]


def test_formats_are_told_apart(write, tmp_path):
    path = write(pair())
    with pytest.raises(LorakitError):
        load_adapter(path, format="peft")
    folder = save_adapter(mixed_adapter().with_provenance(format="peft"), tmp_path / "peft")
    with pytest.raises(UnsupportedAdapterError, match=r"is no kohya file: its first keys are.*leave format out"):
        load_adapter(folder / "adapter_model.safetensors", format="kohya")


def test_what_cannot_be_written(tmp_path):
    factors = LoraFactors(torch.ones(1, 2), torch.ones(2, 1))
    kohya = Provenance(format="kohya")
    embedding = Adapter({"lora_te_a": factors}, kinds={"lora_te_a": ModuleKind("embedding")}, provenance=kohya)
    with pytest.raises(OutputError, match="'lora_te_a' is an embedding"):
        save_adapter(embedding, tmp_path / "a.safetensors")
    dotted = Adapter({"lora_te_a.b": factors}, provenance=kohya)
    with pytest.raises(OutputError, match=r"'lora_te_a.b' has a dot in its name.*rename_modules"):
        save_adapter(dotted, tmp_path / "a.safetensors")
    big = Adapter({"lora_te_a": LoraFactors(torch.full((1, 2), 1e5), torch.ones(2, 1))}, provenance=kohya)
    with pytest.raises(OutputError, match="float16 holds at most"):
        save_adapter(big, tmp_path / "a.safetensors", dtype=torch.float16)
    with pytest.raises(OutputError, match=r"has no .safetensors at its end"):
        save_adapter(mixed_adapter(), tmp_path / "a")
    assert not list(Path(tmp_path).iterdir())
