"""Short texts in the place of what a record cannot hold."""

from __future__ import annotations

from typing import Any

from torch import nn


class Named:
    """Stands in a record for what cannot be written into one: a model, functions, inputs and their scores."""

    def __init__(self, value: Any) -> None:
        kind = getattr(value, "__qualname__", type(value).__qualname__)
        sized = hasattr(value, "__len__") and not isinstance(value, nn.Module)
        self._text = f"<{kind} of {len(value)}>" if sized else f"<{kind}>"

    def __repr__(self) -> str:
        return self._text
