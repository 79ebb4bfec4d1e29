"""FLUX.2. The single blocks of diffusers are fused there too."""

from __future__ import annotations

from .family import Family

FLUX_2 = Family(
    name="flux2",
    title="FLUX.2",
    models=r"flux[._-]?2",
    table="""
img_in                          x_embedder
txt_in                          context_embedder
time_in.in_layer                time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer               time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer            time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer           time_guidance_embed.guidance_embedder.linear_2
double_stream_modulation_img.lin  double_stream_modulation_img.linear
double_stream_modulation_txt.lin  double_stream_modulation_txt.linear
single_stream_modulation.lin    single_stream_modulation.linear
double_blocks.#.img_attn.qkv    transformer_blocks.#.attn.{to_q,to_k,to_v}
double_blocks.#.txt_attn.qkv    transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.#.img_attn.proj   transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj   transformer_blocks.#.attn.to_add_out
double_blocks.#.img_mlp.0       transformer_blocks.#.ff.linear_in           ratio=6
double_blocks.#.img_mlp.2       transformer_blocks.#.ff.linear_out
double_blocks.#.txt_mlp.0       transformer_blocks.#.ff_context.linear_in   ratio=6
double_blocks.#.txt_mlp.2       transformer_blocks.#.ff_context.linear_out
single_blocks.#.linear1         single_transformer_blocks.#.attn.to_qkv_mlp_proj  ratio=9
single_blocks.#.linear2         single_transformer_blocks.#.attn.to_out     ratio=0.25
final_layer.linear              proj_out
final_layer.adaLN_modulation.1  norm_out.linear                             swapped
""",
    norms="""
double_blocks.#.img_attn.norm.query_norm  transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn.norm.key_norm    transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn.norm.query_norm  transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn.norm.key_norm    transformer_blocks.#.attn.norm_added_k
single_blocks.#.norm.query_norm           single_transformer_blocks.#.attn.norm_q
single_blocks.#.norm.key_norm             single_transformer_blocks.#.attn.norm_k
""",
)
