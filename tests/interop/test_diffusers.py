"""diffusers writes, we read; we write, diffusers reads: every module's update is the same."""

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_models import randomise

from lorakit import LegoMerger, load_adapter, load_adapters, save_adapter

diffusers = pytest.importorskip("diffusers", minversion="0.35")  # the first that stores configs in metadata
peft = pytest.importorskip("peft")
state_dicts = pytest.importorskip("diffusers.utils.state_dict_utils")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_libraries")]

loaders = diffusers.loaders
UNET_TARGETS = ["to_q", "to_out.0", "conv1", "proj_in", "linear_1"]
TRANSFORMER_TARGETS = ["to_q", "to_out.0", "ff.net.0.proj", "norm1.linear"]
CASES = {
    "sd1": (loaders.StableDiffusionLoraLoaderMixin, {"unet": tiny.sd1_unet, "text_encoder": tiny.clip}),
    "sdxl": (
        loaders.StableDiffusionXLLoraLoaderMixin,
        {"unet": tiny.sdxl_unet, "text_encoder": tiny.clip, "text_encoder_2": tiny.clip_with_projection},
    ),
    "sd3": (
        loaders.SD3LoraLoaderMixin,
        {"transformer": tiny.sd3_transformer, "text_encoder": tiny.clip, "text_encoder_2": tiny.clip_with_projection},
    ),
    "flux": (loaders.FluxLoraLoaderMixin, {"transformer": tiny.flux_transformer, "text_encoder": tiny.clip}),
}
CONFIGS = {
    "unet": {"r": 4, "lora_alpha": 6, "target_modules": UNET_TARGETS, "use_rslora": True,
             "rank_pattern": {"to_q": 2, "up_blocks.0.*conv1": 3}, "alpha_pattern": {"mid_block.*to_q": 50, "to_q": 5}},
    "transformer": {"r": 3, "lora_alpha": 9, "target_modules": TRANSFORMER_TARGETS,
                    "rank_pattern": {".*blocks.1.attn.to_q": 5}, "alpha_pattern": {"to_out.0": 1}},
    "text_encoder": {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 2}},
    "text_encoder_2": {"r": 2, "lora_alpha": 1, "target_modules": ["v_proj", "out_proj"]},
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def models_of(case, seed=None):
    """The models of a pipeline; with a seed, LoRA layers with random factors in them."""
    torch.manual_seed(0)
    models = {component: make() for component, make in CASES[case][1].items()}
    if seed is not None:
        for component, model in models.items():
            model.add_adapter(peft.LoraConfig(**CONFIGS[component]))
        randomise(*models.values(), seed=seed, size=1)
    return models


def updates_of(models):
    """PEFT's own answer, by our names: versions of transformers differ on text_model."""
    return {
        f"{component}.{path}".replace(".encoder.layers", ".text_model.encoder.layers").replace(
            "text_model.text_model", "text_model"
        ): layer.get_delta_weight("default").detach()
        for component, model in models.items()
        for path, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }


def saved_by_diffusers(case, models, folder, *, metadata=True):
    layers, configs = {}, {}
    for component, model in models.items():
        layers[f"{component}_lora_layers"] = peft.get_peft_model_state_dict(model)
        if metadata:
            configs[f"{component}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    CASES[case][0].save_lora_weights(folder, **layers, **configs)
    return folder


def loaded_by_diffusers(case, path):
    models = models_of(case)

    class Pipeline(CASES[case][0]):
        hf_device_map = None
        components = models

    pipeline = Pipeline()
    for component, model in models.items():
        setattr(pipeline, component, model)
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="default", local_files_only=True)
    return models


def assert_same(adapter, updates):
    assert set(adapter) == set(updates)
    for module, update in updates.items():
        found = adapter[module].delta().reshape(update.shape)
        assert (found - update).norm() <= 1e-5 * update.norm(), module


def test_what_diffusers_writes(case, tmp_path):
    models = models_of(case, seed=1)
    assert_same(load_adapter(saved_by_diffusers(case, models, tmp_path)), updates_of(models))


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_what_we_write(case, layout, tmp_path):
    adapter = load_adapter(saved_by_diffusers(case, models_of(case, seed=1), tmp_path / "theirs"))
    path = save_adapter(adapter, tmp_path / "ours.safetensors", layout=layout)
    assert_same(adapter, updates_of(loaded_by_diffusers(case, path)))


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_what_we_write_is_right_without_its_metadata_too(case, layout, tmp_path):
    """Older versions of diffusers ignore it, and take the rank for alpha."""
    adapter = load_adapter(saved_by_diffusers(case, models_of(case, seed=1), tmp_path / "theirs"))
    path = save_adapter(adapter, tmp_path / "ours.safetensors", layout=layout)
    save_file(load_file(path), tmp_path / "bare.safetensors", {"format": "pt"})
    assert_same(adapter, updates_of(loaded_by_diffusers(case, tmp_path / "bare.safetensors")))
    assert_same(load_adapter(tmp_path / "bare.safetensors"), {m: f.delta() for m, f in adapter.items()})


@pytest.mark.parametrize("case", ["sd1", "flux"])
def test_without_metadata_both_take_the_rank_for_alpha(case, tmp_path):
    folder = saved_by_diffusers(case, models_of(case, seed=1), tmp_path, metadata=False)
    loaded = loaded_by_diffusers(case, folder / "pytorch_lora_weights.safetensors")
    assert_same(load_adapter(folder), updates_of(loaded))


@pytest.mark.parametrize("case", ["sd1", "flux"])
def test_a_merge(case, tmp_path):
    paths = [saved_by_diffusers(case, models_of(case, seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    merged = LegoMerger(k=2, random_state=0).fit(load_adapters(paths)).merged_
    path = save_adapter(merged, tmp_path / "merged.safetensors")
    assert_same(merged, updates_of(loaded_by_diffusers(case, path)))


def test_files_of_2023(tmp_path):
    """diffusers' own converters back to its old names, which today's diffusers still reads."""
    models = models_of("sd1", seed=1)
    tensors = {}
    for component, model in models.items():
        old = state_dicts.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(model))
        tensors |= {f"{component}.{key}": tensor.contiguous() for key, tensor in old.items()}
    assert any(".lora.down" in key for key in tensors)
    assert any(".lora_linear_layer.up" in key for key in tensors)
    save_file(tensors, tmp_path / "old.safetensors", {"format": "pt"})
    adapter = load_adapter(tmp_path / "old.safetensors")
    assert set(adapter) == set(updates_of(models))
    for module, update in updates_of(models).items():
        rank = adapter[module].rank
        config = models[module.split(".")[0]].peft_config["default"]
        # These files have no scale: the update is B @ A, and PEFT's has the scale of the config on it.
        scale = next(
            layer.scaling["default"]
            for component, model in models.items()
            for path, layer in model.named_modules()
            if isinstance(layer, peft.tuners.lora.LoraLayer)
            and f"{component}.{path}".replace(".text_model.", ".") == module.replace(".text_model.", ".")
        )
        assert rank in {config.r, *config.rank_pattern.values()}
        torch.testing.assert_close(scale * adapter[module].delta().reshape(update.shape), update, rtol=1e-4, atol=1e-4)


def test_names_of_attention_processors(tmp_path):
    """As versions before 0.22 wrote them; today's converter says what each is."""
    model = tiny.sd1_unet()
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for path, layer in tiny.layers(model).items():
        parent, _, linear = path.removesuffix(".0").rpartition(".")
        if linear in ("to_q", "to_k", "to_v", "to_out"):
            down, up = tiny.random_factors(layer, 2, rng)
            tensors |= {
                f"{parent}.processor.{linear}_lora.down.weight": down,
                f"{parent}.processor.{linear}_lora.up.weight": up,
            }
    save_file(tensors, tmp_path / "old.safetensors")
    adapter = load_adapter(tmp_path / "old.safetensors")
    today = state_dicts.convert_unet_state_dict_to_peft(tensors)
    assert set(adapter) == {f"unet.{key.split('.lora_')[0]}" for key in today}
    assert {m.removeprefix("unet.") for m in adapter} <= set(tiny.layers(model))
    for module, factors in adapter.items():
        a, b = (today[f"{module.removeprefix('unet.')}.lora_{slot}.weight"] for slot in "AB")
        torch.testing.assert_close(factors.delta(), b @ a)
    path = save_adapter(adapter, tmp_path / "new.safetensors")
    assert_same(adapter, updates_of({"unet": loaded_by_diffusers("sd1", path)["unet"]}))


def test_one_models_own_file(tmp_path):
    model = models_of("flux", seed=3)["transformer"]
    model.save_lora_adapter(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    bare = {m.removeprefix("transformer."): u for m, u in updates_of({"transformer": model}).items()}
    assert_same(adapter, bare)
    path = save_adapter(adapter, tmp_path / "ours" / "x.safetensors", layout="compact")
    again = models_of("flux")["transformer"]
    again.load_lora_adapter(
        path.parent, weight_name=path.name, prefix=None, adapter_name="default", local_files_only=True
    )
    assert_same(adapter, {m.removeprefix("transformer."): u for m, u in updates_of({"transformer": again}).items()})


def test_the_model_does_what_the_dense_sum_does(tmp_path):
    models = models_of("sd1", seed=4)
    adapter = load_adapter(saved_by_diffusers("sd1", models, tmp_path / "theirs"))
    path = save_adapter(adapter, tmp_path / "ours.safetensors")
    loaded = loaded_by_diffusers("sd1", path)["unet"].eval()
    dense = tiny_with_updates(adapter)
    rng = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 5, 12, generator=rng)
    with torch.no_grad():
        found, expected = (model(sample, 3, encoder_hidden_states=text).sample for model in (loaded, dense))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def tiny_with_updates(adapter):
    model = models_of("sd1")["unet"].eval()
    with torch.no_grad():
        for path, layer in tiny.layers(model).items():
            if f"unet.{path}" in adapter:
                layer.weight += adapter[f"unet.{path}"].delta().reshape(layer.weight.shape)
    return model
