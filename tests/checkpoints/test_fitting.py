"""Which tensor belongs to which module, and what is said of modules without one."""

import pytest
import torch
from models import SHAPES, adapter, tensors

from lorakit import Adapter, LoraFactors, bake, check_fit
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedCheckpointError


def named(*modules, d_in=8, d_out=12, **provenance):
    factors = LoraFactors(torch.ones(1, d_in), torch.ones(d_out, 1))
    return Adapter(dict.fromkeys(modules, factors), provenance=Provenance(**provenance))


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model.", "language_model.model."])
def test_beginnings_of_names_may_differ(prefix):
    renamed = adapter().rename_modules(lambda module: prefix + module)
    fit = check_fit(tensors(), renamed)
    assert fit.fits
    assert {targets[0].tensor for targets in fit.targets.values()} == {f"{name}.weight" for name in SHAPES}


def test_all_modules_have_one_beginning():
    """A part of the base that holds only some of the modules is not meant."""
    base = tensors() | {"draft.layers.0.q_proj.weight": torch.zeros(12, 8)}
    targets = check_fit(base, adapter()).targets
    assert targets["layers.0.q_proj"][0].tensor == "model.layers.0.q_proj.weight"


@pytest.mark.parametrize("number", [2, 3])
def test_the_t5_of_flux(number):
    """sd-scripts calls it the third encoder, OneTrainer the second, which it is in pipelines."""
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    given = named(f"lora_te{number}_{layer.replace('.', '_')}", format="kohya")
    for place in ("text_encoder_2.", "text_encoders.t5xxl.transformer."):
        base = {f"{place}{layer}.weight": torch.zeros(12, 8), "transformer.x.weight": torch.zeros(2, 2)}
        assert [t.tensor for (t,) in check_fit(base, given).targets.values()] == [f"{place}{layer}.weight"]


def test_ambiguous_names_are_refused():
    base = {"text_encoder.q.weight": torch.zeros(12, 8), "text_encoder_2.q.weight": torch.zeros(12, 8)}
    with pytest.raises(
        IncompatibleAdaptersError, match=r"'q' of 'adapter' could be 'text_encoder\.q' or 'text_encoder_2"
    ):
        check_fit(base, named("q"))
    assert check_fit(base, named("text_encoder.q")).fits


def test_missing_modules_come_with_near_names():
    fit = check_fit(tensors(), named("model.layers.0.q_proj", "model.layers.0.qproj"))
    assert not fit.fits
    assert fit.missing["model.layers.0.qproj"][0] == "model.layers.0.q_proj"
    with pytest.raises(
        IncompatibleAdaptersError, match=r"no tensor for 1 of .*'model\.layers\.0\.qproj' \(the base has"
    ):
        bake(tensors(), named("model.layers.0.q_proj", "model.layers.0.qproj"))


def test_a_renaming_is_proposed_only_where_it_is_sure():
    moved = adapter().rename_modules(lambda module: f"language_model.decoder.{module}")
    base = {f"text.{name}": tensor for name, tensor in tensors().items()}
    fit = check_fit(base, moved)
    # decoder.layers... is no end of a name of the base, and the base's is no end of it
    assert not fit.fits
    assert set(fit.renaming.values()) == {f"text.{name}" for name in SHAPES}
    renamed = moved.rename_modules(lambda module: fit.renaming.get(module, module))
    assert check_fit(base, renamed).fits
    twice = base | {f"vision.{name}": tensor for name, tensor in tensors().items()}
    assert check_fit(twice, moved).renaming == {}


def test_other_shapes():
    fit = check_fit(tensors(), named("model.layers.0.q_proj", d_in=9))
    assert list(fit.differing) == ["model.layers.0.q_proj"]
    with pytest.raises(
        IncompatibleAdaptersError, match=r"linear of d_in 9, d_out 12, and '.*q_proj\.weight' has the shape \(12, 8\)"
    ):
        fit.require()
    # the transpose is another model's layer, unless the model stores (in, out)
    turned = named("model.layers.0.q_proj", d_in=12, d_out=8)
    assert not check_fit(tensors(), turned).fits
    told = named("model.layers.0.q_proj", d_in=12, d_out=8, fan_in_fan_out=True)
    assert check_fit(tensors(), told).targets["model.layers.0.q_proj"][0].turned


def test_square_layers_of_gpt2_are_turned():
    base = {
        "h.0.attn.c_attn.weight": torch.zeros(8, 24),
        "h.0.attn.c_attn.bias": torch.zeros(24),
        "h.0.attn.c_proj.weight": torch.zeros(8, 8),
        "h.0.attn.other.weight": torch.zeros(8, 8),
    }
    fit = check_fit(base, named("h.0.attn.c_proj", "h.0.attn.other", d_out=8))
    assert fit.targets["h.0.attn.c_proj"][0].turned
    assert not fit.targets["h.0.attn.other"][0].turned
    del base["h.0.attn.c_attn.bias"]  # then the adapter's config is what there is
    assert not check_fit(base, named("h.0.attn.c_proj", d_out=8)).targets["h.0.attn.c_proj"][0].turned
    told = named("h.0.attn.c_proj", "h.0.attn.other", d_out=8, fan_in_fan_out=True)
    assert [t[0].turned for t in check_fit(base, told).targets.values()] == [True, False]


def test_embeddings_and_convolutions():
    factors = LoraFactors(torch.ones(1, 18), torch.ones(4, 1))
    kinds = {"e": ModuleKind("embedding"), "c": ModuleKind("conv", (3, 3)), "p": ModuleKind("conv", (1, 1))}
    made = Adapter(dict.fromkeys(kinds, factors), kinds=kinds)
    base = {"e.weight": torch.zeros(18, 4), "c.weight": torch.zeros(4, 2, 3, 3), "p.weight": torch.zeros(4, 18)}
    fit = check_fit(base, made)
    assert {module: targets[0].turned for module, targets in fit.targets.items()} == {"e": True, "c": False, "p": False}
    wrong = base | {"e.weight": torch.zeros(4, 18), "c.weight": torch.zeros(4, 18)}
    assert set(check_fit(wrong, made).differing) == {"e", "c"}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"q.weight": torch.zeros(12, 8).to(torch.float8_e4m3fn)},
            "'q.weight' is stored as F8_E4M3.*quantize the result",
        ),
        ({"q.weight": torch.zeros(48, 1, dtype=torch.uint8)}, "stored as U8"),
        (
            {"q.qweight": torch.zeros(1, 12, dtype=torch.int32), "q.scales": torch.zeros(1)},
            r"'q\.qweight' is of a quant",
        ),
    ],
)
def test_quantized_bases_are_refused_by_name(base, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        check_fit(base, named("q"))


def test_a_head_that_may_be_tied_elsewhere(tmp_path):
    import json

    from safetensors.torch import save_file

    kinds = {"embed_tokens": ModuleKind("embedding")}
    factors = LoraFactors(torch.ones(1, 20), torch.ones(8, 1))
    made = Adapter({"embed_tokens": factors}, kinds=kinds)
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors")
    for architecture, fits in (("T5ForConditionalGeneration", False), ("BertModel", True)):
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "tie_word_embeddings": True}))
        if fits:
            assert check_fit(folder, made).unties is None
        else:
            with pytest.raises(UnsupportedCheckpointError, match="may also be the output head of T5"):
                check_fit(folder, made)


def test_nothing_is_read():
    base = {name: tensor.to("meta") for name, tensor in tensors().items()}
    assert check_fit(base, adapter()).fits
