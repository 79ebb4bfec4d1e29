"""The page on agreement: its script on random adapters and on one module of the real ones."""

from __future__ import annotations

from pathlib import Path

import agreement
import pytest

from lorakit.discovery import all_methods

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "agreement.rst"
# What training comes to has none; RegMean++ asks a model for its inputs: tests/merging/test_regmean_plus.py compares it
# with the normal equations of a small model.
NO_FORMULA = {"DistillMerger", "RegMeanPlusMerger"}


@pytest.fixture(scope="module")
def on_random():
    X = agreement.random_set()
    return [*agreement.with_formulas(X), *agreement.with_peft(X), *agreement.with_stored_outputs()]


def test_every_difference_is_round_off(on_random):
    far = [row for row in on_random if not row.difference < 1e-10]
    assert not far


@pytest.mark.slow
def test_on_a_real_module():
    X = agreement.real_set(agreement.MODULES[:1])[:3]
    far = [row for row in (*agreement.with_formulas(X), *agreement.with_peft(X)) if not row.difference < 1e-10]
    assert not far


def test_every_method_is_compared(on_random):
    compared = {row.merger.partition("(")[0] for row in on_random}
    assert compared | NO_FORMULA >= {info.name for info in all_methods("merger")}


def test_the_page_has_every_row(on_random):
    text = PAGE.read_text(encoding="utf-8")
    for row in on_random:
        if not row.source.startswith("PEFT"):  # which need not be installed
            assert f"``{row.merger}``" in text
            assert row.source in text
