"""Stable Diffusion 3 and 3.5. The last block's context has no gates, and diffusers swaps its shift and scale."""

from __future__ import annotations

from .family import Family

SD_3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    models=r"(^|[^a-z])sd[-_.]?3|stable[-_ ]diffusion[-_ ]?(v)?3",
    flat_names_of_diffusers=True,
    table="""
x_embedder.proj                      pos_embed.proj
context_embedder
t_embedder.mlp.0                     time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2                     time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0                     time_text_embed.text_embedder.linear_1
y_embedder.mlp.2                     time_text_embed.text_embedder.linear_2
joint_blocks.#.x_block.attn.qkv      transformer_blocks.#.attn.{to_q,to_k,to_v}
joint_blocks.#.x_block.attn.proj     transformer_blocks.#.attn.to_out.0
joint_blocks.#.x_block.attn2.qkv     transformer_blocks.#.attn2.{to_q,to_k,to_v}
joint_blocks.#.x_block.attn2.proj    transformer_blocks.#.attn2.to_out.0
joint_blocks.#.x_block.mlp.fc1       transformer_blocks.#.ff.net.0.proj
joint_blocks.#.x_block.mlp.fc2       transformer_blocks.#.ff.net.2
joint_blocks.#.x_block.adaLN_modulation.1        transformer_blocks.#.norm1.linear
joint_blocks.#.context_block.attn.qkv            transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}
joint_blocks.#.context_block.attn.proj           transformer_blocks.#.attn.to_add_out
joint_blocks.#.context_block.mlp.fc1             transformer_blocks.#.ff_context.net.0.proj
joint_blocks.#.context_block.mlp.fc2             transformer_blocks.#.ff_context.net.2
joint_blocks.#.context_block.adaLN_modulation.1  transformer_blocks.#.norm1_context.linear  ratio=6
joint_blocks.#.context_block.adaLN_modulation.1  transformer_blocks.#.norm1_context.linear  swapped  ratio=2
final_layer.linear                   proj_out
final_layer.adaLN_modulation.1       norm_out.linear                                        swapped
""",
    norms="""
joint_blocks.#.x_block.attn.ln_q        transformer_blocks.#.attn.norm_q
joint_blocks.#.x_block.attn.ln_k        transformer_blocks.#.attn.norm_k
joint_blocks.#.x_block.attn2.ln_q       transformer_blocks.#.attn2.norm_q
joint_blocks.#.x_block.attn2.ln_k       transformer_blocks.#.attn2.norm_k
joint_blocks.#.context_block.attn.ln_q  transformer_blocks.#.attn.norm_added_q
joint_blocks.#.context_block.attn.ln_k  transformer_blocks.#.attn.norm_added_k
""",
)
