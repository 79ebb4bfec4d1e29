"""Adapters in one code's names on checkpoints of another: fused layers, their parts, and text encoders of OpenCLIP."""

import numpy as np
import pytest
import torch

from lorakit import Adapter, LoraFactors, bake, check_fit, extract_adapter, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.checkpoints.sums import Term, joined
from lorakit.exceptions import IncompatibleAdaptersError, LorakitError, UnsupportedCheckpointError

D = 8  # width of a model


def an_adapter(shapes, format, metadata=None, seed=0, rank=2, size=1.0):
    rng = np.random.default_rng(seed)
    modules = {
        name: LoraFactors(rng.standard_normal((rank, d_in)), size * rng.standard_normal((d_out, rank)))
        for name, (d_out, d_in) in shapes.items()
    }
    return Adapter(modules, name="law", provenance=Provenance(format=format, metadata=metadata or {}))


def weights(shapes, prefix="", seed=9):
    rng = np.random.default_rng(seed)
    return {prefix + name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}


def dense(adapter, module):
    return adapter[module].B @ adapter[module].A


def changes(baked, base):
    return {name: baked[name] - base[name] for name in baked.changed}


def assert_changes(found, wanted):
    assert set(found) == set(wanted)
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update, rtol=0, atol=1e-12)


PARTS = {
    "transformer_blocks.0.attn.to_q": (D, D),
    "transformer_blocks.0.attn.to_v": (D, D),
    "transformer_blocks.0.attn.to_out.0": (D, D),
    "single_transformer_blocks.0.attn.to_k": (D, D),
    "single_transformer_blocks.0.proj_mlp": (4 * D, D),
    "norm_out.linear": (2 * D, D),
}
FUSED = {
    "double_blocks.0.img_attn.qkv": (3 * D, D),
    "double_blocks.0.img_attn.proj": (D, D),
    "single_blocks.0.linear1": (7 * D, D),
    "single_blocks.0.linear2": (D, 5 * D),
    "final_layer.adaLN_modulation.1": (2 * D, D),
    "double_blocks.1.txt_attn.qkv": (3 * D, D),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_parts_are_added_to_rows_of_fused_layers(prefix, format):
    name = (
        (lambda part: f"transformer.{part}")
        if format == "diffusers"
        else lambda p: "lora_transformer_" + p.replace(".", "_")
    )
    adapter = an_adapter({name(part): shape for part, shape in PARTS.items()}, format, {"ot_branch": "x"})
    base = weights({f"{layer}.weight": shape for layer, shape in FUSED.items()}, prefix)
    u = {part: dense(adapter, name(part)) for part in PARTS}
    zero = torch.zeros(D, D, dtype=torch.float64)
    shift, scale = u["norm_out.linear"][D:], u["norm_out.linear"][:D]  # the first code has the shift first
    wanted = {
        "double_blocks.0.img_attn.qkv": torch.cat(
            [u["transformer_blocks.0.attn.to_q"], zero, u["transformer_blocks.0.attn.to_v"]]
        ),
        "double_blocks.0.img_attn.proj": u["transformer_blocks.0.attn.to_out.0"],
        "single_blocks.0.linear1": torch.cat(
            [zero, u["single_transformer_blocks.0.attn.to_k"], zero, u["single_transformer_blocks.0.proj_mlp"]]
        ),
        "final_layer.adaLN_modulation.1": torch.cat([shift, scale]),
    }
    fit = check_fit(base, adapter)
    assert fit.fits, (fit.missing, fit.differing)
    assert_changes(changes(bake(base, adapter), base), {f"{prefix}{n}.weight": w for n, w in wanted.items()})


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize(("format", "before"), [("kohya", "lora_unet_"), ("comfyui", "diffusion_model.")])
def test_a_fused_layer_is_added_to_its_parts(prefix, format, before):
    flat = (lambda n: n.replace(".", "_")) if format == "kohya" else str
    names = {n: before + flat(n) for n in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")}
    adapter = an_adapter({name: FUSED[n] for n, name in names.items()}, format)
    shapes = {f"transformer_blocks.0.attn.{p}": (D, D) for p in ("to_q", "to_k", "to_v")}
    shapes |= {f"single_transformer_blocks.0.attn.{p}": (D, D) for p in ("to_q", "to_k", "to_v")}
    shapes |= {"single_transformer_blocks.0.proj_mlp": (4 * D, D)}
    base = weights({f"{layer}.weight": shape for layer, shape in shapes.items()}, prefix)
    double, single = (dense(adapter, name) for name in names.values())
    rows = dict(zip(shapes, [*double.split(D), *single[: 3 * D].split(D), single[3 * D :]], strict=True))
    assert_changes(changes(bake(base, adapter), base), {f"{prefix}{n}.weight": w for n, w in rows.items()})


def test_one_adapter_of_parts_and_one_of_the_whole_add_up():
    """Their terms overlap in the rows of one tensor."""
    base = weights({"double_blocks.0.img_attn.qkv.weight": (3 * D, D), "single_blocks.0.linear1.weight": (7 * D, D)})
    whole = an_adapter(
        {"lora_unet_double_blocks_0_img_attn_qkv": (3 * D, D), "lora_unet_single_blocks_0_linear1": (7 * D, D)}, "kohya"
    )
    parts = {"transformer_blocks.0.attn.to_k": (D, D), "single_transformer_blocks.0.proj_mlp": (4 * D, D)}
    part = an_adapter({f"transformer.{n}": s for n, s in parts.items()}, "diffusers", seed=1, rank=3)
    found = changes(bake(base, [whole, part], strengths=[0.5, -2]), base)
    double, single = (0.5 * dense(whole, module) for module in whole)
    double[D : 2 * D] -= 2 * dense(part, "transformer.transformer_blocks.0.attn.to_k")
    single[3 * D :] -= 2 * dense(part, "transformer.single_transformer_blocks.0.proj_mlp")
    assert_changes(found, dict(zip(base, (double, single), strict=True)))


def test_terms_that_overlap_are_cut():
    ones = torch.ones(1, 1)
    terms = [Term(0, torch.full((6, 1), 1.0), ones), Term(2, torch.full((2, 1), 10.0), ones), Term(3, ones * 100, ones)]
    found = torch.zeros(6)
    rows = []
    for term in joined(terms):
        rows += range(term.first_row, term.first_row + len(term.left))
        found[term.first_row : term.first_row + len(term.left)] += (term.left @ term.right)[:, 0]
    assert rows == list(range(6))
    assert found.tolist() == [1, 1, 11, 111, 1, 1]


def test_a_layer_of_other_widths_is_refused():
    adapter = an_adapter({"transformer.transformer_blocks.0.attn.to_q": (D, D)}, "diffusers")
    base = weights({"double_blocks.0.img_attn.qkv.weight": (3 * D + 3, D)})
    with pytest.raises(
        IncompatibleAdaptersError, match=r"to_q.*of which it is a part has the shape \(27, 8\), expected \(24, 8\)"
    ):
        bake(base, adapter)


def test_a_layer_of_which_the_base_lacks_a_part_is_missing():
    adapter = an_adapter({"lora_unet_double_blocks_0_img_attn_qkv": (3 * D, D)}, "kohya")
    base = weights({f"transformer_blocks.0.attn.{p}.weight": (D, D) for p in ("to_q", "to_k")})
    assert list(check_fit(base, adapter).missing) == list(adapter)


def open_clip(prefix, proj=D):
    block = f"{prefix}transformer.resblocks.0."
    return weights(
        {
            f"{block}attn.in_proj_weight": (3 * D, D),
            f"{block}attn.in_proj_bias": (3 * D,),
            f"{block}attn.out_proj.weight": (D, D),
            f"{block}attn.out_proj.bias": (D,),
            f"{block}mlp.c_fc.weight": (4 * D, D),
            f"{block}mlp.c_fc.bias": (4 * D,),
            f"{block}mlp.c_proj.weight": (D, 4 * D),
            f"{block}mlp.c_proj.bias": (D,),
            f"{prefix}text_projection": (D, proj),
            f"{prefix}token_embedding.weight": (20, D),
        }
    )


TEXT = {
    **{f"encoder.layers.0.self_attn.{p}_proj": (D, D) for p in ("q", "k", "v", "out")},
    "encoder.layers.0.mlp.fc1": (4 * D, D),
    "encoder.layers.0.mlp.fc2": (D, 4 * D),
}


def transformers_text(baked, prefix):
    """The weights of transformers' text encoder, by diffusers' own conversion."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    return utils.convert_open_clip_checkpoint(None, dict(baked), prefix=prefix)


@pytest.mark.interop
@pytest.mark.parametrize("format", ["kohya", "diffusers", "diffusers without text_model"])
@pytest.mark.parametrize(
    ("prefix", "component", "te"),
    [
        ("conditioner.embedders.1.model.", "text_encoder_2", "lora_te2"),
        ("cond_stage_model.model.", "text_encoder", "lora_te"),
    ],
)
def test_text_encoders_of_open_clip(format, prefix, component, te):
    base = open_clip(prefix)
    inside = "" if "without" in format else "text_model."
    name = (
        (lambda part: f"{te}_text_model_{part.replace('.', '_')}")
        if format == "kohya"
        else lambda part: f"{component}.{inside}{part}"
    )
    shapes = {name(part): shape for part, shape in TEXT.items()}
    if format != "kohya" and component == "text_encoder_2":
        shapes[f"{component}.text_projection"] = (D, D)
    adapter = an_adapter(shapes, format.split()[0])
    fit = check_fit(base, adapter)
    assert fit.fits, (fit.missing, fit.differing)
    before, after = transformers_text(base, prefix), transformers_text(bake(base, adapter), prefix)
    wanted = {f"text_model.{part}.weight": dense(adapter, name(part)) for part in TEXT}
    if "text_projection" in "".join(shapes):
        wanted["text_projection.weight"] = dense(adapter, f"{component}.text_projection")
    found = {key: after[key] - before[key] for key in after if not torch.equal(after[key], before[key])}
    assert_changes(found, wanted)


def test_all_models_of_sdxl_in_one_file():
    adapter = an_adapter(
        {
            "lora_unet_input_blocks_4_1_proj_in": (D, D),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": (D, D),
            "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": (D, D),
        },
        "kohya",
    )
    others = {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (D, D),
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": (D, D),
    }
    base = open_clip("conditioner.embedders.1.model.") | weights(others)
    unet, first, second = (dense(adapter, module) for module in adapter)
    zero = torch.zeros_like(second)
    assert_changes(
        changes(bake(base, adapter), base),
        {
            "model.diffusion_model.input_blocks.4.1.proj_in.weight": unet,
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": first,
            "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": torch.cat(
                [zero, second, zero]
            ),
        },
    )
    names = ("unet.down_blocks.1.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1")
    same = an_adapter(dict.fromkeys(names, (D, D)), "diffusers")
    assert_changes(
        changes(bake(base, same), base),
        {
            "model.diffusion_model.input_blocks.4.1.proj_in.weight": unet,
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": first,
        },
    )


def close(found, wanted):
    assert set(found) == set(wanted)
    for module in wanted:
        torch.testing.assert_close(dense(found, module), dense(wanted, module), rtol=0, atol=1e-10)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_extract_names_the_models_of_sdxl_as_trainers_do(format, tmp_path):
    names = (
        ("lora_unet_input_blocks_4_1_proj_in", "unet.down_blocks.1.attentions.0.proj_in", (D, D)),
        *(
            (f"lora_te{n}_text_model_{part.replace('.', '_')}", f"text_encoder{end}.text_model.{part}", shape)
            for n, end in ((1, ""), (2, "_2"))
            for part, shape in TEXT.items()
        ),
    )
    place = ("kohya", "diffusers").index(format)
    adapter = an_adapter({name[place]: name[2] for name in names}, format, size=0.01)
    first = "conditioner.embedders.0.transformer.text_model."
    base = open_clip("conditioner.embedders.1.model.")
    base |= weights({f"{first}{part}.weight": shape for part, shape in TEXT.items()})
    base |= weights({"model.diffusion_model.input_blocks.4.1.proj_in.weight": (D, D)})
    again = extract_adapter(bake(base, adapter), base, k=2, format=format)
    close(again, adapter)
    assert again.ranks == (2,)
    path = save_adapter(again, tmp_path / "out.safetensors")
    assert load_adapter(path).provenance.format == format


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_extract_parts_fused_layers_for_diffusers_and_keeps_them_for_kohya(prefix):
    adapter = an_adapter({f"transformer.{part}": shape for part, shape in PARTS.items()}, "diffusers", size=0.01)
    base = weights({f"{layer}.weight": shape for layer, shape in FUSED.items()}, prefix)
    tuned = bake(base, adapter)
    close(extract_adapter(tuned, base, k=2, format="diffusers"), adapter)
    whole = extract_adapter(tuned, base, k=4, format="kohya")
    assert_changes(changes(bake(base, whole), base), changes(tuned, base))
    assert set(whole) == {
        "lora_unet_" + layer.replace(".", "_") for layer in [*list(FUSED)[:3], "final_layer.adaLN_modulation.1"]
    }


def test_extract_by_names_refuses_what_has_none():
    base = weights({"model.layers.0.q_proj.weight": (D, D)})
    with pytest.raises(UnsupportedCheckpointError, match="no layer that kohya files have a name for"):
        extract_adapter({name: w + 0.01 for name, w in base.items()}, base, k=1, format="kohya")
    with pytest.raises(ValueError, match="format must be 'kohya'"):
        extract_adapter(base, base, k=1, format="peft")
    parts = weights({f"transformer_blocks.0.attn.{p}.weight": (D, D) for p in ("to_q", "to_k", "to_v", "add_q_proj")})
    with pytest.raises(LorakitError, match=r"several (layers here|models)"):
        extract_adapter({name: w + 0.01 for name, w in parts.items()}, parts, k=1, format="kohya")
    others = open_clip("conditioner.embedders.1.model.")
    tuned = {name: w + (0 if name.endswith("bias") else 0.01) for name, w in others.items()}
    with pytest.raises(IncompatibleAdaptersError, match=r"token_embedding.*no name in that format"):
        extract_adapter(tuned, others, k=1, format="kohya")
    dropped = extract_adapter(tuned, others, k=1, format="kohya", rest="drop")
    assert all(module.startswith("lora_te2_text_") for module in dropped)
    assert any("token_embedding" in left.tensor for left in dropped.report.left_out)
