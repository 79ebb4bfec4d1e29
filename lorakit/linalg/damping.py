"""Damp the output directions that many updates share (Pico)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import Update


def damp_shared_outputs(updates: Sequence[Update], bases: Sequence[Tensor], strength: float) -> list[Tensor]:
    r"""Damp the output directions that T updates share.

    With :math:`C = [C_1 \dots C_T] = U \Sigma V^T`, :math:`s_j = \sigma_j^2 / \sum_k \sigma_k^2` and
    :math:`c` = ``strength`` * (T - 1), it multiplies every B by
    :math:`U\,\mathrm{diag}(1 / (1 + c\,s_j))\,U^T + (I - U U^T)`. That matrix is the inverse of
    :math:`I + c\,C C^T / \|C\|^2`. Woodbury's identity applies it by solving one linear system with as many unknowns
    as C has columns. This needs no SVD and no d_out x d_out matrix, and equal singular values cause no ambiguity.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    bases : sequence of T Tensors of shape (d_out, m_i)
        C_i: the output side of each update, such as its B.
    strength : float
        Strength of the damping, zero or more; the paper uses 1.

    Returns
    -------
    list of T Tensors of shape (d_out, r_i)
        The damped B of every update.

    References
    ----------
    .. [1] Tang and Yang, "Crowded in B-Space: Calibrating Shared Directions for LoRA Merging", arXiv 2604.16826.
    """
    stacked = torch.cat(list(bases), dim=1).double()  # (d_out, m)
    excess = strength * (len(bases) - 1)
    outputs = [b for _, b in updates]
    if excess == 0 or not stacked.any():
        return outputs
    energy = stacked.square().sum()
    # Eigenvalues lie between energy / excess and energy * (1 + 1 / excess): well conditioned
    gram = stacked.mT @ stacked + torch.eye(stacked.shape[1], dtype=stacked.dtype, device=stacked.device) * (
        energy / excess
    )
    return [(b - stacked @ torch.linalg.solve(gram, stacked.mT @ b.double())).to(b.dtype) for b in outputs]
