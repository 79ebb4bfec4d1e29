"""Merges that a search asks for again and again are made once, by all of its processes and by later ones."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from tiny_tasks import (
    CountedLoader,
    CountedMerger,
    forward,
    lines,
    load_tiny,
    tiny_adapters,
    tiny_tasks,
)

import lorakit
from lorakit import (
    AdapterClassifier,
    AdapterSet,
    AllAdapters,
    LegoMerger,
    LegoPruner,
    MultiTaskScorer,
    RankBudget,
    SVDMerger,
    load_adapters,
)
from lorakit.testing import make_adapters

ADAPTERS = tiny_adapters()
TASKS = tiny_tasks()
INPUTS, Y = TASKS["task0"]
REAL = ("icd10", "wn_pos")


SCRIPT = """
import json, sys
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from tiny_tasks import *
from test_merging_once import hashes
from lorakit import AdapterClassifier, AllAdapters, LegoPruner, MultiTaskScorer, SVDMerger
folder, *paths = sys.argv[1:]
inputs, y = tiny_tasks()["task0"]
merger = CountedMerger(k=3, log=f"{folder}/merges")
model = AdapterClassifier(load_tiny, tiny_adapters(), merger, forward, memory=f"{folder}/cache")
score = model.fit(inputs, y).score(inputs, y)

steps = [("count", CountedPruner(k=2, log=f"{folder}/prunings")), ("prune", LegoPruner(k=1, random_state=0))]
scoring = MultiTaskScorer(load_tiny, tiny_tasks(), forward)
pipeline = Pipeline([*steps, ("merge", SVDMerger())], memory=f"{folder}/pipeline")
search = GridSearchCV(pipeline, {"merge__k": [1, 2, 3]}, scoring=scoring, refit="mean", cv=AllAdapters())
means = search.fit(tiny_adapters()).cv_results_["mean_test_mean"].tolist()
print(json.dumps({"score": score, "means": means, "hashes": hashes(paths)}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, real_adapter_paths):
    """What two processes print, one after the other, and what the first left in the folder that they share."""
    folder = tmp_path_factory.mktemp("runs")
    search_path = os.pathsep.join([str(Path(lorakit.__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, "-c", SCRIPT, folder, *(real_adapter_paths[name] for name in REAL)]
    printed, counts = [], []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": search_path, "PYTHONHASHSEED": seed}
        run = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=1500)
        assert run.returncode == 0, run.stderr
        printed.append(json.loads(run.stdout))
        counts.append({name: lines(folder / name) for name in ("merges", "prunings")})
        counts[-1]["pruned sets"] = len(list((folder / "pipeline").rglob("output.pkl")))
    return folder, printed, counts


def classifier(log, memory, **options):
    return AdapterClassifier(load_tiny, ADAPTERS, CountedMerger(log=log), forward, memory=memory, **options)


class TestClassifier:
    @pytest.mark.parametrize("kind", [str, Path, joblib.Memory])
    def test_folds_share_merges(self, tmp_path, kind):
        log = tmp_path / "merges"
        memory = kind(tmp_path / "cache", verbose=0) if kind is joblib.Memory else kind(tmp_path / "cache")
        grid = {"merger__k": [1, 2, 4]}
        search = GridSearchCV(classifier(log, memory), grid, cv=StratifiedKFold(4)).fit(INPUTS, Y)
        assert lines(log) == 3  # not 3 x 4 folds, and one for the best
        plain = GridSearchCV(classifier(log, None), grid, cv=StratifiedKFold(4)).fit(INPUTS, Y)
        assert lines(log) == 3 + 13
        np.testing.assert_array_equal(plain.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"])
        assert not hasattr(search.estimator.merger, "merged_")

    def test_what_makes_another_merge(self, tmp_path):
        log, memory = tmp_path / "merges", tmp_path / "cache"
        fitted = classifier(log, memory).fit(INPUTS, Y)
        classifier(log, memory).fit(INPUTS[:50], Y[:50])  # other inputs do not
        assert lines(log) == 1
        classifier(log, memory).set_params(merger__k=1).fit(INPUTS, Y)
        classifier(log, memory).set_params(adapters=ADAPTERS[[0, 1]]).fit(INPUTS, Y)
        changed = ADAPTERS[0].renamed("another")
        classifier(log, memory).set_params(adapters=[changed, *ADAPTERS[1:]]).fit(INPUTS, Y)
        assert lines(log) == 4
        again = classifier(log, memory).fit(INPUTS, Y)
        assert lines(log) == 4
        for module, (a, b) in again.merged_.items():
            assert torch.equal(a, fitted.merged_[module].A)
            assert torch.equal(b, fitted.merged_[module].B)

    def test_folds_that_start_together_wait_for_one_merge(self, tmp_path):
        log = tmp_path / "merges"
        with joblib.parallel_config("threading", n_jobs=4):
            found = cross_val_score(classifier(log, tmp_path / "cache"), INPUTS, Y, cv=StratifiedKFold(4))
        assert lines(log) == 1
        plain = cross_val_score(classifier(log, None), INPUTS, Y, cv=StratifiedKFold(4))
        np.testing.assert_array_equal(found, plain)

    @pytest.mark.slow
    def test_processes_share_merges_and_load_the_model_once(self, tmp_path):
        merges, loads, memory = (tmp_path / name for name in ("merges", "loads", "cache"))
        candidates = classifier(merges, memory).set_params(base_model=CountedLoader(loads))
        search = GridSearchCV(candidates, {"merger__k": [1, 2, 3, 4]}, cv=StratifiedKFold(4), refit=False, n_jobs=2)
        with joblib.parallel_config("loky"):
            search.fit(INPUTS, Y)
        workers = set(loads.read_text().split())
        assert 1 <= len(workers) <= 2
        assert str(os.getpid()) not in workers  # other processes did it
        assert lines(loads) == len(workers)
        assert lines(merges) == 4  # though folds of one candidate start at the same time
        expected = GridSearchCV(classifier(merges, None), {"merger__k": [1, 2, 3, 4]}, cv=StratifiedKFold(4))
        expected.fit(INPUTS, Y)
        found = [search.cv_results_[f"split{i}_test_score"] for i in range(4)]
        np.testing.assert_array_equal(found, [expected.cv_results_[f"split{i}_test_score"] for i in range(4)])

        scoring = MultiTaskScorer(CountedLoader(loads), TASKS, forward)
        before = lines(loads)
        over_k = GridSearchCV(SVDMerger(), {"k": [1, 2, 3, 4]}, scoring=scoring, refit="mean", cv=AllAdapters())
        with joblib.parallel_config("loky", n_jobs=2):
            over_k.fit(ADAPTERS)
        assert lines(loads) - before <= 2
        assert over_k.best_score_ == pytest.approx(scoring(over_k)["mean"])

    @pytest.mark.slow
    def test_a_later_process_finds_the_merges(self, runs):
        folder, printed, counts = runs
        assert [count["merges"] for count in counts] == [1, 1]
        assert printed[0]["score"] == printed[1]["score"]
        here = classifier(f"{folder}/merges", folder / "cache").set_params(merger__k=3).fit(INPUTS, Y)
        assert lines(folder / "merges") == 1
        assert here.score(INPUTS, Y) == printed[0]["score"]

    def test_without_file_locks(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
        log = tmp_path / "merges"
        cross_val_score(classifier(log, tmp_path / "cache"), INPUTS, Y, cv=3)
        assert lines(log) == 1

    def test_a_memory_that_keeps_nothing(self, tmp_path):
        log = tmp_path / "merges"
        cross_val_score(classifier(log, joblib.Memory(None)), INPUTS, Y, cv=3)
        assert lines(log) == 3


@pytest.mark.slow
def test_pruned_adapters_are_cached_across_processes(runs):
    """``Pipeline(memory=...)``: pruning does not depend on how the merge after it is set."""
    _, printed, counts = runs
    assert counts[0]["prunings"] == 1  # for three candidates, and the best one again
    assert counts[0]["pruned sets"] == 2  # one of each step
    assert counts[1] == counts[0]
    assert printed[0]["means"] == printed[1]["means"]


def hashes(paths):
    """Of sets of adapters of every kind, and of mergers."""
    lazy = load_adapters(paths)
    made = AdapterSet(make_adapters(ranks=(1, 4), n_modules=1, random_state=0))
    half = AdapterSet(make_adapters(ranks=(1, 4), n_modules=1, dtype=torch.bfloat16, random_state=0))
    objects = {
        "lazy": lazy,
        "some of lazy": AdapterSet(a.select(list(a)[:2]).renamed(f"{a.name}2") for a in lazy[[1, 0]]),
        "other module names": AdapterSet(a.rename_modules(lambda m: f"model.{m}") for a in lazy),
        "in memory": made,
        "half": half,
        "pruned": LegoPruner(k=1, random_state=0).transform(made),
        "merged": SVDMerger(k=1).fit_transform(made),
        "merger": LegoMerger(k=RankBudget(mean=3), weights={"b": 1.0, "a": 2.0}, random_state=0),
        "merger with clusterer": LegoMerger(clusterer=AgglomerativeClustering()),
        "pipeline": Pipeline([("prune", LegoPruner(k=2)), ("merge", LegoMerger())]),
    }
    return {name: joblib.hash(thing) for name, thing in objects.items()}


@pytest.mark.slow
def test_what_a_cache_knows_adapters_by_is_the_same_in_every_process(runs, real_adapter_paths):
    _, printed, _ = runs
    here = hashes([str(real_adapter_paths[name]) for name in REAL])
    assert len(set(here.values())) == len(here)
    assert printed[0]["hashes"] == printed[1]["hashes"] == here


def test_adapters_that_came_through_a_pickle_are_known(real_adapter_paths):
    """As they do to a worker process."""
    made = AdapterSet(make_adapters(ranks=(1, 4), random_state=0))
    lazy = load_adapters([real_adapter_paths[name] for name in REAL])
    for adapters in (lazy, made, LegoPruner(k=1, random_state=0).transform(made)):
        assert joblib.hash(pickle.loads(pickle.dumps(adapters))) == joblib.hash(adapters)
