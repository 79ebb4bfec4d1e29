"""The heads of adapters: from the model and some inputs to class scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Scores = Tensor | Mapping[str, Tensor]
Forward = Callable[[nn.Module, Any], Scores]
Forwards = Forward | Mapping[str, Forward]


@dataclass(frozen=True)
class SharedHeads:
    """A forward for adapters whose heads look at one output of the model: it runs the model once for all of them.

    Parameters
    ----------
    encode : callable
        ``encode(model, inputs)`` gives what the heads look at, such as embeddings of shape (n, width).
    heads : mapping of str to callable or Tensor
        By the name of the adapter, ``head(encoded)`` gives class scores of shape (n, n_classes). A tensor of shape
        (n_classes, width) stands for a linear head without offset.

    Examples
    --------
    >>> import torch
    >>> from lorakit.distillation.heads import SharedHeads
    >>> forward = SharedHeads(lambda model, x: model(x), {"a": torch.eye(2), "b": torch.ones(3, 2)})
    >>> {name: tuple(scores.shape) for name, scores in forward(torch.nn.Identity(), torch.ones(5, 2)).items()}
    {'a': (5, 2), 'b': (5, 3)}
    """

    encode: Callable[[nn.Module, Any], Any]
    heads: Mapping[str, Callable[[Any], Tensor] | Tensor]

    def __call__(self, model: nn.Module, inputs: Any) -> dict[str, Tensor]:
        """Return the class scores of every head, each of shape (n, n_classes)."""
        encoded = self.encode(model, inputs)
        return {
            name: encoded @ head.to(encoded).T if isinstance(head, Tensor) else head(encoded)
            for name, head in self.heads.items()
        }


class Heads:
    """The forwards that a user gave, by the name of the adapter, each asked once for all adapters that share it.

    Parameters
    ----------
    forwards : callable, or mapping of str to callable
        ``forward(model, inputs)`` gives class scores (n, n_classes), or a mapping of an adapter's name to these.
    names : sequence of str
        The adapters whose heads are wanted.

    Raises
    ------
    TypeError
        If a forward cannot be called.
    ValueError
        If an adapter has none.
    """

    def __init__(self, forwards: Forwards, names: Sequence[str]) -> None:
        by_name = forwards if isinstance(forwards, Mapping) else dict.fromkeys(names, forwards)
        if missing := [name for name in names if name not in by_name]:
            raise ValueError(f"forwards has no entry for the adapters {missing}; it has {list(by_name)}")
        self._groups: list[tuple[Forward, list[str]]] = []
        for name in names:
            forward = by_name[name]
            if not callable(forward):
                raise TypeError(f"forwards of {name!r} must be a function of a model and inputs; got {forward!r}")
            group = next((group for known, group in self._groups if known is forward), None)
            if group is None:
                self._groups.append((forward, [name]))
            else:
                group.append(name)

    def groups(self, model: nn.Module, inputs: Any, n: int) -> Iterator[dict[str, Tensor]]:
        """Yield the class scores by name of one forward after the other, so that a graph can go before the next.

        Parameters
        ----------
        model : torch.nn.Module
            The model.
        inputs : object
            What the forwards take.
        n : int
            Number of inputs.
        """
        for forward, names in self._groups:
            made = forward(model, inputs)
            yield {name: _checked(made, name, n) for name in names}

    def scores(self, model: nn.Module, inputs: Any, n: int) -> dict[str, Tensor]:
        """Return the class scores of every head by name, each of shape (n, n_classes)."""
        return {name: scores for group in self.groups(model, inputs, n) for name, scores in group.items()}


def _checked(made: Any, name: str, n: int) -> Tensor:
    if isinstance(made, Mapping):
        if name not in made:
            raise ValueError(f"forwards returned scores for {list(made)}, and none for the adapter {name!r}")
        made = made[name]
    scores = torch.as_tensor(made)
    if scores.ndim != 2 or len(scores) != n or scores.shape[1] < 2:
        raise ValueError(
            f"the forward of {name!r} made scores of shape {tuple(scores.shape)} of {n} inputs; expected class scores "
            f"of shape ({n}, n_classes), of two classes or more"
        )
    return scores
