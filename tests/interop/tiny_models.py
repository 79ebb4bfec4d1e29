"""Tiny models with random weights, built from configs: nothing is downloaded."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, (3, 1), stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.line = nn.Conv1d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.line(self.body(self.stem(x)).flatten(2)).mean(-1))


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.tensor([[1, 7, 3, 49]])}


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.tensor([[1, 7, 3, 49]])}


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertModel(config), {"input_ids": torch.tensor([[1, 7, 3, 49]])}


def convnet():
    return ConvNet(), {"x": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))}


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert, "convnet": convnet}


def build(name):
    """Return a model in eval mode and its inputs, the same weights every time."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.eval(), inputs


def randomise(*models, seed, size=0.2):
    """Give the LoRA layers of models random factors, B too, which begins at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for model in models:
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def output_of(model, inputs):
    with torch.no_grad():
        result = model(**inputs)
    return result if isinstance(result, torch.Tensor) else result[0]
