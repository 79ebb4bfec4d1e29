"""What every adapter's own head says of some inputs: the teachers of a distilled merge, asked once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .._frozen import FrozenMapping
from .._models import BaseModel, adapted, as_array
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import OutputError
from ._inputs import Rows, count, in_order, key_of, lengths_of, take
from .heads import Forwards, Heads

Dtype = Literal["float16", "float32", "float64"]


class Targets(FrozenMapping[Any]):
    """Class scores of some inputs by adapter name, each of shape (n_inputs, n_classes): immutable, and it pickles.

    Parameters
    ----------
    scores : mapping of str to array-like or path
        Class scores, or a ``.npy`` file with them, which is read when it is asked for, and pickled as its path.
    key : str, default=None
        Identifies the inputs, so that those of another list are noticed.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit.distillation.targets import Targets
    >>> Targets({"law": np.zeros((5, 2)), "medicine": np.zeros((5, 3))})
    Targets(adapters=2, inputs=5)
    """

    def __init__(self, scores: Mapping[str, ArrayLike | os.PathLike[str]], *, key: str | None = None) -> None:
        super().__init__(
            {name: value if isinstance(value, os.PathLike) else np.asarray(value) for name, value in scores.items()}
        )
        self.key = key
        shapes = {name: value.shape for name, value in self.items()}
        if not shapes or any(len(s) != 2 for s in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise ValueError(f"targets must be arrays of shape (n_inputs, n_classes), of equal lengths; got {shapes}")

    def __getitem__(self, name: str) -> NDArray[Any]:
        value = self._entries[name]
        return np.load(value, mmap_mode="r") if isinstance(value, os.PathLike) else value

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return len(next(iter(self.values())))

    def checked(self, names: Iterable[str], inputs: Any) -> Targets:
        """Return itself, if it is of these inputs and has these adapters.

        Raises
        ------
        ValueError
            If it is not.
        """
        if missing := [name for name in names if name not in self]:
            raise ValueError(f"targets has no scores of the adapters {missing}; it has {list(self)}")
        n, key = count(inputs), key_of(inputs)
        if self.n_inputs != n or (None not in (self.key, key) and self.key != key):
            raise ValueError(
                f"targets was collected on {self.n_inputs} inputs that are not the {n} given; call collect_targets "
                "with these inputs, in this order"
            )
        return self

    def __repr__(self) -> str:
        return f"Targets(adapters={len(self)}, inputs={self.n_inputs})"


def collect_targets(
    model: BaseModel,
    adapters: AdapterSet | Iterable[Adapter],
    inputs: Any,
    forwards: Forwards,
    *,
    batch_size: int = 32,
    prefix: str = "",
    folder: str | os.PathLike[str] | None = None,
    dtype: Dtype = "float32",
) -> Targets:
    """Ask every adapter's head for the class scores of all inputs, with that adapter on the model.

    No labels are needed, and the inputs need not belong to any adapter's task. One adapter is on the model at a time,
    and one batch is run at a time: apart from the scores, memory does not grow with the inputs or the adapters.

    Parameters
    ----------
    model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it. It is not changed, and runs in evaluation mode.
    adapters : AdapterSet or list of Adapter
        The teachers, each of another name.
    inputs : list, array, tensor or mapping of arrays
        What ``forwards`` takes, such as a list of texts.
    forwards : callable, or mapping of str to callable
        ``forward(model, inputs)`` gives class scores of shape (n, n_classes), such as logits. A mapping gives each
        adapter its own by name. A forward may also return a mapping of adapter names to scores, as
        :class:`~lorakit.distillation.heads.SharedHeads` does, which runs the model once for all heads.
    batch_size : int, default=32
        Inputs passed to a forward at a time; those of a list in order of their length, to save padding.
    prefix : str, default=''
        Put before the adapters' module names, as in :func:`lorakit.applied`.
    folder : path, default=None
        Where to keep the scores, one file an adapter; None keeps them in memory. A run that was stopped goes on after
        the last batch that it finished, and what is there already is not asked for again. Files are known by the
        adapter and by the inputs: for another model or other forwards take another folder.
    dtype : {'float32', 'float16', 'float64'}, default='float32'
        In which scores are kept.

    Returns
    -------
    Targets
        Scores by adapter name. With a folder, they are read from it when they are asked for.

    Raises
    ------
    ValueError
        If adapters share a name, or scores are not finite, or not in the range of ``dtype``, or of another shape.
    IncompatibleAdaptersError
        If an adapter does not fit the model.
    OutputError
        If the folder cannot be written to.

    See Also
    --------
    DistillMerger : What they are for.
    AgreementScorer : How often a merge agrees with them.

    Examples
    --------
    >>> import torch
    >>> from lorakit.distillation.targets import collect_targets
    >>> from lorakit.testing import make_adapters
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 16))})
    >>> adapters = make_adapters(ranks=(2, 3), n_modules=1, random_state=0)
    >>> collect_targets(model, adapters, torch.ones(5, 24), lambda model, x: model["layer"](x))
    Targets(adapters=2, inputs=5)
    """
    adapters = distinctly_named(adapters)
    n, lengths, key = count(inputs), lengths_of(inputs), key_of(inputs)
    batches = in_order(lengths, np.arange(n), batch_size)
    if folder is not None and key is None:
        raise ValueError("targets in a folder are known by the content of their inputs; these inputs cannot be pickled")
    found: dict[str, Any] = {}
    for adapter in adapters:
        heads = Heads(forwards, [adapter.name])
        store = None if folder is None else _Store(Path(folder), adapter, key, prefix, dtype)
        found[adapter.name] = _asked(model, adapter, inputs, heads, batches, n, prefix, dtype, store)
    return Targets(found, key=key)


def untouched_outputs(
    model: BaseModel, names: Sequence[str], inputs: Any, forwards: Forwards, *, batch_size: int = 32
) -> dict[str, NDArray[Any]]:
    """Return the outputs without any adapter, by the names of adapters, each of shape (n_inputs, width)."""
    n = count(inputs)
    heads = Heads(forwards, names)
    found: dict[str, NDArray[Any]] = {}
    with adapted(model, None) as ready:
        for rows in in_order(lengths_of(inputs), np.arange(n), batch_size):
            for name, outputs in heads.scores(ready, take(inputs, rows), len(rows)).items():
                batch = as_array(outputs)
                found.setdefault(name, np.empty((n, batch.shape[1]), batch.dtype))[rows] = batch
    return found


def distinctly_named(adapters: AdapterSet | Iterable[Adapter]) -> AdapterSet:
    """Return the adapters as a set, if heads can be told apart by their names.

    Raises
    ------
    ValueError
        If two have one name.
    """
    adapters = AdapterSet(adapters)
    if len(set(adapters.names)) < len(adapters):
        raise ValueError(
            f"heads belong to adapters by name, and two of {list(adapters.names)} are the same; Adapter.renamed gives "
            "another name"
        )
    return adapters


def _asked(
    model: BaseModel,
    adapter: Adapter,
    inputs: Any,
    heads: Heads,
    batches: list[Rows],
    n: int,
    prefix: str,
    dtype: Dtype,
    store: _Store | None,
) -> NDArray[Any] | Path:
    """Return the scores of one adapter, or the file with them."""
    if store is not None and store.path.exists():
        return store.path
    scores = None if store is None else store.begun()
    with adapted(model, adapter, prefix=prefix) as ready:
        for rows in batches:
            if scores is not None and not np.isnan(scores[rows]).any():
                continue
            batch = _scores_of(ready, adapter.name, take(inputs, rows), heads, len(rows), dtype)
            if scores is None:
                shape = (n, batch.shape[1])
                scores = np.full(shape, np.nan, dtype) if store is None else store.new(shape)
            scores[rows] = batch
    assert scores is not None  # there is at least one input
    return scores if store is None else store.finished(scores)


def _scores_of(model: nn.Module, name: str, inputs: Any, heads: Heads, n: int, dtype: Dtype) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # what overflows is found below
        scores = as_array(heads.scores(model, inputs, n)[name]).astype(dtype)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"the forward of {name!r} made a score that is infinite, not a number, or too large for {dtype}; expected "
            "finite class scores, such as logits"
        )
    return scores


class _Store:
    """The scores of one adapter in a file, which has another name until all of them are there; NaN stands for none."""

    def __init__(self, folder: Path, adapter: Adapter, key: str | None, prefix: str, dtype: Dtype) -> None:
        name = joblib.hash((key, adapter, prefix, dtype))
        self.path = folder / f"{name}.npy"
        self._part = folder / f"{name}.part"
        self._dtype = dtype
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"targets cannot be kept there: {error.strerror}",
                path=folder,
            ) from error

    def begun(self) -> NDArray[Any] | None:
        """Return the scores that a run left that was stopped; None if there was no such run."""
        try:
            return np.lib.format.open_memmap(self._part, mode="r+")
        except (FileNotFoundError, ValueError):  # ValueError: stopped before the first batch
            return None

    def new(self, shape: tuple[int, int]) -> NDArray[Any]:
        """Return room for scores, none of them there."""
        try:
            scores = np.lib.format.open_memmap(self._part, mode="w+", dtype=self._dtype, shape=shape)
            scores[:] = np.nan
        except OSError as error:
            raise OutputError(
                f"targets cannot be kept there: {error.strerror}",
                path=self._part,
            ) from error
        return scores

    def finished(self, scores: NDArray[Any]) -> Path:
        """Give the file its name."""
        assert isinstance(scores, np.memmap)
        scores.flush()
        self._part.replace(self.path)
        return self.path
