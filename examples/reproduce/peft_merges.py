"""
PEFT's own merges, for comparison in the same run
=================================================

``peft_merge(adapters, "ties_svd", density=0.5, svd_rank=16)`` has PEFT merge adapters by ``add_weighted_adapter`` and
returns the result as a lorakit adapter, which is measured like any other.
"""

from tempfile import TemporaryDirectory
from typing import Any

from adapters import saved
from backbones import MINILM, Backbone

from lorakit import Adapter, AdapterSet, load_adapter


def peft_merge(
    adapters: AdapterSet,
    combination_type: str,
    *,
    weights: list[float] | None = None,
    backbone: Backbone = MINILM,
    **options: Any,
) -> Adapter:
    """Merge by PEFT.

    Parameters
    ----------
    adapters : AdapterSet
        What to merge; names must differ.
    combination_type : str
        PEFT's: 'linear', 'cat', 'svd', 'ties', 'ties_svd', 'dare_linear', 'magnitude_prune', ...
    weights : list of float, default=None
        PEFT's weights, which it neither normalises nor, on A and B, applies as such: it takes their roots. None: each
        is one over the number of adapters.
    backbone : Backbone
        The base model that PEFT needs.
    **options
        Passed on: density, svd_rank, majority_sign_method.

    Raises
    ------
    ValueError
        What PEFT raises where it cannot merge, such as different ranks under 'linear'.
    """
    from peft import PeftModel

    names = list(adapters.names)
    model = PeftModel.from_pretrained(backbone.load(), saved(adapters[0]), adapter_name=names[0])
    for adapter in adapters[1:]:
        model.load_adapter(saved(adapter), adapter_name=adapter.name)
    shares = weights or [1 / len(names)] * len(names)
    model.add_weighted_adapter(names, shares, "merged", combination_type=combination_type, **options)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=["merged"], save_embedding_layers=False)
        merged = load_adapter(f"{folder}/merged")
        return Adapter(dict(merged), name=f"PEFT {combination_type}", provenance=merged.provenance)
