"""Which tensors of two checkpoints are compared, and as what kind of layer each difference becomes a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from ..adapters import ModuleInfo, ModuleKind
from ..files.checkpoint import CONV1D, EMBEDDINGS, HEAD, Checkpoint, unsupported_dtype
from ..files.expressions import matcher
from ..files.safetensors import FLOAT_DTYPES
from .naming import Named

_EMBEDDINGS = (*EMBEDDINGS, "wpe", "position_embeddings", "token_type_embeddings", "position_embedding")

NOT_CHOSEN = "not chosen"


class Compared(NamedTuple):
    """A tensor that both checkpoints have, and the module that its difference is to become.

    Parameters
    ----------
    tensor : str
        Its name in the tuned checkpoint.
    base : str
        Its name in the base: another one where the base shares it with its embedding.
    module : str or None
        Name of the module; None if no LoRA can hold it.
    turned : bool
        Whether it is stored as (in, out).
    kind : ModuleKind
        Of the module.
    why : str
        Why no LoRA can hold it, or why it is not wanted.
    spans : tuple of (int, int) or None
        The rows of the tensor that are the module's outputs, in their order; None for all.
    """

    tensor: str
    base: str
    module: str | None
    turned: bool = False
    kind: ModuleKind = ModuleKind()
    why: str = ""
    spans: tuple[tuple[int, int], ...] | None = None

    def info(self, checkpoint: Checkpoint) -> ModuleInfo:
        """Return the widths of the module."""
        rows, cols = checkpoint.matrix_shape(self.tensor)
        if self.spans is not None:
            rows = sum(stop - start for start, stop in self.spans)
        return ModuleInfo(0, *((rows, cols) if self.turned else (cols, rows)), self.kind)


class Alone(NamedTuple):
    """A tensor that cannot be compared as a whole."""

    tensor: str
    why: str
    side: Literal["tuned", "base", "both"]


def pair_up(
    tuned: Checkpoint,
    base: Checkpoint,
    wanted: Callable[[str], bool],
    names: Mapping[str, Sequence[Named]] | None = None,
) -> tuple[list[Compared], list[Alone]]:
    """Pair the tensors of two checkpoints; ``names`` are the modules that they are, if not those of their names."""
    pairs: list[Compared] = []
    alone: list[Alone] = []
    for tensor, (dtype, shape) in tuned.infos.items():
        other = tensor if tensor in base or tensor != f"{HEAD}.weight" else (base.tied_embedding or tensor)
        if other not in base:
            alone.append(Alone(tensor, "the base does not have it", "tuned"))
        elif base.infos[other].shape != shape:
            theirs = base.infos[other].shape
            grown = len(shape) == 2 and len(theirs) == 2 and shape[1:] == theirs[1:]
            what = f"{shape[0] - theirs[0]:+} rows" if grown else f"shape {shape}"
            alone.append(Alone(tensor, f"{what}, the base has {theirs}", "both" if grown else "tuned"))
        elif {dtype, base.infos[other].dtype} - set(FLOAT_DTYPES):
            _refuse_weights(tuned, tensor, dtype)
        elif names is None:
            pairs.append(_classified(tensor, other, tuned, wanted))
        else:
            pairs += _under_names(tensor, other, tuned, wanted, names.get(tensor, ()))
    head_is_tied = tuned.tied_embedding is not None
    alone += [
        Alone(tensor, "only the base has it", "base")
        for tensor in base.infos
        if tensor not in tuned and not (tensor == f"{HEAD}.weight" and head_is_tied)
    ]
    return pairs, alone


def _refuse_weights(tuned: Checkpoint, tensor: str, dtype: str) -> None:
    if tensor.endswith(".weight"):  # other tensors of whole numbers are positions and counts, which do not train
        raise unsupported_dtype(tuned.name, f"{tensor!r} is stored as {dtype}")


def _under_names(
    tensor: str, other: str, tuned: Checkpoint, wanted: Callable[[str], bool], names: Sequence[Named]
) -> Iterator[Compared]:
    shape = tuned.infos[tensor].shape
    if not names:
        why = "a vector (a norm or a bias)" if len(shape) < 2 else "a parameter that has no name in that format"
        yield Compared(tensor, other, None, why=why)
        return
    plain = _classified(f"{tensor.removesuffix('.weight')}.weight", other, tuned, lambda _: True, shape)
    for module, spans, turned in names:
        if len(shape) < 2 or (plain.module is None and turned is None):
            yield Compared(tensor, other, None, why=plain.why)
        elif not wanted(module):
            yield Compared(tensor, other, None, why=NOT_CHOSEN)
        else:
            stored = plain.turned if turned is None else turned
            yield Compared(tensor, other, module, stored, plain.kind, spans=spans)


def _classified(
    tensor: str, other: str, tuned: Checkpoint, wanted: Callable[[str], bool], known: Sequence[int] | None = None
) -> Compared:
    shape = tuned.infos[tensor].shape if known is None else known
    module = tensor.removesuffix(".weight")
    if len(shape) < 2:
        return Compared(tensor, other, None, why="a vector (a norm or a bias)")
    if module == tensor:
        return Compared(tensor, other, None, why="a parameter that is no layer's weight")
    if not wanted(module):
        return Compared(tensor, other, None, why=NOT_CHOSEN)
    last = module.rpartition(".")[2]
    if len(shape) == 2:
        if last in _EMBEDDINGS:
            return Compared(tensor, other, module, True, ModuleKind("embedding"))
        return Compared(tensor, other, module, last in CONV1D and tuned.stores_in_out)
    if shape[1] == 1 and shape[0] > 1:
        return Compared(tensor, other, None, why="a convolution with groups")
    return Compared(tensor, other, module, kind=ModuleKind("conv", tuple(shape[2:])))


def chooser(patterns: str | Iterable[str] | None) -> Callable[[str], bool]:
    """Return whether a module is wanted: one of the regular expressions must match its whole name.

    Raises
    ------
    ValueError
        If one is no regular expression, or one that could take endless time.
    """
    if patterns is None:
        return lambda module: True
    matchers = [matcher(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    return lambda module: any(matches(module) for matches in matchers)
