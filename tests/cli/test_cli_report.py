"""``lorakit report``, and ``--report`` of merge and prune."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorakit import LegoMerger, SVDPruner, load_adapters, report


@pytest.fixture
def merged(lorakit_, tasks, out):
    """A merge by LEGO, in the folder ``out``."""
    lorakit_("merge", *tasks, "-o", out, "-k", 6, "--method", "lego", "--scale", "1.0")
    return out


def expected(tasks):
    adapters = load_adapters(tasks)
    return report(adapters, LegoMerger(k=6, random_state=0).fit(adapters)).html


def test_of_a_set(lorakit_, tasks, tmp_path):
    page = tmp_path / "set.html"
    result = lorakit_("report", *tasks, "-o", page)
    assert page.read_text() == report(load_adapters(tasks)).html
    assert (result.stdout, result.stderr) == (f"wrote {page}\n", "")


@pytest.mark.parametrize("how", ["merge --report", "sources", "search", "beside", "here"])
def test_of_a_merge(lorakit_, tasks, tmp_path, out, monkeypatch, how):
    command = ["merge", *tasks, "-o", out, "-k", 6, "--method", "lego", "--scale", "1.0"]
    page = tmp_path / "out.report.html"
    if how == "merge --report":
        assert f"wrote {page}" in lorakit_(*command, "--report").stdout
    else:
        lorakit_(*command)
        options = {"sources": ["--sources", *reversed(tasks)], "search": ["--search", Path(tasks[0]).parent]}
        if how == "beside":
            for task in tasks:
                shutil.copytree(task, tmp_path / Path(task).name)
        if how == "here":
            monkeypatch.chdir(Path(tasks[0]).parent)
        lorakit_("report", out, *options.get(how, ()), "-o", page)
    assert page.read_text() == expected(tasks)


def test_sources_that_are_not_there(lorakit_, merged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = lorakit_("report", merged, "-o", "page.html")
    assert "were not found" in result.stderr
    assert "task1" in Path("page.html").read_text()


def test_a_source_that_has_changed_is_not_taken_by_its_name(lorakit_, merged, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task, other in zip(tasks, [tasks[1], tasks[1], tasks[2]], strict=True):
        shutil.copytree(other, tmp_path / Path(task).name)
    assert "were not found" in lorakit_("report", merged, "-o", "page.html").stderr
    result = lorakit_("report", merged, "-o", "given.html", "--sources", "task0", "task1", "task2")
    assert "is not the one that the record names" in result.stderr


def test_of_a_prune(lorakit_, tasks, tmp_path):
    small = tmp_path / "small"
    lorakit_("prune", *tasks, "-o", small, "-k", 3, "--report")
    pruned = [small / Path(task).name for task in tasks]
    lorakit_("report", *pruned, "--sources", *reversed(tasks), "-o", tmp_path / "later.html")
    adapters = load_adapters(tasks)
    html = report(adapters, SVDPruner(k=3).fit_transform(adapters)).html
    assert (tmp_path / "small.report.html").read_text() == (tmp_path / "later.html").read_text() == html


def test_json(lorakit_json, tasks, out, tmp_path):
    found = lorakit_json("merge", *tasks, "-o", out, "-k", 6, "--report")
    assert found["report"] == f"{out}.report.html"
    assert lorakit_json("merge", *tasks, "-o", tmp_path / "other", "-k", 6)["report"] is None
    assert lorakit_json("report", *tasks, "-o", tmp_path / "set.html")["title"] == "task0, task1 and task2"


def test_a_page_that_is_there_is_not_replaced(lorakit_, tasks, out, tmp_path):
    page = tmp_path / "out.report.html"
    page.write_text("mine")
    result = lorakit_("merge", *tasks, "-o", out, "--report", code=2)
    assert "exists; pass --overwrite" in result.stderr
    assert not out.exists()  # refused before any work is done
    assert "exists; pass --overwrite" in lorakit_("report", *tasks, "-o", page, code=2).stderr
    assert page.read_text() == "mine"
    lorakit_("merge", *tasks, "-o", out, "--report", "--overwrite")
    assert page.read_text().startswith("<!doctype html>")


def test_a_dry_run_writes_no_page(lorakit_, tasks, out, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = lorakit_("merge", *tasks, "-o", out, "-k", 6, "--report", "--dry-run")
    assert f"would write {out}.report.html" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_usage(lorakit_, tasks, merged, tmp_path):
    page = tmp_path / "page.html"
    assert "expected .html or .htm" in lorakit_("report", *tasks, "-o", tmp_path / "page.pdf", code=2).stderr
    assert "has no record" in lorakit_("report", tasks[0], "-o", page, "--sources", tasks[1], code=2).stderr
    assert "is not among those given" in lorakit_("report", merged, "-o", page, "--sources", tasks[0], code=2).stderr
    assert not page.exists()


def test_the_page_describes_the_result_that_replaced_an_input(lorakit_, tasks, tmp_path):
    lorakit_("merge", *tasks, "-o", tasks[0], "-k", 6, "--overwrite", "--report")
    page = Path(f"{tasks[0]}.report.html").read_text()
    assert "Merge of task0, task1 and task2" in page
    assert "not known" not in page  # the hash of the input that is gone
