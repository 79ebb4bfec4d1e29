"""Adapters whose update has full rank, which no file of an adapter should hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..adapters import Adapter
from ..exceptions import Setting, UnsupportedAdapterError


def refuse_full_rank(adapters: Iterable[Adapter], k: Any) -> None:
    """Raise UnsupportedAdapterError if a DoRA would be written without a rank to cut it to."""
    for adapter in adapters:
        if k is None and any(kind.startswith("DoRA") for kind in adapter.provenance.stored_as):
            raise UnsupportedAdapterError(
                "is a DoRA, whose update of the base has full rank",
                adapters=[adapter.name],
                remedy=[Setting("k"), ", the rank to cut it to; the error of the cut is reported"],
            )
