"""What is known of a format without opening a file: its name, its file names, its layouts. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

__all__ = ["About"]


@dataclass(frozen=True)
class About:
    """A format, as help texts, error messages and searches for files name it.

    Parameters
    ----------
    name : str
        As in ``format=``, in ``--format`` and in :class:`~lorakit.adapters.Provenance`.
    title : str
        What its files are, for people.
    layouts : tuple of str, default=()
        Layouts that it can write, the default first. Empty for a format that is only read.
    weights : tuple of str, default=()
        Names that its weights have in a directory. Empty where the user names the file.
    config : str or None
        Name of the file beside the weights that says how they scale, if there is one.
    card : str or None
        Name of the file for people that it writes, if there is one.
    directory : bool, default=False
        Whether it writes a directory with these files; otherwise it writes one safetensors file.
    extra_weights : bool, default=False
        Whether it can hold extra weights beside the factors.
    differences : bool, default=False
        Whether it can hold differences of biases and norms.
    experts : bool, default=False
        Whether it can hold the experts of one layer in one tensor.
    initial : bool, default=False
        Whether an adapter can be read as the difference to the one that its training began with.
    """

    name: str
    title: str
    layouts: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    config: str | None = None
    card: str | None = None
    directory: bool = False
    extra_weights: bool = False
    differences: bool = False
    experts: bool = False
    initial: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that it writes into a directory; empty for a format of one file."""
        return tuple(filter(None, (*self.weights, self.config, self.card))) if self.directory else ()

    @property
    def pickles(self) -> tuple[str, ...]:
        """Names that its weights have in a directory where they are a pickle."""
        return tuple(f"{PurePath(name).stem}.bin" for name in self.weights)

    @property
    def suffix(self) -> str:
        """What the name of an output must end in: nothing for a directory."""
        return "" if self.directory else ".safetensors"
