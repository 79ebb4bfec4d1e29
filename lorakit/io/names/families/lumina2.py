"""Lumina-Image 2.0: three heads of Q share one of K and V (24 and 8), so that Q has three shares of their outputs."""

from __future__ import annotations

from .family import Family

LUMINA_2 = Family(
    name="lumina2",
    title="Lumina-Image 2.0",
    models=r"lumina[-_ ]?(image[-_ ]?)?2",
    table="""
x_embedder
t_embedder.mlp.0                    time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2                    time_caption_embed.timestep_embedder.linear_2
cap_embedder.1                      time_caption_embed.caption_embedder.1
layers.#.attention.qkv              layers.#.attn.{to_q*3,to_k,to_v}
layers.#.attention.out              layers.#.attn.to_out.0
layers.#.feed_forward.w1            layers.#.feed_forward.linear_1
layers.#.feed_forward.w2            layers.#.feed_forward.linear_2
layers.#.feed_forward.w3            layers.#.feed_forward.linear_3
layers.#.adaLN_modulation.1         layers.#.norm1.linear
noise_refiner.#.attention.qkv       noise_refiner.#.attn.{to_q*3,to_k,to_v}
noise_refiner.#.attention.out       noise_refiner.#.attn.to_out.0
noise_refiner.#.feed_forward.w1     noise_refiner.#.feed_forward.linear_1
noise_refiner.#.feed_forward.w2     noise_refiner.#.feed_forward.linear_2
noise_refiner.#.feed_forward.w3     noise_refiner.#.feed_forward.linear_3
noise_refiner.#.adaLN_modulation.1  noise_refiner.#.norm1.linear
context_refiner.#.attention.qkv     context_refiner.#.attn.{to_q*3,to_k,to_v}
context_refiner.#.attention.out     context_refiner.#.attn.to_out.0
context_refiner.#.feed_forward.w1   context_refiner.#.feed_forward.linear_1
context_refiner.#.feed_forward.w2   context_refiner.#.feed_forward.linear_2
context_refiner.#.feed_forward.w3   context_refiner.#.feed_forward.linear_3
final_layer.adaLN_modulation.1      norm_out.linear_1
final_layer.linear                  norm_out.linear_2
""",
    norms="""
cap_embedder.0  time_caption_embed.caption_embedder.0
layers.#.attention.q_norm  layers.#.attn.norm_q
layers.#.attention.k_norm  layers.#.attn.norm_k
layers.#.attention_norm1   layers.#.norm1.norm
layers.#.attention_norm2   layers.#.norm2
layers.#.ffn_norm1
layers.#.ffn_norm2
noise_refiner.#.attention.q_norm  noise_refiner.#.attn.norm_q
noise_refiner.#.attention.k_norm  noise_refiner.#.attn.norm_k
noise_refiner.#.attention_norm1   noise_refiner.#.norm1.norm
noise_refiner.#.attention_norm2   noise_refiner.#.norm2
noise_refiner.#.ffn_norm1
noise_refiner.#.ffn_norm2
context_refiner.#.attention.q_norm  context_refiner.#.attn.norm_q
context_refiner.#.attention.k_norm  context_refiner.#.attn.norm_k
context_refiner.#.attention_norm1   context_refiner.#.norm1
context_refiner.#.attention_norm2   context_refiner.#.norm2
context_refiner.#.ffn_norm1
context_refiner.#.ffn_norm2
""",
)
