"""What a distilled merge minimises, and how far it has come, as functions of class scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of a student's class distribution from its teacher's, for each input.

    .. math:: \mathrm{KL}(p \| q) = \sum_c p_c \log(p_c / q_c), \quad p = \mathrm{softmax}(t),
        \; q = \mathrm{softmax}(s / T)

    Parameters
    ----------
    student : Tensor of shape (n, n_classes)
        Class scores s.
    teacher : Tensor of shape (n, n_classes)
        Class scores t.
    temperature : Tensor or float, default=1.0
        T, above 0. It divides the student's scores alone: the order of the classes does not depend on it.

    Returns
    -------
    Tensor of shape (n,)
        In nats, 0 or more.

    Examples
    --------
    >>> import torch
    >>> from lorakit.distillation.loss import distillation_loss
    >>> scores = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> distillation_loss(scores, scores)
    tensor([0., 0.])
    """
    p = F.log_softmax(teacher, dim=1)
    q = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(dim=1)


def agreeing(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether student and teacher have the same first class, for each input, as a bool tensor of shape (n,)."""
    return torch.eq(student.argmax(dim=1), teacher.argmax(dim=1))


def own_weights(owners: Tensor, n_heads: int, own_weight: float) -> Tensor:
    """Weights of heads for each input, which sum to ``n_heads``.

    Parameters
    ----------
    owners : Tensor of shape (n,), int
        Position of the head whose task an input belongs to, or -1 for none.
    n_heads : int
        Number of heads.
    own_weight : float
        How many times as much as another head an input's own head weighs.

    Returns
    -------
    Tensor of shape (n, n_heads), float64

    Examples
    --------
    >>> import torch
    >>> from lorakit.distillation.loss import own_weights
    >>> own_weights(torch.tensor([-1, 1]), 3, own_weight=4)
    tensor([[1.0000, 1.0000, 1.0000],
            [0.5000, 2.0000, 0.5000]], dtype=torch.float64)
    """
    weights = torch.ones(len(owners), n_heads, dtype=torch.float64)
    owned = torch.nonzero(owners >= 0).squeeze(1)
    weights[owned, owners[owned]] = own_weight
    return weights * (n_heads / weights.sum(dim=1, keepdim=True))
