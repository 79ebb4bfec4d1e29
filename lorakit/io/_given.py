"""Say what to pass where something else than an adapter was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from ..adapter_set import AdapterSet


def refuse(given: Any, function: str) -> NoReturn:
    """Refuse what is not an adapter, with the adapter in it that was probably meant.

    Parameters
    ----------
    given : object
        What a function got.
    function : str
        Its name.

    Raises
    ------
    TypeError
        In any case.

    Examples
    --------
    >>> from lorakit import SVDMerger
    >>> refuse(SVDMerger(), "save_adapter")
    Traceback (most recent call last):
    ...
    TypeError: save_adapter takes an Adapter, got SVDMerger, which is not fitted; fit it, and pass its merged_
    """
    what = f"{function} takes an Adapter, got {type(given).__name__}"
    if hasattr(given, "merged_"):
        raise TypeError(f"{what}; pass its merged_")
    if hasattr(given, "fit") and hasattr(given, "get_params"):
        raise TypeError(f"{what}, which is not fitted; fit it, and pass its merged_")
    if isinstance(given, (AdapterSet, list, tuple)):
        raise TypeError(f"{what} of {len(given)}; pass one at a time, each with a path of its own")
    if isinstance(given, torch.nn.Module):
        raise TypeError(f"{what}; for a model of PEFT's, pass lorakit.from_peft(model)")
    if isinstance(given, Mapping):
        raise TypeError(f"{what}; make one of factors by module: Adapter({{name: LoraFactors(A, B), ...}})")
    raise TypeError(f"{what}; for a file, pass lorakit.load_adapter(path)")
