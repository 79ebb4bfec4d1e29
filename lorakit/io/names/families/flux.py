"""FLUX.1 and models with its blocks, such as Chroma."""

from __future__ import annotations

from .family import Family

FLUX = Family(
    name="flux",
    title="FLUX.1",
    models=r"flux(?![._-]?[23])|chroma",
    flat_names_of_diffusers=True,
    table="""
img_in                          x_embedder
txt_in                          context_embedder
time_in.in_layer                time_text_embed.timestep_embedder.linear_1
time_in.out_layer               time_text_embed.timestep_embedder.linear_2
guidance_in.in_layer            time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer           time_text_embed.guidance_embedder.linear_2
vector_in.in_layer              time_text_embed.text_embedder.linear_1
vector_in.out_layer             time_text_embed.text_embedder.linear_2
double_blocks.#.img_mod.lin     transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.lin     transformer_blocks.#.norm1_context.linear
double_blocks.#.img_attn.qkv    transformer_blocks.#.attn.{to_q,to_k,to_v}
double_blocks.#.txt_attn.qkv    transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.#.img_attn.proj   transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj   transformer_blocks.#.attn.to_add_out
double_blocks.#.img_mlp.0       transformer_blocks.#.ff.net.0.proj                              ratio=4
double_blocks.#.img_mlp.2       transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.0       transformer_blocks.#.ff_context.net.0.proj                      ratio=4
double_blocks.#.txt_mlp.2       transformer_blocks.#.ff_context.net.2
single_blocks.#.linear1         single_transformer_blocks.#.{attn.to_q,attn.to_k,attn.to_v,proj_mlp*4}  ratio=7
single_blocks.#.linear2         single_transformer_blocks.#.proj_out                            ratio=0.2
single_blocks.#.modulation.lin  single_transformer_blocks.#.norm.linear
final_layer.linear              proj_out
final_layer.adaLN_modulation.1  norm_out.linear                                                 swapped
""",
    others={
        "xlabs": """
double_blocks.#.processor.qkv_lora1   transformer_blocks.#.attn.{to_q,to_k,to_v}
double_blocks.#.processor.qkv_lora2   transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.#.processor.proj_lora1  transformer_blocks.#.attn.to_out.0
double_blocks.#.processor.proj_lora2  transformer_blocks.#.attn.to_add_out
single_blocks.#.processor.qkv_lora    single_transformer_blocks.#.attn.{to_q,to_k,to_v}
single_blocks.#.processor.proj_lora   single_transformer_blocks.#.proj_out
"""
    },
    norms="""
double_blocks.#.img_attn.norm.query_norm  transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn.norm.key_norm    transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn.norm.query_norm  transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn.norm.key_norm    transformer_blocks.#.attn.norm_added_k
single_blocks.#.norm.query_norm           single_transformer_blocks.#.attn.norm_q
single_blocks.#.norm.key_norm             single_transformer_blocks.#.attn.norm_k
""",
)
