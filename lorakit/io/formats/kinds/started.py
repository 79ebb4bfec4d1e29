"""LoRA that began as a part of the base weights: PiSSA, OLoRA, CorDA. Its update is the difference to that part."""

from __future__ import annotations

import torch
from torch import Tensor

from ....linalg.svd import dense_svd


def less_initial(a: Tensor, b: Tensor, a_0: Tensor, b_0: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """A and B of ``B A - ratio B_0 A_0``: twice the rank.

    Parameters
    ----------
    a, b : Tensor
        The factors after training, as they are stored.
    a_0, b_0 : Tensor
        Those before it.
    ratio : float
        The scale before training over the one after it.
    """
    return torch.cat([a.flatten(1), a_0.flatten(1)]), torch.cat([b.flatten(1), -ratio * b_0.flatten(1)], dim=1)


def less_svd(a: Tensor, b: Tensor, weight: Tensor, scale: float, turned: bool) -> tuple[Tensor, Tensor]:
    """A and B of ``B A - B_0 A_0``, where ``scale * B_0 A_0`` are the first r singular triples of the weight (PiSSA).

    F. Meng, Z. Wang and M. Zhang, "PiSSA: Principal singular values and singular vectors adaptation of large language
    models", NeurIPS 2024.
    """
    u, s, vh = dense_svd(weight.mT if turned else weight)
    r = len(a)
    root = (s[:r] / scale).sqrt()
    return less_initial(a, b, root[:, None] * vh[:r], u[:, :r] * root, 1.0)


def less_qr(a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of ``B A - B_0 A_0``, where B_0 and A_0 are the first r columns of Q and rows of R of the weight (OLoRA).

    K. Büyükakyüz, "OLoRA: Orthonormal low-rank adaptation of large language models", arXiv:2406.01775 (2024).
    """
    q, upper = torch.linalg.qr(weight)
    r = len(a)
    return less_initial(a, b, upper[:r], q[:, :r], 1.0)
