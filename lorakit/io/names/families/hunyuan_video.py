"""HunyuanVideo, and FramePack, which has its blocks."""

from __future__ import annotations

from .family import Family

HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    title="HunyuanVideo",
    models=r"hunyuan[-_ ]?video(?![-_ ]?1[._]5)|framepack|^hunyuan$",
    flat_names_of_diffusers=True,
    table="""
img_in.proj                         x_embedder.proj
time_in.mlp.0                       time_text_embed.timestep_embedder.linear_1
time_in.mlp.2                       time_text_embed.timestep_embedder.linear_2
guidance_in.mlp.0                   time_text_embed.guidance_embedder.linear_1
guidance_in.mlp.2                   time_text_embed.guidance_embedder.linear_2
vector_in.in_layer                  time_text_embed.text_embedder.linear_1
vector_in.out_layer                 time_text_embed.text_embedder.linear_2
txt_in.input_embedder               context_embedder.proj_in
txt_in.t_embedder.mlp.0             context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.mlp.2             context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder.linear_1          context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.linear_2          context_embedder.time_text_embed.text_embedder.linear_2
txt_in.individual_token_refiner.blocks.#  context_embedder.token_refiner.refiner_blocks.#:
    self_attn_qkv                   attn.{to_q,to_k,to_v}
    self_attn_proj                  attn.to_out.0
    mlp.fc1                         ff.net.0.proj
    mlp.fc2                         ff.net.2
    adaLN_modulation.1              norm_out.linear
double_blocks.#.img_mod.linear      transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.linear      transformer_blocks.#.norm1_context.linear
double_blocks.#.img_attn_qkv        transformer_blocks.#.attn.{to_q,to_k,to_v}
double_blocks.#.txt_attn_qkv        transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.#.img_attn_proj       transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn_proj       transformer_blocks.#.attn.to_add_out
double_blocks.#.img_mlp.fc1         transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.fc2         transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.fc1         transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.fc2         transformer_blocks.#.ff_context.net.2
single_blocks.#.linear1             single_transformer_blocks.#.{attn.to_q,attn.to_k,attn.to_v,proj_mlp*4}  ratio=7
single_blocks.#.linear2             single_transformer_blocks.#.proj_out                                    ratio=0.2
single_blocks.#.modulation.linear   single_transformer_blocks.#.norm.linear
final_layer.linear                  proj_out
final_layer.adaLN_modulation.1      norm_out.linear                                                         swapped
""",
    norms="""
double_blocks.#.img_attn_q_norm  transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn_k_norm  transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn_q_norm  transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn_k_norm  transformer_blocks.#.attn.norm_added_k
single_blocks.#.q_norm           single_transformer_blocks.#.attn.norm_q
single_blocks.#.k_norm           single_transformer_blocks.#.attn.norm_k
txt_in.individual_token_refiner.blocks.#.norm1  context_embedder.token_refiner.refiner_blocks.#.norm1
txt_in.individual_token_refiner.blocks.#.norm2  context_embedder.token_refiner.refiner_blocks.#.norm2
""",
)
