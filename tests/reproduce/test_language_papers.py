"""The papers' tables on a language model: what is merged, and what the tables say."""

import language_papers
import numpy as np
import pytest
from language_papers import groups, units
from language_runs import Run
from standings import accuracies
from tables_language import right_in
from tables_papers import tables
from tiny_bench import tiny_bench

from lorakit import LegoPruner, SVDMerger, SVDPruner
from lorakit.metrics import relative_error

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
HOW = ("published", "matched")


@pytest.fixture
def bench(monkeypatch):
    """Two adapters of one rank, and a task without an adapter."""
    return tiny_bench(monkeypatch, ranks=(4, 4))


def test_an_adapter_and_its_permuted_copy(bench):
    found = language_papers.of_permuted(bench, "colour")
    assert found["svd"] == found["original"]
    assert found["original"]["colour"] == bench.references()["own"]["colour"]
    assert set(found) == {"original", "average", "svd", "lego"}


def test_merges_of_one_rank(bench, monkeypatch):
    assert groups(bench.adapters) == {"rank 4": ["colour", "opposite"]}
    found = language_papers.direct(bench, ["colour", "opposite"])
    assert set(found) == {f"{what}, {how}" for what in ("direct", "cut", "whole") for how in HOW}
    pair = language_papers.of_pair(bench, ["colour", "opposite"])
    assert pair["SVD, 4, published"] == found["cut, published"]
    assert pair["SVD, 8, matched"] == found["whole, matched"]
    assert groups(tiny_bench(monkeypatch).adapters) == {}


def test_what_is_pruned_is_what_the_pruners_leave(bench):
    found = language_papers.pruned(bench, 2)
    adapter = bench.adapters["opposite"]
    for what, pruner in (("SVD", SVDPruner(k=2)), ("LEGO", LegoPruner(k=2, random_state=0))):
        left = pruner.fit_transform([adapter])[0]
        assert found["errors"][what]["opposite"] == pytest.approx(relative_error(left, adapter))
        labels = bench.test.labels("opposite")
        right = bench.test.scores(left, "opposite").argmax(axis=1) == labels
        assert found[what]["opposite"] == "".join(str(int(mark)) for mark in right)
    assert found["errors"]["SVD"]["colour"] <= min(found["errors"][what]["colour"] for what in found["errors"])


def test_distances_are_those_of_the_updates(bench):
    found = language_papers.distances(bench)
    adapter, mean = bench.adapters["opposite"], SVDMerger(8).fit(bench.adapters).merged_
    left = SVDPruner(k=2).fit_transform([adapter])[0]
    assert found["pruned"]["1/2"]["SVD"][1] == pytest.approx(relative_error(left, adapter))
    assert all(min(of.values()) == of["SVD"] for of in found["pruned"].values())
    cut = SVDMerger(4).fit(bench.adapters).merged_
    whole = found["merged"]["2 of rank 4"]
    assert whole["cut to 4"] == pytest.approx(relative_error(cut, mean), rel=1e-3)
    assert whole["cut to 8"] == pytest.approx(0, abs=1e-5)
    assert whole["direct merge"] > whole["cut to 4"]  # equation 7: a direct merge has that rank
    assert [name for name, _, _ in language_papers.wanted(["dist"], bench)] == ["references", "distances"]


def test_a_cut_keeps_the_factor_of_the_exact_mean(bench):
    found = language_papers.cut_of_all(bench, [2, 8, 32])
    assert set(found) == {"exact", "2", "8", "errors"}  # the ranks are 8 in all
    assert found["8"] == found["exact"]
    assert found["errors"]["8"] == pytest.approx(0, abs=1e-5)
    exact, merged = (SVDMerger(k).fit(bench.adapters).merged_ for k in (8, 2))
    assert found["errors"]["2"] == pytest.approx(relative_error(merged, exact), rel=1e-3)


def test_the_line_between_two_adapters_ends_in_them(bench):
    from svd_figure1 import cross_entropy

    bench.tasks = ["colour"]
    found = language_papers.line(bench, ("colour", "opposite"))
    ends = [cross_entropy(bench.adapters[name], ("colour", "opposite"), bench.test) for name in ("colour", "opposite")]
    for space in ("updates", "factors"):
        assert found[space]["losses"][0] == pytest.approx(ends[0])
        assert found[space]["losses"][-1] == pytest.approx(ends[1])
    assert found["updates"]["losses"][2] != pytest.approx(found["factors"]["losses"][2])


def test_every_table_of_two_seeds(bench, monkeypatch):
    monkeypatch.setattr(language_papers, "LINES", (("colour", "opposite"),))
    monkeypatch.setattr(language_papers, "ORDER", ("colour", "opposite"))
    monkeypatch.setattr(language_papers, "RANKS", (4, 8))
    monkeypatch.setattr(language_papers, "K", 4)
    found = {}
    for seed in (0, 1):
        one = tiny_bench(monkeypatch, ranks=(4, 4), seed=seed)
        found[seed] = {name: make() for name, make, _ in units(one)}
        found[seed]["references"]["own"] = {"colour": "111111111111", "opposite": "101111111111"}
    assert len({name.split(",")[0] for name in found[0]}) == 12
    run = Run(found, {0: {}, 1: {}}, 12, 8)
    made = {table.name: table for table in tables(run)}
    assert len(made) == 10
    assert all(len(row) == len(table.titles) for table in made.values() for row in table.rows)
    right = [right_in(found[seed]["pruned, 1/2"]["LEGO"], bench.tasks) for seed in (0, 1)]
    mean, spread = np.mean(accuracies(right)), np.std(accuracies(right), ddof=1)
    assert made["language-model-pruning"].rows[0][2] == f"{mean:.3f} ± {spread:.3f}"
    assert made["language-model-mixed"].note == ""  # nothing is refused of one rank
    rows = {tuple(row[:2]): row for row in made["language-model-lego-svd"].rows}
    assert rows["pairs, their rank", "published"][3] == made["language-model-lego-svd"].rows[4][3]


def test_part_of_the_measurements_makes_part_of_the_tables(bench):
    found = {"references": bench.references()}
    found["references"]["own"] = {"colour": "111111111111", "opposite": "101111111111"}
    assert tables(Run({0: found}, {0: {}}, 12, 8)) == []
    found["pruned, 1/2"] = language_papers.pruned(bench, 2)
    assert [table.name for table in tables(Run({0: found, 1: {}}, {}, 12, 8))] == ["language-model-pruning"]
