"""The thin factors of one module: what every method maps from many adapters to one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import isfinite
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["LoraFactors", "dtype_name", "promoted_dtype"]

_NO_NUMPY_DTYPE = {torch.bfloat16: torch.int16}  # NumPy knows no bfloat16; its bits travel as int16


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """The two thin factors of one module's update ``W = B @ A``, scaling already folded in.

    Factors of fp8 become bfloat16, which holds each of their values: torch does not compute in fp8.

    Parameters
    ----------
    A : Tensor or ndarray of shape (r, d_in)
        Down-projection. Row i is the input part of minimal semantic unit (MSU) i.
    B : Tensor or ndarray of shape (d_out, r)
        Up-projection. Column i is the output part of MSU i. r = 0 stands for a zero update.

    Raises
    ------
    TypeError
        If the factors are not floating point, or of two dtypes.
    ValueError
        If they are not 2-D, or their inner dimensions differ.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import LoraFactors
    >>> factors = LoraFactors(A=np.ones((2, 3)), B=np.ones((4, 2)))
    >>> factors
    LoraFactors(rank=2, d_in=3, d_out=4, dtype=float64)
    >>> factors.delta().shape
    torch.Size([4, 3])
    """

    A: Tensor  # (r, d_in)
    B: Tensor  # (d_out, r)

    def __post_init__(self) -> None:
        a, b = (_as_tensor(x) for x in (self.A, self.B))
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"A must be (r, d_in) and B (d_out, r) with one r; got A {tuple(a.shape)} and B {tuple(b.shape)}"
            )
        if not a.dtype.is_floating_point or a.dtype != b.dtype:
            raise TypeError(f"A and B must share one floating-point dtype; got {a.dtype} and {b.dtype}")
        object.__setattr__(self, "A", a)
        object.__setattr__(self, "B", b)

    @property
    def rank(self) -> int:
        """Number of MSUs, r."""
        return self.A.shape[0]

    @property
    def d_in(self) -> int:
        """Input width of the module."""
        return self.A.shape[1]

    @property
    def d_out(self) -> int:
        """Output width of the module."""
        return self.B.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both factors."""
        return self.A.dtype

    def delta(self) -> Tensor:
        """Return the update ``B @ A`` as a dense (d_out, d_in) matrix: for small modules, tests, and applying it."""
        return self.B @ self.A

    def scaled(self, factor: float) -> LoraFactors:
        """Return the factors of ``factor * W``; the factor is split evenly over A and B, its sign on B."""
        root = abs(factor) ** 0.5
        return LoraFactors(self.A * root, self.B * (root if factor >= 0 else -root))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LoraFactors:
        """Return the factors in another dtype, on another device, or both."""
        return LoraFactors(self.A.to(dtype=dtype, device=device), self.B.to(dtype=dtype, device=device))

    def __iter__(self) -> Iterator[Tensor]:
        """Yield A, then B: ``A, B = factors``."""
        yield self.A
        yield self.B

    def __repr__(self) -> str:
        return f"LoraFactors(rank={self.rank}, d_in={self.d_in}, d_out={self.d_out}, dtype={dtype_name(self.dtype)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # As NumPy arrays: joblib.hash of a tensor differs between processes, and a pickled slice carries its storage.
        return _unpickle_factors, (_to_numpy(self.A), _to_numpy(self.B), dtype_name(self.dtype))


def promoted_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Smallest dtype that holds all of ``dtypes`` (float32 for bfloat16 with float16, and for none at all)."""
    distinct = list(dict.fromkeys(dtypes))
    return reduce(torch.promote_types, distinct) if distinct else torch.float32


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; many times faster than looking at each."""
    if x.dtype.itemsize == 1:  # fp8, in which torch does not add
        x = x.to(torch.bfloat16)
    # One that is not finite makes the sum so. The converse fails where large values overflow.
    return isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def _as_tensor(x: object) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().to(torch.bfloat16) if x.dtype.itemsize == 1 and x.is_floating_point() else x.detach()
    return torch.from_numpy(np.array(x))  # a copy: the caller's array may change or be read-only


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def _to_numpy(x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    bits = x.detach().cpu().contiguous()
    if x.dtype in _NO_NUMPY_DTYPE:
        bits = bits.view(_NO_NUMPY_DTYPE[x.dtype])
    return np.array(bits.numpy())  # a copy, so that a slice leaves its storage behind


def _unpickle_factors(a: Any, b: Any, dtype: str) -> LoraFactors:
    kind = cast(torch.dtype, getattr(torch, dtype))
    # Ray and loky hand out read-only views of memory that processes share; a tensor has to be writable.
    own = (x if x.flags.writeable else x.copy() for x in (a, b))
    return LoraFactors(*(torch.from_numpy(x).view(kind) for x in own))
