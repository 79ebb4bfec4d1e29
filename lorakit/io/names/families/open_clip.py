"""OpenCLIP's text encoders, which single files of Stable Diffusion 2 and XL hold; transformers splits their attention.

No adapter is named by this table, so it is none of the families that adapters are converted between.
"""

from __future__ import annotations

from .family import Family

OPEN_CLIP = Family(
    name="open-clip",
    title="OpenCLIP",
    models=r"(?!)",
    table="""
token_embedding                            embeddings.token_embedding
transformer.resblocks.#.attn.in_proj       encoder.layers.#.self_attn.{q_proj,k_proj,v_proj}
transformer.resblocks.#.attn.out_proj      encoder.layers.#.self_attn.out_proj
transformer.resblocks.#.mlp.c_fc           encoder.layers.#.mlp.fc1
transformer.resblocks.#.mlp.c_proj         encoder.layers.#.mlp.fc2
text_projection
""",
)
