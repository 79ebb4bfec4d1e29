"""The kinds of adapter that lorakit reads, and what each becomes: for people, in `lorakit inspect` and in the guide."""

from __future__ import annotations

from typing import NamedTuple

from .dora import DORA
from .kinds.adalora import ADALORA
from .kinds.full import FULL
from .kinds.loha import LOHA
from .kinds.lokr import LOKR
from .kinds.miss import BONE, MISS
from .kinds.vera import VERA

__all__ = ["FULL_RANK", "KNOWN_KINDS", "KnownKind", "known_kind"]

FULL_RANK = "the smaller width"
_PEFT = "PEFT"
_MANY = "PEFT, kohya, LyCORIS, ComfyUI, diffusers"


class KnownKind(NamedTuple):
    """A kind of adapter that is read.

    Parameters
    ----------
    name : str
        As ``adapter.provenance.stored_as`` has it.
    update : str
        What its tensors add to a weight W, by their usual names; r is the rank that the file gives.
    rank : str
        The rank of the plain LoRA as which it is read.
    files : str
        Whose files of this kind are read.
    needs : tuple of str, default=()
        What must be given beside the files, one of them: 'base', 'initial'.
    """

    name: str
    update: str
    rank: str
    files: str
    needs: tuple[str, ...] = ()


_DIFFERENCE = "s B A - s0 B0 A0, the difference to its start"

KNOWN_KINDS = (
    KnownKind("LoRA", "s B A", "r", "all formats"),
    KnownKind(LOHA.name, "(w1_a w1_b) * (w2_a w2_b), entry by entry", "r^2", _MANY),
    KnownKind(LOKR.name, "kron(w1, w2)", "rank of w1 times rank of w2", _MANY),
    KnownKind(FULL.name, "diff, a whole matrix or kernel", "its smaller width", "kohya, LyCORIS, ComfyUI"),
    KnownKind(ADALORA.name, "B diag(E) A", "the ranks that training kept", _PEFT),
    KnownKind(VERA.name, "diag(b) B diag(d) A", "r", _PEFT, ("base",)),
    KnownKind(MISS.name, "one block, repeated along the inputs", "r", _PEFT, ("base",)),
    KnownKind(BONE.name, "one block, repeated along the inputs", "r", _PEFT, ("base",)),
    KnownKind("PiSSA", _DIFFERENCE, "2 r", _PEFT, ("base", "initial")),
    KnownKind("OLoRA", _DIFFERENCE, "2 r", _PEFT, ("base", "initial")),
    KnownKind("CorDA", _DIFFERENCE, "2 r", _PEFT, ("initial",)),
    KnownKind("LoRA-GA", _DIFFERENCE, "2 r", _PEFT, ("initial",)),
    KnownKind(DORA, "diag(m / |W + s B A|) (W + s B A) - W", FULL_RANK, f"{_MANY}, MLX", ("base",)),
)


def known_kind(name: str) -> KnownKind:
    """Return what is known of a kind, by its name in ``stored_as``; DoRA may be named with the kind that it is over."""
    return next(kind for kind in KNOWN_KINDS if name == kind.name or name.startswith(f"{kind.name} of "))
