"""Small spaces that hold all updates of a module: the core, and the aligned space of KnOTS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .frames import frame_of
from .msu import align_svd
from .products import Update
from .signs import fix_signs


def core_space(updates: Sequence[Update]) -> tuple[Tensor, Tensor, Tensor]:
    """Express T updates in common orthonormal bases of their outputs and of their inputs.

    Core Space [1]_. The bases are the singular vectors of the concatenated factors, after each update's factors are
    replaced by its own balanced ones and with signs fixed: they depend on the updates alone and not on their order.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks, R in all.

    Returns
    -------
    U : Tensor of shape (d_out, p)
        Orthonormal columns that span all outputs, ``p <= R``.
    V : Tensor of shape (d_in, q)
        Orthonormal columns that span all inputs, ``q <= R``.
    cores : Tensor of shape (T, p, q)
        ``W_i = U @ cores[i] @ V.T``, exactly.

    References
    ----------
    .. [1] "Core Space", arXiv 2509.17786.
    """
    balanced = [align_svd(update) for update in updates]
    u = _basis(torch.cat([b for _, b in balanced], dim=1))
    v = _basis(torch.cat([a for a, _ in balanced]).mT)
    return u, v, torch.stack([(u.mT @ b) @ (a @ v) for a, b in balanced])


def knots_space(updates: Sequence[Update]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Express T updates in the left singular vectors of ``[W_1 ... W_T]``.

    KnOTS [1]_, in thin form: the d_out x (T d_in) matrix is never formed, only its R x R core.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks, R in all.

    Returns
    -------
    U : Tensor of shape (d_out, p)
        Orthonormal columns that span all outputs, signs fixed, ``p <= R``.
    representations : list of (A, C)
        One an update, as factors (r_i, d_in) and (p, r_i): ``W_i = U @ C @ A``, exactly.

    References
    ----------
    .. [1] Stoica et al., "Model merging with SVD to tie the Knots", arXiv 2410.19735.
    """
    pairs = [(a, b) for a, b in updates]
    outputs = frame_of([b for _, b in pairs])  # m dimensions
    # A_i^T = Q_i R_i: the singular vectors of [W_i ...] are those of [blocks_i R_i^T ...] in the frame
    inputs = [frame_of([a.mT]).blocks[0] for a, _ in pairs]
    core = torch.cat([block @ r.mT for block, r in zip(outputs.blocks, inputs, strict=True)], dim=1)
    small = _basis(core.to(pairs[0][1].dtype))  # (m, p); as round-off counts that of the updates
    u = outputs.expand(small)
    sign = fix_signs(u.mT)
    turned = (small * sign).mT.double()
    mixed = [(turned @ block).to(b.dtype) for block, (_, b) in zip(outputs.blocks, pairs, strict=True)]
    return u * sign, [(a, c) for (a, _), c in zip(pairs, mixed, strict=True)]


def _basis(columns: Tensor) -> Tensor:
    """Left singular vectors of the singular values that are not round-off, signs fixed."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    cut = s[:1] * max(columns.shape) * torch.finfo(s.dtype).eps
    u = u[:, s > cut]
    signed: Tensor = u * fix_signs(u.mT)
    return signed
