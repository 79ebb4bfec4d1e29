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
)
