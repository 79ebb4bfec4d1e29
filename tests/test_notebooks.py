"""What notebooks show: tables, estimators with a link to their page, bars."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from sklearn.pipeline import make_pipeline

from lorakit import Adapter, AdapterSet, LegoMerger, SVDMerger, SVDPruner
from lorakit._execution import report_progress
from lorakit.adapters import Provenance
from lorakit.base import _doc_link
from lorakit.metrics import compare_adapters
from lorakit.testing import make_adapters

HOSTILE = "<script>alert(1)</script>\x1b[1A"


@pytest.fixture
def X():
    return AdapterSet(make_adapters(random_state=0))


def test_an_adapter_groups_modules_that_are_alike():
    (alike,) = make_adapters(1, ranks=4, n_modules=3, random_state=0)
    (other,) = make_adapters(1, ranks=2, n_modules=1, d_in=7, random_state=0)
    html = Adapter({**alike, HOSTILE: other["layer.0"]}, name=HOSTILE)._repr_html_()
    assert html.count("<tr>") == 3  # the head, three alike, one other
    assert '<td style="text-align:right">3</td><td style="text-align:right">4</td>' in html
    assert "<script>" not in html
    assert "\x1b" not in html


def test_an_adapter_is_shown_without_being_read():
    (known,) = make_adapters(1, random_state=0)
    reader = SimpleNamespace(infos=known.infos, dtype=known.dtype)  # it has no read()
    html = Adapter.from_reader(reader, name="lazy", provenance=Provenance())._repr_html_()
    assert "float32, 2 modules" in html


def test_a_set_and_a_comparison(X):
    html = X._repr_html_()
    assert html.count('<th scope="row">') == 3
    assert "AdapterSet: 3 adapters, 2 modules" in html
    many = AdapterSet([X[0].renamed(f"a{i}") for i in range(250)])._repr_html_()
    assert many.count('<th scope="row">') == 200
    assert "the first 200" in many
    found = compare_adapters(X[1], X[2])
    assert f"{found.cosine:.4g}" in found._repr_html_()
    assert f"{found.relative_error:.4g}" in found._repr_html_()


def test_estimators_link_to_their_page(X, monkeypatch):
    monkeypatch.setattr(_doc_link, "documentation_url", lambda: "https://docs.example/lorakit")
    for shown in (SVDMerger(k=4), SVDMerger(k=4).fit(X), make_pipeline(SVDPruner(k=2), SVDMerger())):
        html = shown._repr_html_()
        assert "https://docs.example/lorakit/generated/lorakit.SVDMerger.html" in html

    class Own(SVDMerger):
        """Somebody else's, of which there is no page."""

    Own.__module__ = "theirs"
    assert Own()._get_doc_link() == ""
    monkeypatch.setattr(_doc_link, "documentation_url", lambda: None)
    assert SVDMerger()._get_doc_link() == ""
    assert "scikit-learn.org/stable/modules/generated/lorakit" not in SVDMerger()._repr_html_()


def test_the_address_comes_from_the_package(monkeypatch):
    known = SimpleNamespace(get_all=lambda key: ["Source, https://a.example", "Documentation, https://b.example/"])
    monkeypatch.setattr(_doc_link, "metadata", lambda name: known)
    _doc_link.documentation_url.cache_clear()
    try:
        assert _doc_link.doc_link(LegoMerger) == "https://b.example/generated/lorakit.LegoMerger.html"
    finally:
        _doc_link.documentation_url.cache_clear()


def test_a_bar_on_a_terminal(X, capsys):
    SVDMerger(k=4).fit(X)
    assert capsys.readouterr().err == ""
    SVDMerger(k=4, verbose=1).fit(X)
    shown = capsys.readouterr()
    assert "modules" in shown.err
    assert "2/2" in shown.err
    assert shown.out == ""
    seen = []
    with report_progress(lambda *done: seen.append(done)):  # somebody watches already
        SVDMerger(k=4, verbose=1).fit(X)
    assert (seen, capsys.readouterr().err) == ([(1, 2), (2, 2)], "")


def test_a_bar_in_a_notebook(monkeypatch, capsys):
    shown, updates = [], []

    class Handle:
        def update(self, html):
            updates.append(html)

    def display(html, display_id):
        shown.append(html)
        return Handle()

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    SVDMerger(k=1, verbose=1).fit(make_adapters(2, ranks=2, d_in=3, d_out=3, n_modules=500, random_state=0))
    assert len(shown) == 1  # one bar, which is changed in place
    assert 90 <= len(updates) <= 101
    assert '<progress value="500" max="500"></progress> 500 of 500' in updates[-1]
    assert capsys.readouterr().err == ""
