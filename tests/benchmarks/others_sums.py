#!/usr/bin/env python
"""What other programs add up where "0.7 of A and 0.5 of B" is asked for.

Prints the table of the documentation, and writes it into the page with ``--page``::

    python tests/benchmarks/others_sums.py --page docs/user_guide/coming_from.rst

Two adapters of rank 8 with independent random factors, on one layer. PEFT is run; the rules of sd-scripts are written
here as its ``networks/merge_lora.py`` has them. For each, the factors on A and B that come nearest to
what was made, and how far that is from the sum that was asked for.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import Table, publish
from torch import Tensor

from lorakit import Adapter, LoraFactors, bake

WIDTH, RANK, ALPHA = 64, 8, 8
ASKED = (0.7, 0.5)

Pair = tuple[Tensor, Tensor]  # A (r, d_in), B (d_out, r), without the scale


def factors() -> list[Pair]:
    """Two adapters with independent factors."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((RANK, WIDTH), (WIDTH, RANK))
    return [tuple(torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes) for _ in ASKED]  # type: ignore[misc]


def by_lorakit(pairs: list[Pair]) -> Tensor:
    """The change of a weight of zeros when both are baked into it."""
    adapters = [Adapter({"q": LoraFactors(a, b * ALPHA / RANK)}, name=f"x{i}") for i, (a, b) in enumerate(pairs)]
    return bake({"q.weight": torch.zeros(WIDTH, WIDTH, dtype=torch.float64)}, adapters, strengths=ASKED)["q.weight"]


def by_peft(pairs: list[Pair], combination: str, rslora: bool) -> tuple[Tensor, list[Tensor]]:
    """The update that PEFT's add_weighted_adapter makes, and those of the two that it was given."""
    import peft

    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False)).double()
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=rslora, target_modules=["0"])
    wrapped = peft.get_peft_model(model, config, adapter_name="x0", autocast_adapter_dtype=False)
    wrapped.add_adapter("x1", config)
    layer = wrapped.base_model.model[0].double()
    with torch.no_grad():
        for i, (a, b) in enumerate(pairs):
            layer.lora_A[f"x{i}"].weight.copy_(a)
            layer.lora_B[f"x{i}"].weight.copy_(b)
    rank = 2 * RANK if combination == "svd" else None
    wrapped.add_weighted_adapter(
        ["x0", "x1"], list(ASKED), adapter_name="sum", combination_type=combination, svd_rank=rank
    )
    layer.double()
    return layer.get_delta_weight("sum").detach(), [layer.get_delta_weight(f"x{i}").detach() for i in range(2)]


def by_sd_scripts(pairs: list[Pair], concat: bool) -> Tensor:
    """merge_lora: each factor times the ratio; alpha is the first file's, whatever the rank becomes."""
    (a, b), (c, d) = ((a * ratio, b * ratio) for (a, b), ratio in zip(pairs, ASKED, strict=True))
    if concat:
        return torch.cat([b, d], dim=1) @ torch.cat([a, c]) * ALPHA / (2 * RANK)
    return (b + d) @ (a + c) * ALPHA / RANK


def row(name: str, made: Tensor, updates: list[Tensor]) -> tuple[str, ...]:
    """Factors on A and B by least squares, and the relative error against the sum that was asked for."""
    asked = sum(c * update for c, update in zip(ASKED, updates, strict=True))
    columns = torch.stack([update.flatten() for update in updates], dim=1)
    found = torch.linalg.lstsq(columns, made.flatten()[:, None]).solution.flatten().tolist()
    error = torch.linalg.matrix_norm(made - asked) / torch.linalg.matrix_norm(asked)
    return (name, *(f"{factor:.2f}" for factor in found), f"{100 * error:.0f} %")


def rows() -> Iterator[tuple[str, ...]]:
    """One row for each program."""
    pairs = factors()
    updates = [b @ a * ALPHA / RANK for a, b in pairs]
    yield row("lorakit bake A:0.7 B:0.5", by_lorakit(pairs), updates)
    for rslora in (False, True):
        for combination in ("linear", "cat", "svd"):
            made, given = by_peft(pairs, combination, rslora)
            yield row(f"PEFT, {combination}{', rsLoRA' if rslora else ''}", made, given)
    yield row("sd-scripts merge_lora", by_sd_scripts(pairs, concat=False), updates)
    yield row("sd-scripts merge_lora --concat", by_sd_scripts(pairs, concat=True), updates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="docs page to write the table into")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    publish([Table("sums", ("program", "of A", "of B", "error"), list(rows()))], options.page)


if __name__ == "__main__":
    main()
