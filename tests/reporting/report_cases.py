"""Adapters to report on."""

from __future__ import annotations

import torch

from lorakit import Adapter, AdapterSet, LoraFactors

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&amp;\u202eevil\x1b[1A'


def llama(n_blocks, n_adapters, *, rank=4, width=16, names=None, seed=0):
    """Adapters of a model with seven modules a block."""
    rng = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (width, width))
    kinds = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    kinds |= {"mlp.gate_proj": (width, 24), "mlp.up_proj": (width, 24), "mlp.down_proj": (24, width)}

    def factors(d_in, d_out):
        return LoraFactors(torch.randn(rank, d_in, generator=rng), torch.randn(d_out, rank, generator=rng))

    return AdapterSet(
        Adapter(
            {f"model.layers.{b}.{kind}": factors(*shape) for b in range(n_blocks) for kind, shape in kinds.items()},
            name=f"task{i}" if names is None else names[i],
        )
        for i in range(n_adapters)
    )
