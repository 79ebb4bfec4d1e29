"""VeRA: two random matrices that all modules share, scaled by vectors of each (Kopiczko et al. 2024)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ....adapters import ModuleInfo
from .kind import Factored, Kind, Tensors

SHARED = ("vera_A", "vera_B")
_VECTORS = ("vera_lambda_b", "vera_lambda_d")


def _factored(tensors: Tensors) -> Factored:
    """Check the vectors of a module. Its inputs' width is not known from them: ``info.d_in`` is 0."""
    tensors.require(_VECTORS)
    b, d = map(tensors.shape, _VECTORS)
    tensors.require_shapes(len(b) == len(d) == 1, "vera_lambda_b (out) and vera_lambda_d (r)")
    return Factored(_VECTORS, ModuleInfo(d[0], 0, b[0]), scaled, d[0])


def scaled(b: Tensor, d: Tensor, shared_a: Tensor, shared_b: Tensor, d_in: int) -> tuple[Tensor, Tensor]:
    """A and B of ``diag(b) B diag(d) A``, of the shared matrices cut to the widths of the module."""
    return d[:, None] * shared_a[:, :d_in], b[:, None] * shared_b[: len(b)]


class Drawn(NamedTuple):
    """A shared matrix that the file leaves out: it is drawn again from the seed, as PEFT does.

    Parameters
    ----------
    name : str
        Which of the two, ``vera_A`` or ``vera_B``.
    seed : int
        The config's ``projection_prng_key``.
    r : int
        The rank.
    d_in, d_out : int
        The largest widths of all modules.
    path : None
        It is in no file.
    """

    name: str
    seed: int
    r: int
    d_in: int
    d_out: int
    path: Path | None = None

    def read(self) -> Tensor:
        """Return the matrix: A is drawn first, and B after it."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        a = _kaiming_uniform((self.r, self.d_in), generator)
        return a if self.name == SHARED[0] else _kaiming_uniform((self.d_out, self.r), generator)


def _kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


VERA = Kind("VeRA", frozenset(_VECTORS), _factored)
