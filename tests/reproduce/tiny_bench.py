"""Adapters of the tiny language model, and a bench of two of them."""

import evaluation
import language_bench
import prompts
import torch
from language_bench import Bench
from tiny_language import TinyLanguage, language_tasks, model, tokenized

from lorakit import Adapter, AdapterSet, LoraFactors

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")


def adapter(name: str, rank: int, modules: tuple[str, ...], seed: int) -> Adapter:
    """Of the tiny language model."""
    generator, net, factors = torch.Generator().manual_seed(seed), model(), {}
    for layer in (0, 1):
        for module in modules:
            d_out, d_in = net.get_submodule(f"model.layers.{layer}.{module}").weight.shape
            a, b = (torch.randn(shape, generator=generator) for shape in ((rank, d_in), (d_out, rank)))
            factors[f"model.layers.{layer}.{module}"] = LoraFactors(a * 0.3, b * 0.3)
    return Adapter(factors, name=name)


def tiny_bench(monkeypatch, ranks=(2, 3), wider=("mlp.up_proj",), seed=0) -> Bench:
    """Two adapters, one of a task of answers, and a task without an adapter."""
    tokenized(monkeypatch)
    known = language_tasks()
    for cached in (evaluation._base, evaluation._head, evaluation._tokens):
        cached.cache_clear()
    for module in (evaluation, language_bench, prompts):
        monkeypatch.setattr(module, "load_task", known.__getitem__)
    adapters = AdapterSet(
        [
            adapter("colour", ranks[0], ATTENTION, 2 * seed),
            adapter("opposite", ranks[1], (*ATTENTION, *wider), 2 * seed + 1),
        ]
    )
    return Bench(adapters, TinyLanguage(), ["other"], n_test=12, n_validation=8, seed=seed)
