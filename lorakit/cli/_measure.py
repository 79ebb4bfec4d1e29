"""Numbers of a report: ranks, bytes, how near a result is to where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .. import Adapter
    from ..adapters import ModuleInfo
    from ..metrics import Comparison


def distinct_ranks(infos: Mapping[str, ModuleInfo]) -> list[int]:
    """Return the ranks that occur, ascending."""
    return sorted({info.rank for info in infos.values()})


def source_bytes(adapter: Adapter) -> int:
    """Return the size of the files that an opened adapter reads from."""
    return sum(source.path.stat().st_size for source in adapter.provenance.sources if source.path is not None)


def weights_bytes(output: Path) -> int:
    """Return the size of the weights in a folder or file that was written."""
    if output.is_file():
        return output.stat().st_size
    return sum(file.stat().st_size for file in output.glob("*.safetensors"))


def written_bytes(infos: Mapping[str, ModuleInfo], *, layout: str, pad_to: Any, dtype: torch.dtype) -> int:
    """Return about how many bytes of weights a layout makes of these modules."""
    from ..io.formats._padding import written_ranks

    ranks = written_ranks(infos, layout, pad_to)
    return sum(info._replace(rank=ranks[module]).n_parameters for module, info in infos.items()) * dtype.itemsize


def nearness(compared: Comparison) -> dict[str, float | None]:
    """Return cosine and relative error of a result's update against a source's, over all modules."""
    return {"cosine": finite(compared.cosine), "relative_error": finite(compared.relative_error)}


def finite(number: float) -> float | None:
    """Return None for what JSON cannot say."""
    return number if isfinite(number) else None
