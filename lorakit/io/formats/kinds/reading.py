"""Finding the modules of a file that are of another kind than plain LoRA, and opening them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ....exceptions import CorruptFileError
from ....files.safetensors import TensorInfo
from .._factors import check_factors
from .._modules import Stored
from .full import FULL
from .kind import Factored, Kind, Tensors
from .loha import LOHA
from .lokr import LOKR

KINDS: tuple[Kind, ...] = (LOHA, LOKR, FULL)  # those that single files hold


class Found(NamedTuple):
    """A module of another kind.

    Parameters
    ----------
    kind : Kind
        Which.
    keys : tuple of str
        The tensors to read.
    factored : Factored
        What they add up to.
    """

    kind: Kind
    keys: tuple[str, ...]
    factored: Factored

    def stored(self, scale: float) -> Stored:
        """Return where the module lies, with the factor on its update."""
        made = self.factored
        return Stored(self.keys, made.info, scale, made.form, made.arguments, kind=self.kind.name, svd=made.svd)


def split_kinds(
    header: Mapping[str, TensorInfo], kinds: Sequence[Kind] = KINDS
) -> tuple[dict[str, dict[str, str]], dict[str, TensorInfo]]:
    """Part the tensors of modules of these kinds from the others.

    Returns
    -------
    modules : dict of str to dict
        From module to part, such as ``hada_w1_a``, to key, in the order of the file.
    rest : dict of str to TensorInfo
        The other tensors.

    Examples
    --------
    >>> tensor = TensorInfo("F32", (2, 2))
    >>> modules, rest = split_kinds({"x.lokr_w1": tensor, "x.alpha": tensor, "y.lora_up.weight": tensor})
    >>> modules, list(rest)
    ({'x': {'lokr_w1': 'x.lokr_w1'}}, ['x.alpha', 'y.lora_up.weight'])
    """
    parts = {part for kind in kinds for part in kind.parts}
    modules: dict[str, dict[str, str]] = {}
    rest = {}
    for key, info in header.items():
        module, _, part = key.rpartition(".")
        if part in parts and module:
            modules.setdefault(module, {})[part] = key
        else:
            rest[key] = info
    return modules, rest


def open_module(
    path: Path,
    module: str,
    keys: Mapping[str, str],
    header: Mapping[str, TensorInfo],
    kinds: Sequence[Kind] = KINDS,
) -> Found:
    """Check the tensors of one module.

    Parameters
    ----------
    path : Path
        The file, for messages.
    module : str
        The module.
    keys : mapping of str to str
        Its parts, as :func:`split_kinds` gives them.
    header : mapping of str to TensorInfo
        The tensors of the file.
    kinds : sequence of Kind
        Those that the parts were looked for of.

    Raises
    ------
    CorruptFileError
        If a tensor is missing or empty, or they do not fit, or are of two kinds.
    UnsupportedAdapterError
        If a tensor is no floating-point numbers, or the factors would be too large.
    """
    kind, *others = [kind for kind in kinds if not kind.parts.isdisjoint(keys)]
    if others:
        raise CorruptFileError(
            f"has tensors of {' and '.join(kind.name for kind in (kind, *others))}",
            path=path,
            module=module,
            expected="one kind",
            remedy="remove the tensors of the other",
        )
    check_factors(f"{path}: module {module!r}", list(keys.values()), header)
    factored = kind.factored(Tensors(path, module, keys, header))
    return Found(kind, tuple(keys[part] for part in factored.parts), factored)
