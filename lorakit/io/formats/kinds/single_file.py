"""Modules of other kinds in single files, whose alphas are tensors beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ....exceptions import CorruptFileError
from ....files.checks import FileStamp
from ....files.safetensors import TensorInfo
from .._modules import Stored
from .._pairs import read_alphas
from ..codec import ReadOptions
from .kind import Kind
from .reading import KINDS, open_module, split_kinds

Scale = Callable[[Path, str, float | None, int, ReadOptions], float]


def read_kinds(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    scale: Scale,
    kinds: Sequence[Kind] = KINDS,
) -> tuple[dict[str, Stored], dict[str, TensorInfo]]:
    """Find and check the modules of other kinds, and read their alphas.

    Parameters
    ----------
    path, opened
        The file, and its stamp when the header was read.
    header : mapping of str to TensorInfo
        Its tensors.
    options : ReadOptions
        What the user chose.
    scale : callable
        From the path, the module, its alpha or None, the rank that divides it, and the options, to the factor on the
        update. It is not asked where no rank divides alpha, as for a Kronecker product of two whole matrices: LyCORIS
        ignores alpha there.
    kinds : sequence of Kind, optional
        Those to look for; by default all that single files hold.

    Returns
    -------
    stored : dict of str to Stored
        The modules, in the order of the file.
    rest : dict of str to TensorInfo
        The tensors of other modules.

    Raises
    ------
    CorruptFileError, UnsupportedAdapterError
        As :func:`~lorakit.io.formats.kinds.reading.open_module` raises them.
    """
    modules, rest = split_kinds(header, kinds)
    found = {module: open_module(path, module, keys, header, kinds) for module, keys in modules.items()}
    keys_of_alpha = {module: f"{module}.alpha" for module in found if f"{module}.alpha" in rest}
    alphas = read_alphas(path, opened, header, keys_of_alpha)
    stored = {}
    for module, one in found.items():
        divisor = one.factored.divisor
        stored[module] = one.stored(
            1.0 if divisor is None else scale(path, module, alphas.get(module), divisor, options)
        )
    return stored, {key: info for key, info in rest.items() if key not in keys_of_alpha.values()}


def refuse_two_kinds(path: Path, module: str, key: str, other: str) -> NoReturn:
    """Raise CorruptFileError for a module that has tensors of two kinds, of which these are two."""
    raise CorruptFileError(
        f"has {key!r} and {other!r}",
        path=path,
        module=module,
        expected="one kind",
        remedy="remove the tensors of the other",
    )
