"""Tiny diffusion models with random weights, built from configs: nothing is downloaded."""

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def sd1_unet():
    """As Stable Diffusion 1: the projections around attention are 1 x 1 convolutions."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def sdxl_unet():
    """As Stable Diffusion XL: three blocks of two layers, attention with several transformer blocks in two of them."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )


def flux_transformer():
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def sd3_transformer():
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
    )


def _clip_config():
    return transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=10,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def clip():
    return transformers.CLIPTextModel(_clip_config())


def clip_with_projection():
    return transformers.CLIPTextModelWithProjection(_clip_config())


def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


def layers(model):
    """The layers that LoRA is trained on, by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def random_factors(layer, rank, rng):
    """lora_down and lora_up as trainers make them for a layer."""
    if isinstance(layer, nn.Conv2d):
        down = torch.randn(rank, layer.in_channels, *layer.kernel_size, generator=rng)
        return down, torch.randn(layer.out_channels, rank, 1, 1, generator=rng)
    return (
        torch.randn(rank, layer.in_features, generator=rng),
        torch.randn(layer.out_features, rank, generator=rng),
    )
