"""diffusers reads the kohya files that we write, and understands their names as we do."""

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter, ConcatMerger, LoraFactors, convert_adapter, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.io.formats.diffusers.keys import read_key

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_libraries")]

Pipeline1 = diffusers.loaders.StableDiffusionLoraLoaderMixin
PipelineXL = diffusers.loaders.StableDiffusionXLLoraLoaderMixin
PipelineFlux = diffusers.loaders.FluxLoraLoaderMixin
CASES = {
    "sd1": (Pipeline1, {"unet": tiny.sd1_unet, "text_encoder": tiny.clip}),
    "sdxl": (
        PipelineXL,
        {"unet": tiny.sdxl_unet, "text_encoder": tiny.clip, "text_encoder_2": tiny.clip_with_projection},
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    pipeline, models = CASES[request.param]
    torch.manual_seed(0)
    return pipeline, {component: make() for component, make in models.items()}


def trained(models, seed, ranks=(2, 3), alpha=None):
    """A kohya file's tensors with random factors at every layer, and LoCon's third factor at 3 x 3 convolutions.

    Without ``alpha``, each layer has its own or none.
    """
    rng = torch.Generator().manual_seed(seed)
    modules = [(f"{component}.{path}", layer) for component, model in models.items() for path, layer in
               tiny.layers(model).items()]  # fmt: skip
    names = [name for name, _ in modules]
    one = LoraFactors(torch.zeros(1, 1), torch.zeros(1, 1))
    named = Adapter(dict.fromkeys(names, one), provenance=Provenance(format="diffusers"))
    tensors = {}
    for i, (kohya, (_, layer)) in enumerate(zip(convert_adapter(named, "kohya"), modules, strict=True)):
        rank = ranks[i % len(ranks)]
        down, up = tiny.random_factors(layer, rank, rng)
        tensors |= {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up}
        if alpha is not None or i % 4:
            tensors[f"{kohya}.alpha"] = torch.tensor(1.0 + i % 3 if alpha is None else alpha)
        if down.ndim == 4 and down.shape[2:] == (3, 3):
            tensors[f"{kohya}.lora_down.weight"] = down[..., :1, :1].contiguous()
            tensors[f"{kohya}.lora_mid.weight"] = torch.randn(rank, rank, 3, 3, generator=rng)
    return tensors


def loaded_by_diffusers(pipeline, models, path):
    """The update that diffusers gives each module, by component and path."""
    config = {"unet_config": models["unet"].config} if pipeline is PipelineXL else {}
    tensors, alphas = pipeline.lora_state_dict(path.parent, weight_name=path.name, local_files_only=True, **config)
    pipeline.load_lora_into_unet(tensors, alphas, models["unet"], adapter_name="x")
    for component in models.keys() - {"unet"}:
        pipeline.load_lora_into_text_encoder(tensors, alphas, models[component], prefix=component, adapter_name="x")
    return {
        f"{component}.{path}": layer.get_delta_weight("x").detach()
        for component, model in models.items()
        for path, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }


def assert_same(adapter, updates):
    named = convert_adapter(adapter, "diffusers")
    # diffusers takes text encoders' names with and without the level text_model
    ours = {name.replace(".text_model.", "."): name for name in named}
    theirs = {name.replace(".text_model.", "."): update for name, update in updates.items()}
    assert ours.keys() == theirs.keys()
    for short, name in ours.items():
        assert_close(named[name].delta().reshape(theirs[short].shape), theirs[short])


def assert_close(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("layout", ["compact", "portable"])
def test_what_we_write_is_what_diffusers_loads(case, layout, tmp_path):
    pipeline, models = case
    save_file(trained(models, 1), tmp_path / "trained.safetensors")
    adapter = load_adapter(tmp_path / "trained.safetensors")
    path = save_adapter(adapter, tmp_path / "ours.safetensors", layout=layout)
    assert len(adapter) == sum(len(tiny.layers(model)) for model in models.values())
    updates = loaded_by_diffusers(pipeline, models, path)
    assert_same(adapter, updates)


def test_a_merged_file(case, tmp_path):
    pipeline, models = case
    for seed in (1, 2):
        save_file(trained(models, seed), tmp_path / f"{seed}.safetensors", {"ss_base_model_version": "x"})
    adapters = [load_adapter(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    merged = ConcatMerger().fit(adapters).merged_
    assert merged.provenance.format == "kohya"
    updates = loaded_by_diffusers(pipeline, models, save_adapter(merged, tmp_path / "merged.safetensors"))
    assert_same(merged, updates)
    for module in merged:
        assert_close(merged[module].delta(), (adapters[0][module].delta() + adapters[1][module].delta()) / 2)


def test_a_file_as_trainers_write_it(tmp_path):
    """diffusers reads no lora_mid, and not every alpha where they differ; of the rest we read the same updates."""
    torch.manual_seed(0)
    models = {"unet": tiny.sd1_unet(), "text_encoder": tiny.clip()}
    tensors = trained(models, 1, ranks=(3, 2), alpha=5.0)
    plain = {key: tensor for key, tensor in tensors.items() if f"{key.split('.')[0]}.lora_mid.weight" not in tensors}
    path = tmp_path / "trained.safetensors"
    save_file(plain, path)
    assert_same(load_adapter(path), loaded_by_diffusers(Pipeline1, models, path))


def test_names_are_those_of_diffusers_own_conversion(case, tmp_path):
    pipeline, models = case
    save_file(trained(models, 1), tmp_path / "trained.safetensors")
    adapter = load_adapter(tmp_path / "trained.safetensors")
    tensors = load_file(save_adapter(adapter, tmp_path / "ours.safetensors"))
    if pipeline is PipelineXL:
        tensors = conversion._maybe_map_sgm_blocks_to_diffusers(tensors, models["unet"].config)
    theirs, _ = conversion._convert_non_diffusers_lora_to_diffusers(tensors)
    assert {read_key(key)[0].full for key in theirs} == set(convert_adapter(adapter, "diffusers"))


FLUX = {  # as sd-scripts names them: the modules that are one in diffusers too
    "lora_unet_double_blocks_1_img_attn_proj": (16, 16),
    "lora_unet_double_blocks_1_txt_attn_proj": (16, 16),
    "lora_unet_double_blocks_0_img_mlp_0": (16, 64),
    "lora_unet_double_blocks_0_img_mlp_2": (64, 16),
    "lora_unet_double_blocks_0_txt_mlp_0": (16, 64),
    "lora_unet_double_blocks_0_txt_mlp_2": (64, 16),
    "lora_unet_double_blocks_0_img_mod_lin": (16, 96),
    "lora_unet_double_blocks_0_txt_mod_lin": (16, 96),
    "lora_unet_single_blocks_1_linear2": (80, 16),
    "lora_unet_single_blocks_1_modulation_lin": (16, 48),
}


@pytest.mark.parametrize("native", [True, False], ids=["sd-scripts", "OneTrainer"])
def test_flux(tmp_path, native):
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = tiny.flux_transformer()
    attention = {
        f"lora_transformer_{path.replace('.', '_')}": (layer.in_features, layer.out_features)
        for path, layer in tiny.layers(model).items()
        if ".attn." in path  # diffusers knows no others under these names
    }
    tensors = {}
    for module, (d_in, d_out) in (FLUX if native else attention).items():
        tensors[f"{module}.lora_down.weight"] = torch.randn(2, d_in, generator=rng)
        tensors[f"{module}.lora_up.weight"] = torch.randn(d_out, 2, generator=rng)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "trained.safetensors")
    adapter = load_adapter(tmp_path / "trained.safetensors")
    path = save_adapter(adapter, tmp_path / "ours.safetensors")
    state = PipelineFlux.lora_state_dict(tmp_path, weight_name=path.name, local_files_only=True)
    PipelineFlux.load_lora_into_transformer(state, None, model, adapter_name="x")
    updates = {
        f"transformer.{path}": layer.get_delta_weight("x").detach()
        for path, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert_same(adapter, updates)


def test_converted_to_peft(tmp_path):
    torch.manual_seed(0)
    model = tiny.sd1_unet()
    save_file(trained({"unet": model}, 1), tmp_path / "trained.safetensors")
    adapter = load_adapter(tmp_path / "trained.safetensors")
    loaded = peft.PeftModel.from_pretrained(model, save_adapter(adapter, tmp_path / "peft", format="peft"))
    updates = {
        path: layer.get_delta_weight("default").detach()
        for path, layer in loaded.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    ours = convert_adapter(adapter, "peft")
    assert set(updates) == set(ours)
    for module, update in updates.items():
        assert_close(ours[module].delta().reshape(update.shape), update)
