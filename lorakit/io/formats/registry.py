"""The list of formats.

Each entry is a package with two files: ``about.py``, whose ``ABOUT`` says what is known of the format without opening a
file, and ``codec.py``, whose ``CODEC`` reads and writes it. Packages are imported when they are asked for, so that
help texts do not wait for torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from .about import About

if TYPE_CHECKING:
    from .codec import Codec

__all__ = ["FORMATS", "about", "abouts", "codec", "codecs"]

# A file is offered to the formats in this order. The lists for people show the reverse order, the most common first.
FORMATS = (f"{__package__}.control_lora", f"{__package__}.xlabs", f"{__package__}.bare", f"{__package__}.mlx",
           f"{__package__}.diffusers", f"{__package__}.comfyui", f"{__package__}.kohya",
           f"{__package__}.peft")  # fmt: skip


def abouts() -> tuple[About, ...]:
    """Return what is known of every format, the most common first."""
    return tuple(_about(package) for package in reversed(FORMATS))


def about(name: str, *, written: bool = False) -> About:
    """Return what is known of the format of a name.

    Parameters
    ----------
    name : str
        Name of the format.
    written : bool, default=False
        Whether only formats that can be written count.

    Raises
    ------
    ValueError
        If there is no such format. The message names those there are.
    """
    return _about(_package(name, written=written))


def codecs() -> tuple[Codec, ...]:
    """Return the codec of every format, in the order in which a file is offered to them."""
    return tuple(_codec(package) for package in FORMATS)


def codec(name: str, *, written: bool = False) -> Codec:
    """Return the codec of the format of a name. The parameters and the error are those of :func:`about`."""
    return _codec(_package(name, written=written))


def _package(name: str, *, written: bool) -> str:
    known = {_about(package).name: package for package in FORMATS if _about(package).layouts or not written}
    if name not in known:
        raise ValueError(f"format must be one of {', '.join(map(repr, known))}, got {name!r}")
    return known[name]


@cache
def _about(package: str) -> About:
    found: About = import_module(f"{package}.about").ABOUT
    return found


@cache
def _codec(package: str) -> Codec:
    found: Codec = import_module(f"{package}.codec").CODEC
    return found
