"""Thin factors and SVDs of entry-by-entry and Kronecker products of updates, without forming the products."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import Update
from .svd import dense_svd, svd_of_sum

__all__ = ["hadamard_factors", "kronecker_factors", "kronecker_svd", "mode_product", "with_identity"]


def hadamard_factors(x: Update, y: Update) -> tuple[Tensor, Tensor]:
    """Factors of ``(B_x A_x) * (B_y A_y)``, the product entry by entry: Khatri-Rao products of the factors.

    Parameters
    ----------
    x, y : (A, B)
        Two updates of one shape, of ranks r and q.

    Returns
    -------
    A : Tensor of shape (R, d_in)
    B : Tensor of shape (d_out, R)
        ``R = min(r * q, d_out, d_in)``. Where the widths are what bounds R, one factor is the identity and the other
        the product, which then has as many numbers as any factor of that rank.

    Examples
    --------
    >>> x = torch.ones(2, 5), torch.ones(4, 2)
    >>> a, b = hadamard_factors(x, x)
    >>> a.shape, float((b @ a)[0, 0])
    (torch.Size([4, 5]), 4.0)
    """
    (a_x, b_x), (a_y, b_y) = x, y
    d_out, d_in = b_x.shape[0], a_x.shape[1]
    if a_x.shape[0] * a_y.shape[0] < min(d_out, d_in):
        a = (a_x[:, None] * a_y[None]).flatten(0, 1)
        b = (b_x[:, :, None] * b_y[:, None]).flatten(1)
        return a, b
    return with_identity((b_x @ a_x) * (b_y @ a_y))


def kronecker_factors(x: Update | Tensor, y: Update | Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the Kronecker product of two matrices, each dense or an update.

    Parameters
    ----------
    x, y : Tensor of shape (p, q), or (A, B)
        The matrices.

    Returns
    -------
    A : Tensor of shape (R, d_in)
    B : Tensor of shape (d_out, R)
        R is the product of the ranks, where that of a matrix is at most its smaller width.

    Examples
    --------
    >>> a, b = kronecker_factors(torch.ones(2, 3), (torch.ones(1, 5), torch.ones(4, 1)))
    >>> a.shape, b.shape
    (torch.Size([2, 15]), torch.Size([8, 2]))
    """
    (a_x, b_x), (a_y, b_y) = _thin(x), _thin(y)
    return _kronecker(a_x, a_y), _kronecker(b_x, b_y)


def kronecker_svd(x: Update | Tensor, y: Update | Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of the Kronecker product of two matrices, each dense or an update, from the SVDs of the two.

    The singular values are the products of theirs, and the singular vectors are the Kronecker products of theirs [1]_.

    Parameters
    ----------
    x, y : Tensor of shape (p, q), or (A, B)
        The matrices.
    k : int, optional
        Number of singular vectors to form; all by default. All singular values are returned, whatever k is.

    Returns
    -------
    U, S, Vh : Tensor
        As :func:`~lorakit.linalg.svd_of_sum` gives them, in float64.

    References
    ----------
    .. [1] C. F. Van Loan, "The ubiquitous Kronecker product", Journal of Computational and Applied Mathematics 123
       (2000).

    Examples
    --------
    >>> x, y = torch.diag(torch.tensor([5.0, 1.0])), torch.diag(torch.tensor([3.0, 2.0]))
    >>> u, s, vh = kronecker_svd(x, y, k=1)
    >>> s.tolist(), u.shape, vh.shape
    ([15.0, 10.0, 3.0, 2.0], torch.Size([4, 1]), torch.Size([1, 4]))
    """
    (u_x, s_x, vh_x), (u_y, s_y, vh_y) = _svd(x), _svd(y)
    s, order = torch.outer(s_x, s_y).flatten().sort(descending=True, stable=True)
    i, j = order[:k] // len(s_y), order[:k] % len(s_y)
    u = (u_x[:, i][:, None] * u_y[:, j][None]).flatten(0, 1)
    vh = (vh_x[i][:, :, None] * vh_y[j][:, None]).flatten(1)
    return u, s, vh


def mode_product(core: Tensor, factor: Tensor) -> Tensor:
    """Multiply the second axis of a core, (r, q, kernel...), by a factor, (q, d): (r, d * kernel...).

    It is the down projection of a convolution that is stored as a small kernel between ranks.
    """
    return torch.einsum("ij...,jc->ic...", core, factor).flatten(1)


def _kronecker(x: Tensor, y: Tensor) -> Tensor:
    """As torch.kron, which fails (2.13) for some strides of a single column."""
    return (x[:, None, :, None] * y[:, None]).flatten(2).flatten(0, 1)


def _svd(matrix: Update | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(matrix, Tensor):
        return dense_svd(matrix.double())
    a, b = matrix
    return svd_of_sum([(a.double(), b.double())], [1.0])


def _thin(matrix: Update | Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of a matrix of no more rank than its smaller width."""
    if isinstance(matrix, Tensor):
        return with_identity(matrix)
    a, b = matrix
    return (a, b) if a.shape[0] < min(b.shape[0], a.shape[1]) else with_identity(b @ a)


def with_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as the product of itself and an identity on its smaller side."""
    d_out, d_in = matrix.shape
    eye = torch.eye(min(d_out, d_in), dtype=matrix.dtype, device=matrix.device)
    return (matrix, eye) if d_out <= d_in else (eye, matrix)
