"""The list of formats."""

from __future__ import annotations

from . import peft
from ._codec import Codec

# Asked in this order; a new format is one file with a Codec, and one entry here.
CODECS: tuple[Codec, ...] = (peft.CODEC,)
