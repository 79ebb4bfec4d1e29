"""LTX-Video and LTX-2, whose names for sound are those for pictures with ``audio`` before them."""

from __future__ import annotations

from .family import Family

LTX = Family(
    name="ltx",
    title="LTX-Video and LTX-2",
    models=r"(^|[^a-z])ltx",
    table="""
patchify_proj  proj_in
audio_patchify_proj  audio_proj_in
caption_projection.linear_1
caption_projection.linear_2
audio_caption_projection.linear_1
audio_caption_projection.linear_2
adaln_single  time_embed:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
audio_adaln_single  audio_time_embed:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
av_ca_video_scale_shift_adaln_single  av_cross_attn_video_scale_shift:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
av_ca_audio_scale_shift_adaln_single  av_cross_attn_audio_scale_shift:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
av_ca_a2v_gate_adaln_single  av_cross_attn_video_a2v_gate:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
av_ca_v2a_gate_adaln_single  av_cross_attn_audio_v2a_gate:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
prompt_adaln_single  prompt_adaln:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
audio_prompt_adaln_single  audio_prompt_adaln:
    emb.timestep_embedder.linear_1
    emb.timestep_embedder.linear_2
    linear
transformer_blocks.#.attn1.to_q
transformer_blocks.#.attn1.to_k
transformer_blocks.#.attn1.to_v
transformer_blocks.#.attn1.to_out.0
transformer_blocks.#.attn2.to_q
transformer_blocks.#.attn2.to_k
transformer_blocks.#.attn2.to_v
transformer_blocks.#.attn2.to_out.0
transformer_blocks.#.audio_attn1.to_q
transformer_blocks.#.audio_attn1.to_k
transformer_blocks.#.audio_attn1.to_v
transformer_blocks.#.audio_attn1.to_out.0
transformer_blocks.#.audio_attn2.to_q
transformer_blocks.#.audio_attn2.to_k
transformer_blocks.#.audio_attn2.to_v
transformer_blocks.#.audio_attn2.to_out.0
transformer_blocks.#.audio_to_video_attn.to_q
transformer_blocks.#.audio_to_video_attn.to_k
transformer_blocks.#.audio_to_video_attn.to_v
transformer_blocks.#.audio_to_video_attn.to_out.0
transformer_blocks.#.video_to_audio_attn.to_q
transformer_blocks.#.video_to_audio_attn.to_k
transformer_blocks.#.video_to_audio_attn.to_v
transformer_blocks.#.video_to_audio_attn.to_out.0
transformer_blocks.#.ff.net.0.proj
transformer_blocks.#.ff.net.2
transformer_blocks.#.audio_ff.net.0.proj
transformer_blocks.#.audio_ff.net.2
proj_out
audio_proj_out
""",
    norms="""
transformer_blocks.#.attn1.q_norm  transformer_blocks.#.attn1.norm_q
transformer_blocks.#.attn1.k_norm  transformer_blocks.#.attn1.norm_k
transformer_blocks.#.attn2.q_norm  transformer_blocks.#.attn2.norm_q
transformer_blocks.#.attn2.k_norm  transformer_blocks.#.attn2.norm_k
transformer_blocks.#.audio_attn1.q_norm  transformer_blocks.#.audio_attn1.norm_q
transformer_blocks.#.audio_attn1.k_norm  transformer_blocks.#.audio_attn1.norm_k
transformer_blocks.#.audio_attn2.q_norm  transformer_blocks.#.audio_attn2.norm_q
transformer_blocks.#.audio_attn2.k_norm  transformer_blocks.#.audio_attn2.norm_k
transformer_blocks.#.audio_to_video_attn.q_norm  transformer_blocks.#.audio_to_video_attn.norm_q
transformer_blocks.#.audio_to_video_attn.k_norm  transformer_blocks.#.audio_to_video_attn.norm_k
transformer_blocks.#.video_to_audio_attn.q_norm  transformer_blocks.#.video_to_audio_attn.norm_q
transformer_blocks.#.video_to_audio_attn.k_norm  transformer_blocks.#.video_to_audio_attn.norm_k
""",
)
