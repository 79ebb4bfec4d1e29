"""Merges that nobody tuned: groups, what is merged, and the sentences."""

import argparse

import beyond_untuned
import numpy as np
import pytest
from adapters import norm
from beyond_untuned import AS_IT_COMES, MATCH, METHODS

from lorakit import AdapterSet, SVDMerger
from lorakit.testing import make_adapters


def test_every_task_is_in_one_group_of_each_size():
    tasks = list("abcdefg")
    assert beyond_untuned.groups_of(tasks, 2) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert beyond_untuned.groups_of(tasks, 4) == [tasks]
    assert beyond_untuned.groups_of(tasks, 7) == [tasks]
    for size in (1, 2, 3, 7, 9):
        assert [task for group in beyond_untuned.groups_of(tasks, size) for task in group] == tasks


def test_groups_are_merged_at_the_rank_and_scale_asked_for(monkeypatch):
    adapters = AdapterSet(make_adapters(4, ranks=4, random_state=0))
    tasks = list(adapters.names)

    def load_tasks(names, seed):
        assert seed == 3
        return AdapterSet(adapter for adapter in adapters if adapter.name in names)

    monkeypatch.setattr(beyond_untuned, "load_tasks", load_tasks)
    monkeypatch.setattr(beyond_untuned, "right_of", lambda merged, names, test: dict.fromkeys(names, (merged, test)))
    found = beyond_untuned.measure(("svd", MATCH, 3, 2), tasks, 3, 10)
    assert list(found) == tasks
    for pair in (adapters[:2], adapters[2:]):
        merged, test = found[pair[0].name]
        assert merged is found[pair[1].name][0]
        assert set(merged.ranks) == {3}
        assert (test.split, test.n) == ("test", 10)
        expected = SVDMerger(k=3, scale="match").fit(pair).merged_
        assert norm(merged) == pytest.approx(norm(expected))
        assert norm(merged) > 1.2 * norm(SVDMerger(k=3).fit(pair).merged_)


def test_every_method_takes_every_rank(monkeypatch):
    adapters = AdapterSet(make_adapters(2, ranks=4, random_state=0))
    monkeypatch.setattr(beyond_untuned, "load_tasks", lambda names, seed: adapters)
    monkeypatch.setattr(beyond_untuned, "right_of", lambda merged, names, test: {"a": merged})
    for what in METHODS:
        merged = beyond_untuned.measure((what, MATCH, 3, 2), adapters.names, 0, 5)["a"]
        assert set(merged.ranks) == {3}, what


def rights(*accuracies):
    return {f"t{i}": np.arange(100) < round(100 * accuracy) for i, accuracy in enumerate(accuracies)}


def test_table_and_sentences():
    results = {}
    for k in (8, 16):
        results["svd", AS_IT_COMES, k, 2] = [rights(0.5, 0.5), rights(0.5, 0.5)]
        results["svd", MATCH, k, 2] = [rights(0.6, 0.8), rights(0.6, 0.8)]
        results["lego", AS_IT_COMES, k, 2] = [rights(0.6, 0.7), rights(0.6, 0.7)]
        results["lego", MATCH, k, 2] = [rights(0.6, 0.6), rights(0.6, 0.6)]
    assert beyond_untuned.ranking(results)[:2] == [("svd", MATCH), ("lego", AS_IT_COMES)]
    points, error = beyond_untuned.ahead(results, ("svd", MATCH), ("lego", AS_IT_COMES))
    assert points == pytest.approx(0.05)
    # ten of a hundred texts of one task of two
    assert error == pytest.approx(np.sqrt(0.09 / 99) / 2)
    text = beyond_untuned.verdict(results)
    assert "svd, match is first, ahead of all others." in text
    assert "5.0 ± 1.5 points ahead of lego, as it comes" in text
    assert "'match' helps 1 of 2 methods, by -5.0 to +20.0 points." in text
    options = argparse.Namespace(seeds=[0, 1], tasks=["t0", "t1"], n_test=100)
    found = beyond_untuned.table(results, rights(0.1, 0.1), [rights(0.9, 0.9)] * 2, options)
    assert [row[:2] for row in found.rows] == [
        ["svd", "match"], ["lego", "as it comes"], ["lego", "match"], ["svd", "as it comes"],
        ["own adapters", ""], ["base model", ""],
    ]  # fmt: skip
    assert found.rows[0][2:] == ["0.700 ± 0.000", "0.700 ± 0.000", "0.700"]
    assert all(len(row) == len(found.titles) for row in found.rows)
