"""Mochi 1. diffusers has the gate and the projection of the feed-forward layers in the other order."""

from __future__ import annotations

from .family import Family

MOCHI = Family(
    name="mochi",
    title="Mochi 1",
    models=r"mochi",
    table="""
x_embedder.proj         patch_embed.proj
t_embedder.mlp.0        time_embed.timestep_embedder.linear_1
t_embedder.mlp.2        time_embed.timestep_embedder.linear_2
t5_y_embedder.to_kv     time_embed.pooler.to_kv
t5_y_embedder.to_q      time_embed.pooler.to_q
t5_y_embedder.to_out    time_embed.pooler.to_out
t5_yproj                time_embed.caption_proj
blocks.#.mod_x          transformer_blocks.#.norm1.linear
blocks.#.mod_y          transformer_blocks.#.norm1_context.linear    ratio=2
blocks.#.mod_y          transformer_blocks.#.norm1_context.linear_1  ratio=0.5
blocks.#.attn.qkv_x     transformer_blocks.#.attn1.{to_q,to_k,to_v}
blocks.#.attn.qkv_y     transformer_blocks.#.attn1.{add_q_proj,add_k_proj,add_v_proj}
blocks.#.attn.proj_x    transformer_blocks.#.attn1.to_out.0
blocks.#.attn.proj_y    transformer_blocks.#.attn1.to_add_out
blocks.#.mlp_x.w1       transformer_blocks.#.ff.net.0.proj           swapped
blocks.#.mlp_x.w2       transformer_blocks.#.ff.net.2
blocks.#.mlp_y.w1       transformer_blocks.#.ff_context.net.0.proj   swapped
blocks.#.mlp_y.w2       transformer_blocks.#.ff_context.net.2
final_layer.mod         norm_out.linear                              swapped
final_layer.linear      proj_out
""",
    norms="""
blocks.#.attn.q_norm_x  transformer_blocks.#.attn1.norm_q
blocks.#.attn.k_norm_x  transformer_blocks.#.attn1.norm_k
blocks.#.attn.q_norm_y  transformer_blocks.#.attn1.norm_added_q
blocks.#.attn.k_norm_y  transformer_blocks.#.attn1.norm_added_k
""",
)
