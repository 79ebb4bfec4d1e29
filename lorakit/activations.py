"""Second moments of the inputs of a model's adapted modules: what RegMean needs of an adapter's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ._frozen import FrozenMapping
from .adapters import Adapter
from .applying import applied

__all__ = ["Gram", "Grams", "collect_grams"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PIECE = 256  # rows that a thin factor takes up at a time


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments ``G = X^T X / N`` of the N inputs that one module saw.

    Either ``dense`` is given, or ``diagonal`` and ``factor``, which stand for ``diag(diagonal) + factor^T factor``.

    Parameters
    ----------
    count : int
        N: tokens, ids or patches of an image.
    dense : ndarray of shape (d_in, d_in), optional
        The whole matrix.
    diagonal : ndarray of shape (d_in,), optional
        The diagonal of G less that of ``factor^T factor``.
    factor : ndarray of shape (p, d_in), optional
        Thin factor; without rows if G is diagonal.
    """

    count: int
    dense: NDArray[Any] | None = None
    diagonal: NDArray[Any] | None = None
    factor: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        shapes = [np.shape(x) for x in (self.dense, self.diagonal, self.factor) if x is not None]
        thin = self.diagonal is not None and self.factor is not None
        widths = {shape[-1] for shape in shapes if shape}
        if (self.dense is None) != thin or len(shapes) == 3 or len(widths) != 1 or not self._square():
            raise ValueError(
                "a Gram takes either dense, (d_in, d_in), or diagonal, (d_in,), with factor, (p, d_in); "
                f"got arrays of shapes {shapes}"
            )
        for name in ("dense", "diagonal", "factor"):
            if (value := getattr(self, name)) is not None:
                view = np.asarray(value).view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def _square(self) -> bool:
        if self.diagonal is None or self.factor is None:
            shape = np.shape(self.dense)  # type: ignore[arg-type]  # checked before
            return len(shape) == 2 and shape[0] == shape[1]
        return np.ndim(self.diagonal) == 1 and np.ndim(self.factor) == 2

    @property
    def d_in(self) -> int:
        """Width of the inputs."""
        return next(x.shape[-1] for x in (self.dense, self.diagonal) if x is not None)

    def matrix(self) -> NDArray[Any]:
        """Return G as one (d_in, d_in) array."""
        if self.diagonal is None or self.factor is None:
            assert self.dense is not None
            return self.dense
        return np.diag(self.diagonal) + self.factor.T @ self.factor

    def tensors(self, device: torch.device | str = "cpu") -> Tensor | tuple[Tensor, Tensor]:
        """Return what :func:`lorakit.linalg.regression_mean` takes: the matrix, or (diagonal, factor), in float64."""
        parts = [self.dense] if self.dense is not None else [self.diagonal, self.factor]
        first, *rest = (torch.tensor(x, dtype=torch.float64, device=device) for x in parts)
        return (first, rest[0]) if rest else first


class Grams(FrozenMapping[Gram]):
    """The second moments of the inputs of one adapter's modules, by module name: immutable, and it pickles.

    Parameters
    ----------
    modules : mapping of str to Gram or ndarray
        A (d_in, d_in) array stands for a dense :class:`Gram` of one input.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit.activations import Grams
    >>> Grams({"query": np.eye(3)})
    Grams(modules=1, inputs=1, MB=0.0)
    """

    def __init__(self, modules: Mapping[str, Gram | NDArray[Any]]) -> None:
        super().__init__(
            {name: gram if isinstance(gram, Gram) else Gram(1, np.asarray(gram)) for name, gram in modules.items()}
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(
            x.nbytes for gram in self.values() for x in (gram.dense, gram.diagonal, gram.factor) if x is not None
        )

    def __repr__(self) -> str:
        # short, as it becomes part of a merged adapter's provenance
        inputs = max((gram.count for gram in self.values()), default=0)
        return f"Grams(modules={len(self)}, inputs={inputs}, MB={self.nbytes / 1e6:.1f})"


def collect_grams(
    model: nn.Module,
    adapter: Adapter,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    prefix: str = "",
    apply: bool = True,
    mask: str | Callable[[Any], Tensor | None] | None = "auto",
    rank: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Grams:
    """Run a model on some data and gather the second moments of the inputs of an adapter's modules.

    Unlabelled data are enough; a few hundred texts do. The modules can be linear layers, embeddings (whose moments are
    a diagonal of counts) and convolutions (whose inputs are patches). Put the model into evaluation mode first.

    Parameters
    ----------
    model : torch.nn.Module
        The base model, or one that contains it. It is not changed.
    adapter : Adapter
        The adapter whose data these are.
    batches : iterable
        What the model is called with, one at a time.
    forward : callable, default=None
        ``forward(model, batch)`` runs the model. None calls ``model(**batch)`` for a mapping, ``model(*batch)`` for a
        tuple or list, ``model(batch)`` for anything else.
    prefix : str, default=''
        Put before the adapter's module names, as in :func:`lorakit.applied`.
    apply : bool, default=True
        Whether the adapter is applied meanwhile: RegMean uses the inputs that occur in each fine-tuned model.
    mask : 'auto', str, callable or None, default='auto'
        Which positions count: padding should not. A string is the key of a mask in the batch, of the shape of
        the token ids, non-zero where a token is; a callable makes it from the batch. 'auto' takes ``attention_mask``
        where the batch is a mapping that has it. None counts all.
    rank : int, default=None
        Keep a thin factor of this many rows by truncated eigendecomposition and the exact diagonal, in place of the
        d_in x d_in matrix: memory then grows with ``rank * d_in``, also while collecting. None keeps the matrix.
    dtype : torch.dtype, default=torch.float64
        Dtype of the sums, float64 or float32.

    Returns
    -------
    Grams
        By module name, for ``RegMeanMerger(grams={adapter.name: ...})``.

    Raises
    ------
    IncompatibleAdaptersError
        If the model lacks a module of the adapter, or has it in another shape.
    UnsupportedAdapterError
        If a module is of a kind that cannot be watched.
    ValueError
        If no input reached any of the modules, one was not finite, or the mask does not fit.

    See Also
    --------
    RegMeanMerger : What they are for.
    applied : Runs a model with an adapter.

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, collect_grams
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    >>> adapter = Adapter({"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1))})
    >>> grams = collect_grams(model, adapter, [torch.eye(3), torch.ones(1, 3)])
    >>> grams["0"].matrix()
    array([[0.5 , 0.25, 0.25],
           [0.25, 0.5 , 0.25],
           [0.25, 0.25, 0.5 ]])
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None for whole matrices; got {rank}")
    run = run_model if forward is None else forward
    context: AbstractContextManager[nn.Module] = applied(model, adapter, prefix=prefix)
    if not apply:
        with context:  # checks that the adapter fits the model
            pass
        context = nullcontext(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    watchers = {name: _Watcher(name, info.d_in, rank, dtype) for name, info in adapter.infos.items()}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(context)
        for name, watcher in watchers.items():
            handle = modules[prefix + name].register_forward_pre_hook(watcher, with_kwargs=True)
            stack.callback(handle.remove)
        for batch in batches:
            found = _mask_of(batch, mask)
            for watcher in watchers.values():
                watcher.mask = found
            run(model, batch)
    if not any(watcher.count for watcher in watchers.values()):
        raise ValueError(
            f"{adapter.name}: no input reached any of its {len(watchers)} modules; batches was empty or spent, "
            "every position was masked, or forward does not run this model"
        )
    return Grams({name: watcher.gram() for name, watcher in watchers.items()})


def run_model(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch, as its kind asks: with keywords, with several arguments, or with one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _mask_of(batch: Any, mask: str | Callable[[Any], Tensor | None] | None) -> Tensor | None:
    if mask == "auto":
        found = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    else:
        found = batch[mask] if isinstance(mask, str) else mask and mask(batch)
    return None if found is None else torch.as_tensor(found) != 0


class _Watcher:
    """A forward pre-hook that adds up the second moments of one module's inputs."""

    def __init__(self, name: str, d_in: int, rank: int | None, dtype: torch.dtype) -> None:
        self.name, self.d_in, self.rank, self.dtype = name, d_in, rank, dtype
        self.mask: Tensor | None = None
        self.count = 0
        self.total: Tensor | None = None  # sum of x x^T; of x * x where the matrix is diagonal or thin
        self.factor: Tensor | None = None  # sum of x x^T is about factor^T factor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, nn.Embedding):
            ids = self._kept(x, x.shape)
            self._add(torch.bincount(ids, minlength=self.d_in).to(self.dtype), len(ids))
            return
        x = _patches(module, x) if isinstance(module, _CONVS) else x
        rows = self._kept(x, x.shape[:-1]).to(self.dtype)
        if self.rank is None:
            self._add(rows.mT @ rows, len(rows))
            return
        self._add((rows * rows).sum(dim=0), len(rows))
        for piece in rows.split(_PIECE):
            # twice the rank is kept meanwhile: what a later batch makes large is then less likely to be gone
            self.factor = _compressed(piece if self.factor is None else torch.cat([self.factor, piece]), 2 * self.rank)

    def _add(self, total: Tensor, count: int) -> None:
        self.total = total if self.total is None else self.total.add_(total)
        self.count += count

    def _kept(self, x: Tensor, positions: torch.Size) -> Tensor:
        """Flatten the positions of x and drop those that are masked."""
        flat = x.reshape(positions.numel(), *x.shape[len(positions) :])
        mask = self.mask
        if mask is None:
            return flat
        if positions == mask.shape or positions == (mask.numel(),):
            return flat[mask.reshape(-1).to(flat.device)]
        if positions == mask.shape[:1]:  # pooled: one input a sequence, none of them padding
            return flat
        raise ValueError(
            f"module {self.name!r}: a mask of shape {tuple(mask.shape)} does not fit inputs at {tuple(positions)}; "
            "pass mask=None to count all, or a callable that makes the mask that fits"
        )

    def gram(self) -> Gram:
        if self.total is None:  # never called: an expert that no token went to
            return Gram(0, diagonal=np.zeros(self.d_in), factor=np.zeros((0, self.d_in)))
        if not torch.isfinite(self.total).all():
            raise ValueError(f"module {self.name!r}: an input was infinite or not a number; try a wider compute dtype")
        n = max(self.count, 1)
        total = self.total / n
        if total.ndim == 2:
            return Gram(self.count, total.cpu().numpy())
        factor = total.new_zeros(0, self.d_in)
        if self.factor is not None and self.rank is not None:
            factor = _compressed(self.factor, self.rank) / n**0.5
        left = (total - (factor * factor).sum(dim=0)).clamp_min(0)
        return Gram(self.count, diagonal=left.cpu().numpy(), factor=factor.cpu().numpy())


def _compressed(rows: Tensor, rank: int) -> Tensor:
    """Return the (rank, d) matrix whose Gram matrix is nearest to that of the rows: ``S V^T`` of their SVD, cut."""
    if len(rows) <= rank:
        return rows
    _, u = torch.linalg.eigh(rows @ rows.mT)
    return u[:, -rank:].mT @ rows


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """Unfold a convolution's input: (n, channels, *size) to (n, *out, channels * prod(kernel))."""
    conv: Any = module
    dims = len(conv.kernel_size)
    x = x if x.ndim == dims + 2 else x.unsqueeze(0)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, step, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + dim, (size - 1) * dilation + 1, step)[..., ::dilation]
    # (n, channels, *out, *kernel)
    return x.movedim(1, 1 + dims).flatten(start_dim=1 + dims)
