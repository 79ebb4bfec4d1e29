"""Inputs of a model, of whatever kind a user's forward takes: how many, some of them, and what identifies them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_WINDOW = 8  # batches whose inputs are sorted by length together

Rows = NDArray[np.intp]


def count(inputs: Any) -> int:
    """Number of inputs: of a mapping, such as a tokenizer's output, the length of its values.

    Raises
    ------
    TypeError
        If they have no length.
    ValueError
        If there are none.
    """
    first = next(iter(inputs.values()), ()) if isinstance(inputs, Mapping) else inputs
    if isinstance(first, (str, bytes)) or not hasattr(first, "__len__"):
        raise TypeError(
            "inputs must be a list, an array or a tensor of what forwards takes, or a mapping of arrays such as a "
            f"tokenizer's output; got {type(inputs).__name__}"
        )
    if not len(first):
        raise ValueError("there are no inputs; expected at least one")
    return len(first)


def take(inputs: Any, rows: Rows) -> Any:
    """Return some of the inputs, in the order of ``rows``, as they came: a list, an array, a tensor, a mapping."""
    if isinstance(inputs, Mapping):
        return {name: take(value, rows) for name, value in inputs.items()}
    if isinstance(inputs, (Tensor, np.ndarray)):
        return inputs[rows]
    return [inputs[int(i)] for i in rows]


def lengths_of(inputs: Any) -> Rows | None:
    """Length of each input of a list, such as of a text in characters; None if they have none, or are of one shape."""
    if isinstance(inputs, Mapping) or not isinstance(inputs, Sequence):
        return None
    return np.array([len(x) for x in inputs]) if all(hasattr(x, "__len__") for x in inputs) else None


def in_order(lengths: Rows | None, rows: Rows, size: int) -> list[Rows]:
    """Split rows into batches of about equal length, so that little work goes into padding."""
    order = rows if lengths is None else rows[np.argsort(lengths[rows], kind="stable")]
    return [order[start : start + size] for start in range(0, len(order), size)]


def shuffled(lengths: Rows | None, rows: Rows, size: int, rng: np.random.RandomState) -> list[Rows]:
    """Split rows into batches at random; those of one window of batches are sorted by length."""
    order = rng.permutation(rows)
    windows = [order[start : start + size * _WINDOW] for start in range(0, len(order), size * _WINDOW)]
    batches = [batch for window in windows for batch in in_order(lengths, window, size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def key_of(value: Any) -> str | None:
    """Identify inputs by their content, equal in every process; None for what cannot be pickled."""
    try:
        return str(joblib.hash(_without_tensors(value)))
    except (TypeError, AttributeError, pickle.PicklingError):
        return None


def _without_tensors(value: Any) -> Any:
    """Replace tensors by arrays: the hash of a tensor differs between processes."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {name: _without_tensors(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(x) for x in value]
    return value
