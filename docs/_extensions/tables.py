"""Tables of the guide that are made from the code, so that they cannot fall behind it."""

from collections.abc import Iterable, Sequence


def list_table(rows: Iterable[Sequence[str]], widths: str = "") -> str:
    """Write rows, the first of them the heads, as a table of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", *([f"   :widths: {widths}"] if widths else []), ""]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def kind_rows() -> list[tuple[str, ...]]:
    """The kinds of adapter that are read."""
    from lorakit.io.formats.known_kinds import FULL_RANK, KNOWN_KINDS

    rows = [("kind", "update of W", "rank as a LoRA", "read", "files")]
    for kind in KNOWN_KINDS:
        exactly = "as a change of full rank" if kind.rank == FULL_RANK else "exactly"
        needed = f", with {' or '.join(f'``{name}``' for name in kind.needs)}" if kind.needs else ""
        rank = kind.rank.replace("^2", r"\ :sup:`2`")
        rows.append((kind.name, f"``{kind.update}``", rank, f"{exactly}{needed}", kind.files))
    return rows


def refused_rows() -> list[tuple[str, ...]]:
    """The kinds of adapter that are refused, and what shows them: a part of a key, or a field of the config."""
    from lorakit.io.formats._unsupported import _KINDS
    from lorakit.io.formats.peft.variants import REFUSED

    rows = [("shown by", "why it is refused", "what to do")]
    for kind in _KINDS:
        if "which is read" in kind.text or "which are read" in kind.text or "base" in _settings(kind.remedy):
            continue  # read, elsewhere or with the base
        marks = " ".join(f"``{mark}``" for mark in (*kind.names.split(), *kind.ends.split()))
        rows.append((marks, kind.text, _spoken(kind.remedy)))
    rows += [(f"``{name}`` in PEFT's config", why, _spoken(remedy)) for name, why, remedy in REFUSED]
    rows.append(("``init_lora_weights='loftq'``", "LoftQ quantizes the base", "merge it into its base model with PEFT"))
    return rows


def family_rows() -> list[tuple[str, ...]]:
    """The families of diffusion transformers, from the tables of their names."""
    from lorakit.io.formats.registry import codecs
    from lorakit.io.names.families import FAMILIES

    rows = [("``family``", "models", "formats", "layers", "layers that are split and joined")]
    for family in FAMILIES:
        original = family.rows["original"]
        fused = [row.name.replace("#.", "").replace("#", "") for row in original if len(row.parts) > 1]
        shown = ", ".join(f"``{name}``" for name in dict.fromkeys(fused)) or "none"
        formats = [codec.about.name for codec in codecs() if any(s.code in family.rows for s in codec.spellings)]
        rows.append((f"``{family.name}``", family.title, ", ".join(reversed(formats)), str(len(original)), shown))
    return rows


def _settings(remedy: object) -> list[str]:
    return [] if isinstance(remedy, str) else [part.name for part in remedy if not isinstance(part, str)]


def _spoken(remedy: object) -> str:
    return remedy if isinstance(remedy, str) else "".join(map(str, remedy))
