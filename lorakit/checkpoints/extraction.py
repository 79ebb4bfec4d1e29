"""What an extraction found: module by module, and what it left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ExtractedModule", "Extraction", "LeftOut"]


class ExtractedModule(NamedTuple):
    """What is known of one module of an extracted adapter.

    Parameters
    ----------
    module : str
        Its name.
    rank : int
        Of its factors.
    change : float
        Norm of the difference of the two tensors over that of the base's.
    kept : float
        Share of the energy (squared norm) of the difference that the factors hold.
    rounding : float
        Share of the energy that rounding of the tuned tensor to its dtype alone would make.
    flat : bool
        Whether the singular values are as even as those of noise.
    """

    module: str
    rank: int
    change: float
    kept: float
    rounding: float
    flat: bool


class LeftOut(NamedTuple):
    """A tensor that changed and is not in the adapter.

    Parameters
    ----------
    tensor : str
        Its name.
    why : str
        Why it is not.
    share : float or None
        Of the energy of all changes; None where only one side has the tensor.
    """

    tensor: str
    why: str
    share: float | None


@dataclass(frozen=True)
class Extraction:
    """What :func:`extract_adapter` did.

    Parameters
    ----------
    modules : tuple of ExtractedModule
        The modules of the adapter.
    left_out : tuple of LeftOut
        What changed and is not in it.
    unchanged : int
        How many tensors are the same in both.
    kept : float
        Share of the energy of the differences of all its modules that the adapter holds.
    rounding : float
        Share of it that rounding alone would make.
    """

    modules: tuple[ExtractedModule, ...]
    left_out: tuple[LeftOut, ...]
    unchanged: int
    kept: float
    rounding: float
