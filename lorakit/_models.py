"""Outputs of a base model with an adapter on it: the model is loaded once, locked, and left as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .adapters import Adapter
from .applying import applied

BaseModel = nn.Module | Callable[[], nn.Module]
Forward = Callable[[nn.Module, Any], Any]

_KEPT = 2  # loaded models that a process keeps, the least recently used going first

_loaded: OrderedDict[str, nn.Module] = OrderedDict()  # by the token of what loaded them
_tokens: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_guard = RLock()  # of these


class Loader:
    """A function that loads a model, with a token that is the same in every process.

    A worker process receives a new copy of a lambda, a partial, or a function of the main script with every task. The
    token tells that it is the function whose model the process has loaded already.

    Parameters
    ----------
    function : callable
        It takes no arguments.
    """

    def __init__(self, function: Callable[[], nn.Module]) -> None:
        self.function = function
        with _guard:
            try:
                self.token = _tokens.setdefault(function, uuid4().hex)
            except TypeError:  # no hash, like a dataclass with __call__: known by what it holds
                self.token = joblib.hash(function)

    def __call__(self) -> nn.Module:
        """Load the model, or return the one that this process has."""
        with _guard:
            if self.token not in _loaded:
                model = self.function()
                if not isinstance(model, nn.Module):
                    raise TypeError(f"{self} must return a torch module, and returned a {type(model).__name__}")
                _loaded[self.token] = model
            _loaded.move_to_end(self.token)
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
            return _loaded[self.token]

    def __repr__(self) -> str:
        return f"base_model={getattr(self.function, '__qualname__', repr(self.function))}"


def sendable(base_model: BaseModel) -> BaseModel:
    """Return what is to be pickled in place of the model, or of the function that loads it."""
    return base_model if isinstance(base_model, (nn.Module, Loader)) else Loader(base_model)


@contextmanager
def held(base_model: BaseModel) -> Iterator[nn.Module]:
    """Have the base model inside a ``with`` block, in evaluation mode.

    Parameters
    ----------
    base_model : torch.nn.Module or callable
        The model, or a function of no arguments that loads it.

    Yields
    ------
    torch.nn.Module
        To be used in this thread only; others wait.
    """
    model = base_model if isinstance(base_model, nn.Module) else sendable(base_model)()
    with _guard:
        lock = _locks.setdefault(model, RLock())
    # Two threads of one search would otherwise see the sum of their adapters
    with lock, _evaluating(model):
        yield model


@contextmanager
def adapted(base_model: BaseModel, adapter: Adapter | None, *, prefix: str = "") -> Iterator[nn.Module]:
    """Put the adapter on the base model inside a ``with`` block, in evaluation mode and without gradients.

    Parameters
    ----------
    base_model : torch.nn.Module or callable
        The model, or a function of no arguments that loads it.
    adapter : Adapter or None
        None is the base model itself.
    prefix : str, default=''
        As in :func:`lorakit.applied`.

    Yields
    ------
    torch.nn.Module
        The model. Other threads that want it wait until the block ends.
    """
    with held(base_model) as model, torch.no_grad(), nullcontext() if adapter is None else _on(model, adapter, prefix):
        yield model


def _on(model: nn.Module, adapter: Adapter, prefix: str) -> Any:
    return applied(model, adapter, prefix=prefix)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, and restore afterwards the mode of every part: they may differ."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def outputs_of(model: nn.Module, forward: Forward, inputs: Any, n_inputs: int, batch_size: int | None) -> NDArray[Any]:
    """Call ``forward`` on all inputs, in batches if asked.

    Parameters
    ----------
    model : torch.nn.Module
        Its first argument.
    forward : callable
        From the model and some inputs to class scores (n, n_classes), or to n answers.
    inputs : object
        What ``forward`` takes; sliced if there is a batch size.
    n_inputs : int
        Number of inputs.
    batch_size : int or None
        None passes all at once.

    Returns
    -------
    ndarray of shape (n_inputs, n_classes) or (n_inputs,)

    Raises
    ------
    ValueError
        If the outputs have another shape, or contain NaN.
    """
    step = batch_size or max(n_inputs, 1)
    batches = [inputs] if batch_size is None else [inputs[i : i + step] for i in range(0, n_inputs, step)]
    outputs = np.concatenate([as_array(forward(model, batch)) for batch in batches])
    if outputs.ndim not in (1, 2) or len(outputs) != n_inputs:
        raise ValueError(
            f"forward made an array of shape {outputs.shape} of {n_inputs} inputs; expected class scores of shape "
            f"({n_inputs}, n_classes), or one answer each"
        )
    if outputs.dtype.kind == "f" and np.isnan(outputs).any():
        rows = np.flatnonzero(np.isnan(outputs).reshape(n_inputs, -1).any(axis=1))
        raise ValueError(f"forward made NaN of {len(rows)} of {n_inputs} inputs, first of the one at {rows[0]}")
    return outputs


def as_array(values: Any) -> NDArray[Any]:
    """Return an array of a tensor on any device and in any dtype, or of anything that NumPy takes."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype in (torch.float16, torch.bfloat16) else values.numpy()
    return np.asarray(values)
