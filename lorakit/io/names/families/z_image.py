"""Z-Image. Its first code has Q, K and V in one layer; trainers also use the names of diffusers as they are."""

from __future__ import annotations

from .family import Family

Z_IMAGE = Family(
    name="z-image",
    title="Z-Image",
    models=r"z[-_ ]?image",
    table="""
x_embedder                             all_x_embedder.2-1
t_embedder.mlp.0
t_embedder.mlp.2
cap_embedder.1
layers.#.attention.qkv                 layers.#.attention.{to_q,to_k,to_v}
layers.#.attention.out                 layers.#.attention.to_out.0
layers.#.feed_forward.w1
layers.#.feed_forward.w2
layers.#.feed_forward.w3
layers.#.adaLN_modulation.0
noise_refiner.#.attention.qkv          noise_refiner.#.attention.{to_q,to_k,to_v}
noise_refiner.#.attention.out          noise_refiner.#.attention.to_out.0
noise_refiner.#.feed_forward.w1
noise_refiner.#.feed_forward.w2
noise_refiner.#.feed_forward.w3
noise_refiner.#.adaLN_modulation.0
context_refiner.#.attention.qkv        context_refiner.#.attention.{to_q,to_k,to_v}
context_refiner.#.attention.out        context_refiner.#.attention.to_out.0
context_refiner.#.feed_forward.w1
context_refiner.#.feed_forward.w2
context_refiner.#.feed_forward.w3
final_layer.linear                     all_final_layer.2-1.linear
final_layer.adaLN_modulation.1         all_final_layer.2-1.adaLN_modulation.1
""",
    norms="""
cap_embedder.0
layers.#.attention.q_norm  layers.#.attention.norm_q
layers.#.attention.k_norm  layers.#.attention.norm_k
layers.#.attention_norm1
layers.#.attention_norm2
layers.#.ffn_norm1
layers.#.ffn_norm2
noise_refiner.#.attention.q_norm  noise_refiner.#.attention.norm_q
noise_refiner.#.attention.k_norm  noise_refiner.#.attention.norm_k
noise_refiner.#.attention_norm1
noise_refiner.#.attention_norm2
noise_refiner.#.ffn_norm1
noise_refiner.#.ffn_norm2
context_refiner.#.attention.q_norm  context_refiner.#.attention.norm_q
context_refiner.#.attention.k_norm  context_refiner.#.attention.norm_k
context_refiner.#.attention_norm1
context_refiner.#.attention_norm2
context_refiner.#.ffn_norm1
context_refiner.#.ffn_norm2
""",
)
