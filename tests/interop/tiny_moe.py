"""Tiny mixture-of-experts models with random weights: experts fused into parameters, each family in its own way."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

SHARED = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SHARED, num_local_experts=4))


def qwen3_moe():
    config = transformers.Qwen3MoeConfig(**SHARED, moe_intermediate_size=12, num_experts=4, num_experts_per_tok=2)
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss():
    """Weights as (in, out), which PEFT is told by ``is_transposed``."""
    config = transformers.GptOssConfig(**SHARED, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    config._attn_implementation = "eager"
    return transformers.GptOssForCausalLM(config)


def llama4():
    """Weights as (in, out), which PEFT is not told: A then has the width of the output."""
    config = transformers.Llama4TextConfig(
        **SHARED, intermediate_size_mlp=24, num_local_experts=4, head_dim=8, interleave_moe_layer_step=1
    )
    return transformers.Llama4ForCausalLM(config)


MODELS = {"mixtral": mixtral, "qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss, "llama4": llama4}
EXPERTS = {name: "feed_forward.experts" if name == "llama4" else "mlp.experts" for name in MODELS}
INPUTS = {"input_ids": torch.tensor([[1, 7, 3, 49, 12, 30, 2, 5]])}


def build_moe(name):
    """Return a model in eval mode, the same weights every time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()
