"""How near a student is to its teachers, in what its heads say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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

    def loss(self, name: str, rows: Rows, student: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """How far a student is from one teacher, for each of some inputs, (n,): the divergence of its classes."""
        teacher = self(name, rows, student)
        return distillation_loss(student.to(teacher.dtype), teacher, temperature)

    def agreeing(self, name: str, rows: Rows, student: Tensor) -> Tensor:
        """Whether the student agrees with the teacher, for each of some inputs, (n,)."""
        return agreeing(student, self(name, rows, student))


class Changes(Teachers):
    r"""What adapters change in a model's outputs, for teachers without classes.

    The outputs are what heads look at, such as embeddings. Of a teacher that changes an output by d, an error e counts

    .. math:: \frac{e^T C e}{\mathrm{mean}\, d^T C d}, \quad C = \mathrm{mean}\, d d^T

    so that errors count in the directions that this teacher changes, and the others' directions stay free. The base
    model has a mean of 1, the teacher 0. A student agrees where it is nearer than half of the change.

    Parameters
    ----------
    targets : Targets
        The outputs of the teachers.
    names : sequence of str
        The teachers that are wanted.
    untouched : mapping of str to array of shape (n_inputs, width)
        The outputs of the base model, by the name of the teacher.
    """

    def __init__(self, targets: Targets, names: Sequence[str], untouched: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(targets, names)
        self._untouched = untouched
        self._roots = {name: self._root(name) for name in names}

    def _root(self, name: str) -> Tensor:
        """R with ``R R^T`` the metric: ``|e R|^2`` is what an error counts."""
        change = np.asarray(self._scores[name], dtype=np.float64) - np.asarray(self._untouched[name], dtype=np.float64)
        values, vectors = np.linalg.eigh(change.T @ change / len(change))
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        size = np.linalg.norm(values[kept])
        return torch.from_numpy(vectors[:, kept] * np.sqrt(values[kept]) / (size if size > 0 else 1.0))

    def _counted(self, name: str, error: Tensor) -> Tensor:
        return (error @ self._roots[name].to(error)).square().sum(dim=1)

    def loss(self, name: str, rows: Rows, student: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """How far a student is from one teacher, for each of some inputs, (n,); there is no temperature."""
        teacher = self(name, rows, student)
        return self._counted(name, student.to(teacher.dtype) - teacher)

    def agreeing(self, name: str, rows: Rows, student: Tensor) -> Tensor:
        """Whether the student is nearer to the teacher than half of the teacher's change, for each input, (n,)."""
        teacher = self(name, rows, student)
        untouched = torch.from_numpy(np.array(self._untouched[name][rows])).to(teacher)
        return self._counted(name, student.to(teacher.dtype) - teacher) <= self._counted(name, teacher - untouched) / 4


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
            temperature = 1.0 if temperatures is None else temperatures[name]
            alike = teachers.agreeing(name, rows, scores).cpu().double()
            divergence = teachers.loss(name, rows, scores, temperature).cpu().double()
            counted = torch.ones(len(rows)).double() if weights is None else weights[name][torch.from_numpy(rows)]
            agreed += float(counted @ alike)
            loss += float(counted @ divergence)
            total += float(counted.sum())
    return Nearness(agreed / total, loss / total)
