"""The modules of language models that mlx-lm and transformers call the same."""

from __future__ import annotations

from .diffusion import under

MLX_AND_PEFT = (
    *under(["model.layers.#.self_attn"], ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "dense")),
    *under(
        ["model.layers.#.mlp"],
        ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "c_proj"),
    ),
    "model.embed_tokens",
    "lm_head",
)
