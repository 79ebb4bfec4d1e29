"""The modules of diffusion pipelines that LoRA is trained on, by the names that diffusers and transformers give them.

``#`` stands for a number. These lists are what un-flattening a kohya name goes by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def under(prefixes: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return every name under every prefix, joined by a dot."""
    return tuple(f"{prefix}.{name}" for prefix in prefixes for name in names)


_QKV_OUT = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
# Inside one attentions.# of a UNet, and inside one resnets.#
ATTENTION = (
    "proj_in",
    "proj_out",
    *under(["transformer_blocks.#"], (*under(["attn1", "attn2"], _QKV_OUT), *FEED_FORWARD)),
)
RESNET = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")

# Of Stable Diffusion 1, 2 and XL
UNET = (
    "conv_in",
    "conv_out",
    *under(["time_embedding"], ("linear_1", "linear_2", "cond_proj")),
    *under(["add_embedding"], ("linear_1", "linear_2")),
    *under(["down_blocks.#.attentions.#", "up_blocks.#.attentions.#", "mid_block.attentions.#"], ATTENTION),
    *under(["down_blocks.#.resnets.#", "up_blocks.#.resnets.#", "mid_block.resnets.#"], RESNET),
    "down_blocks.#.downsamplers.#.conv",
    "up_blocks.#.upsamplers.#.conv",
)

_CLIP_LAYER = (
    *under(["self_attn"], ("q_proj", "k_proj", "v_proj", "out_proj")),
    *under(["mlp"], ("fc1", "fc2")),
)
CLIP = (*under(["text_model.encoder.layers.#"], _CLIP_LAYER), "text_projection")
# transformers has dropped the level text_model from CLIPTextModel, not from CLIPTextModelWithProjection
CLIP_WITHOUT_TEXT_MODEL = under(["encoder.layers.#"], _CLIP_LAYER)

T5 = (
    *under(["encoder.block.#.layer.0.SelfAttention"], ("q", "k", "v", "o")),
    *under(["encoder.block.#.layer.1.DenseReluDense"], ("wi", "wi_0", "wi_1", "wo")),
)


def sgm_to_diffusers(n_blocks: int = 3) -> dict[str, str]:
    """Return the UNet of Stable Diffusion under the names of its first implementation (sgm), and of diffusers.

    sgm numbers residual blocks, attentions and resamplers in one sequence, two layers a block. The refiner of SDXL has
    other blocks, and is not covered.

    Parameters
    ----------
    n_blocks : int, default=3
        Blocks a side: 3 for SDXL, 4 for Stable Diffusion 1 and 2.
    """
    attention = {name: name for name in ATTENTION}
    resnet = {
        "in_layers.2": "conv1",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
        "emb_layers.1": "time_emb_proj",
    }
    places = {  # (sgm, diffusers, the names inside)
        ("middle_block.0", "mid_block.resnets.0", "resnet"),
        ("middle_block.1", "mid_block.attentions.0", "attention"),
        ("middle_block.2", "mid_block.resnets.1", "resnet"),
    }
    for row in range(3 * n_blocks):
        block, layer = divmod(row, 3)
        places.add((f"output_blocks.{row}.0", f"up_blocks.{block}.resnets.{layer}", "resnet"))
        places.add((f"output_blocks.{row}.1", f"up_blocks.{block}.attentions.{layer}", "attention"))
        if layer < 2:  # row 0 on this side is conv_in, each third one a downsampler
            places.add((f"input_blocks.{row + 1}.0", f"down_blocks.{block}.resnets.{layer}", "resnet"))
            places.add((f"input_blocks.{row + 1}.1", f"down_blocks.{block}.attentions.{layer}", "attention"))
    resamplers = {}
    for block in range(n_blocks - 1):
        resamplers[f"input_blocks.{3 * block + 3}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
        # the first block on the way up has no attention in Stable Diffusion 1 and 2: the upsampler takes that place
        place = 1 if n_blocks == 4 and block == 0 else 2
        resamplers[f"output_blocks.{3 * block + 2}.{place}.conv"] = f"up_blocks.{block}.upsamplers.0.conv"
    insides = {"resnet": resnet, "attention": attention}
    return {
        "input_blocks.0.0": "conv_in",
        "out.2": "conv_out",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        **resamplers,
        **{
            f"{old}.{inner}": f"{new}.{theirs}"
            for old, new, kind in sorted(places)
            for inner, theirs in insides[kind].items()
        },
    }
