"""The tables of the guide that are made from the code name every kind and every family that the code knows."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from lorakit.io.formats import _unsupported
from lorakit.io.formats.dora import DORA
from lorakit.io.formats.kinds.reading import KINDS
from lorakit.io.formats.known_kinds import KNOWN_KINDS, known_kind
from lorakit.io.formats.peft import kinds as of_peft
from lorakit.io.formats.peft import variants
from lorakit.io.formats.registry import codecs
from lorakit.io.names.families import FAMILIES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = spec_from_file_location("tables", ROOT / "docs" / "_extensions" / "tables.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_that_is_read(tables):
    inits = {name for start, name in variants._CHANGED_BASE.items() if start != "loftq"}  # which is refused
    known = {"LoRA", DORA, *inits, *(kind.name for kind in (*KINDS, *of_peft._KINDS.values()))}
    head, *rows = tables.kind_rows()
    assert {row[0] for row in rows} == known
    assert len(rows) == len(known)
    assert {len(row) for row in (head, *rows)} == {5}
    by_name = {row[0]: row for row in rows}
    assert "``base``" in by_name["VeRA"][3]
    for init in inits:
        name = next(start for start, shown in variants._CHANGED_BASE.items() if shown == init)
        assert ("``base``" in by_name[init][3]) == variants._is_known(name, ["base"])
        assert variants._is_known(name, ["initial"])
        assert "``initial``" in by_name[init][3]
    assert known_kind(f"{DORA} of LoHa").name == DORA


def test_every_kind_that_is_refused(tables):
    _, *rows = tables.refused_rows()
    shown = " ".join(row[0] for row in rows)
    for name, _, _ in variants.REFUSED:
        assert f"``{name}``" in shown
    read = {part for kind in (*KINDS, *of_peft._KINDS.values()) for part in kind.parts} | {"dora_scale"}
    for mark in (*_unsupported._PARTS, *_unsupported._ENDS):
        if not read & {mark} and f"``{mark}``" not in shown:  # listed, or a mark of a kind that is read
            kind = _unsupported._KINDS[{**_unsupported._PARTS, **_unsupported._ENDS}[mark]]
            assert any(known.name in kind.text for known in KNOWN_KINDS), mark


def test_every_family(tables):
    _, *rows = tables.family_rows()
    assert [row[:2] for row in rows] == [(f"``{family.name}``", family.title) for family in FAMILIES]
    formats = {codec.about.name for codec in codecs() if codec.spellings}
    for family, row in zip(FAMILIES, rows, strict=True):
        assert set(row[2].split(", ")) <= formats
        assert ("xlabs" in row[2]) == ("xlabs" in family.others)
        for fused in (each for each in family.rows["original"] if len(each.parts) > 1):
            assert f"``{fused.name.replace('#.', '')}``" in row[4]


def test_the_guide_includes_them(tables):
    page = (ROOT / "docs" / "user_guide" / "formats.rst").read_text(encoding="utf-8")
    for name in ("kinds", "refused", "families"):
        assert f"/generated/{name}.inc" in page
    shown = tables.list_table([("a", "b"), ("1", "2")])
    assert shown.splitlines()[3:] == ["   * - a", "     - b", "   * - 1", "     - 2"]
