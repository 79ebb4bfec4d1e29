"""The base model that an adapter was trained on, where its file does not say all of its update."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...adapters import ModuleInfo
from ...exceptions import IncompatibleAdaptersError, Setting, UnsupportedAdapterError
from ...files.checkpoint import Checkpoint, FileCheckpoint, MemoryCheckpoint, unsupported_dtype
from ...files.open_checkpoint import open_checkpoint
from ...files.safetensors import FLOAT_DTYPES
from ..names.in_checkpoints import is_head, names_in
from ._elsewhere import Elsewhere, Held, InFile
from .codec import ReadOptions

_IS_IT = "is it the base model that the adapter was trained on?"


class BaseWeights:
    """The weights of a base model, by the names of an adapter's modules.

    Parameters
    ----------
    checkpoint : Checkpoint
        The base model.
    path : Path
        The file of the adapter, for messages.
    names : mapping of str to str
        From the adapter's modules to those of the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, names: Mapping[str, str]) -> None:
        self.checkpoint, self.path, self.names = checkpoint, path, names

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of a module's weight."""
        return self.checkpoint.infos[self._tensor(module)].shape

    def weight(self, module: str) -> Elsewhere:
        """Return where a module's weight lies.

        Raises
        ------
        UnsupportedCheckpointError
            If it is quantized.
        """
        tensor = self._tensor(module)
        dtype = self.checkpoint.infos[tensor].dtype
        if dtype not in FLOAT_DTYPES:
            raise unsupported_dtype(self.checkpoint.name, f"{tensor!r} is stored as {dtype}")
        if isinstance(self.checkpoint, FileCheckpoint):
            shard, key = self.checkpoint.shard_of[tensor]
            return InFile(shard.path, key, shard.stamp)
        assert isinstance(self.checkpoint, MemoryCheckpoint)
        held = self.checkpoint.tensors[tensor].detach()
        if held.is_meta:
            raise UnsupportedAdapterError(
                f"{tensor!r} of the base is on the meta device, which has shapes and no numbers",
                path=self.path,
                module=module,
                remedy=[Setting("base"), " with its weights"],
            )
        return Held(tensor, held.cpu())

    def turned(self, module: str, info: ModuleInfo, told: bool) -> bool:
        """Return whether a module's weight holds (in, out); ``told`` says so for square ones.

        Raises
        ------
        IncompatibleAdaptersError
            If the weight has another shape than the adapter's module.
        """
        rows, *rest = self.shape(module)
        size = 1
        for width in rest:
            size *= width
        straight, turned = (rows, size) == (info.d_out, info.d_in), (rows, size) == (info.d_in, info.d_out)
        if info.kind.name == "embedding":
            straight = False
        elif rest[1:] or info.kind.kernel:
            turned = False
        if not straight and not turned:
            raise IncompatibleAdaptersError(
                f"{self._tensor(module)!r} of the base has the shape {self.shape(module)}",
                path=self.path,
                module=module,
                expected=f"the widths of the adapter's {info.kind}, d_in {info.d_in} and d_out {info.d_out}",
                remedy=_IS_IT,
            )
        return turned if straight != turned else told

    def _tensor(self, module: str) -> str:
        tensor = f"{self.names[module]}.weight"
        if tensor not in self.checkpoint and is_head(self.names[module]) and self.checkpoint.tied_embedding:
            return self.checkpoint.tied_embedding
        if tensor not in self.checkpoint:
            raise IncompatibleAdaptersError(
                f"the base {self.checkpoint.name} has no tensor {tensor!r}",
                path=self.path,
                module=module,
                remedy=_IS_IT,
            )
        return tensor


def open_base(
    options: ReadOptions, path: Path, modules: Mapping[str, str], *, format: str, metadata: Mapping[str, str], why: str
) -> BaseWeights:
    """Open the base model that the options name.

    Parameters
    ----------
    options : ReadOptions
        What the user chose.
    path : Path
        The file of the adapter.
    modules : mapping of str to str
        Its modules, and the name of the kind of layer of each.
    format : str
        Its format.
    metadata : mapping of str to str
        Of its header.
    why : str
        What needs the base, for the message.

    Raises
    ------
    UnsupportedAdapterError
        If no base is given.
    IncompatibleAdaptersError
        If the names of the modules could mean several parts of the base.
    """
    if options.base is None:
        raise UnsupportedAdapterError(why, path=path, remedy=[Setting("base"), ", the model that it was trained on"])
    checkpoint = open_checkpoint(options.base)
    names = names_in(checkpoint, modules, adapter=path.name, format=format, metadata=metadata)
    return BaseWeights(checkpoint, path, names)
