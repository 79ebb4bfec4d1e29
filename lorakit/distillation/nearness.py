"""How near a student is to its teachers, in what its heads say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ._inputs import Rows, take
from .heads import Heads
from .loss import agreeing, distillation_loss
from .targets import Targets


class Nearness(NamedTuple):
    """How near a student is to its teachers: the share of inputs and heads with one first class, and the mean loss.

    Both are weighted means if the pairs of an input and a head have weights.
    """

    agreement: float
    loss: float


class Teachers:
    """The class scores of the teachers, as tensors like those of a student.

    Parameters
    ----------
    targets : Targets
        All scores.
    names : sequence of str
        The teachers that are wanted.
    """

    def __init__(self, targets: Targets, names: Sequence[str]) -> None:
        self._scores = {name: targets[name] for name in names}

    def __call__(self, name: str, rows: Rows, like: Tensor) -> Tensor:
        """Return the scores of one teacher for some inputs, in the dtype of ``like``, but at least float32."""
        scores = torch.from_numpy(np.array(self._scores[name][rows]))
        if scores.shape != like.shape:
            raise ValueError(
                f"the forward of {name!r} made scores of {like.shape[1]} classes, its targets have {scores.shape[1]}"
            )
        return scores.to(like.device, torch.promote_types(like.dtype, torch.float32))


@torch.no_grad()
def nearness(
    model: nn.Module,
    heads: Heads,
    inputs: Any,
    teachers: Teachers,
    batches: Iterable[Rows],
    *,
    temperatures: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Nearness:
    """Compare what a model says, with the student on it, with what the teachers said.

    Parameters
    ----------
    model : torch.nn.Module
        The model, with the student on it.
    heads : Heads
        The heads.
    inputs : object
        All inputs.
    teachers : Teachers
        What the teachers said.
    batches : iterable of ndarray
        Positions of the inputs to compare on.
    temperatures : mapping of str to Tensor, default=None
        Divide the student's scores in the loss. None: 1.
    weights : mapping of str to Tensor of shape (n_inputs,), default=None
        Weights of the inputs for each head, float64 on the CPU. None: all alike.
    """
    agreed = loss = total = 0.0
    for rows in batches:
        for name, scores in heads.scores(model, take(inputs, rows), len(rows)).items():
            teacher = teachers(name, rows, scores)
            temperature = 1.0 if temperatures is None else temperatures[name]
            alike = agreeing(scores, teacher).cpu().double()
            divergence = distillation_loss(scores.to(teacher.dtype), teacher, temperature).cpu().double()
            counted = torch.ones(len(rows)).double() if weights is None else weights[name][torch.from_numpy(rows)]
            agreed += float(counted @ alike)
            loss += float(counted @ divergence)
            total += float(counted.sum())
    return Nearness(agreed / total, loss / total)
