"""Kohya's files as tests make them."""

import torch

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def pair(module=UNET, r=2, d_in=5, d_out=3, alpha=None, seed=0, **shapes):
    """The tensors of a module, of any shapes."""
    rng = torch.Generator().manual_seed(seed)
    down, up = shapes.get("down", (r, d_in)), shapes.get("up", (d_out, r))
    tensors = {
        f"{module}.lora_down.weight": torch.randn(down, generator=rng),
        f"{module}.lora_up.weight": torch.randn(up, generator=rng),
    }
    return tensors if alpha is None else tensors | {f"{module}.alpha": torch.as_tensor(alpha)}
