"""Scores are the base model's with the update in its weights, measured once, under a key that content decides."""

import evaluation
import numpy as np
import pytest
import torch
from adapters import at_norm, best_scale, changed, joined, norm, permuted, scaled
from evaluation import Evaluator, update_hash, updated
from sklearn.model_selection import GridSearchCV
from tiny import Tiny, tiny_task

from lorakit import Adapter, AdapterSet, AllAdapters, ConcatMerger, LoraFactors, SVDMerger, applied

TINY = Tiny()


@pytest.fixture(autouse=True)
def known_tasks(monkeypatch):
    known = {"first": tiny_task(), "second": tiny_task("second", 1)}
    monkeypatch.setattr(evaluation, "load_task", known.__getitem__)


def adapter(seed: int = 0, rank: int = 2) -> Adapter:
    """An adapter of the tiny model."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LoraFactors(torch.randn(rank, 8, generator=generator), torch.randn(d_out, rank, generator=generator))
        for name, d_out in (("dense", 8), ("query", 6))
    }
    return Adapter(modules, name=f"seed {seed}")


@pytest.mark.parametrize("rank", [2, 8])
def test_the_update_is_in_the_weights_and_gone_afterwards(rank):
    model = TINY.load()
    before = {name: p.clone() for name, p in model.named_parameters()}
    batch = TINY.collate([[1, 2], [3, 4, 5]])
    with applied(model, adapter(rank=rank)):
        expected = model(**batch)
    with updated(model, adapter(rank=rank)):
        torch.testing.assert_close(model(**batch), expected)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_come_back_after_an_error():
    model = TINY.load()
    before = model.dense.weight.clone()
    with pytest.raises(RuntimeError, match="inside"), updated(model, adapter()):
        raise RuntimeError("inside")
    assert torch.equal(model.dense.weight, before)


def test_scores_are_measured_once():
    test = Evaluator("test", 30, TINY)
    first = test.scores(adapter(), "first")
    assert first.shape == (30, 3)
    assert (test.measured, test.remembered) == (1, 0)
    np.testing.assert_array_equal(Evaluator("test", 30, TINY).scores(adapter(), "first"), first)
    test.scores(adapter(), "first")
    assert (test.measured, test.remembered) == (1, 1)


@pytest.mark.parametrize("what", ["adapter", "task", "split", "n", "base"])
def test_other_content_is_measured_anew(what):
    Evaluator("test", 30, TINY).scores(adapter(), "first")
    test = Evaluator("validation" if what == "split" else "test", 29 if what == "n" else 30, TINY)
    given = {"adapter": scaled(adapter(), 1.0001), "base": None}.get(what, adapter())
    test.scores(given, "second" if what == "task" else "first")
    assert (test.measured, test.remembered) == (1, 0)


def test_accuracy_is_the_share_of_right_labels():
    test = Evaluator("test", 30, TINY)
    right = test.scores(None, "first").argmax(axis=1) == test.labels("first")
    assert test.accuracy(None, "first") == right.mean()
    assert test.mean(None, ["first", "second"]) == np.mean([test.accuracy(None, t) for t in ("first", "second")])


def test_batching_by_length_keeps_the_order():
    test = Evaluator("test", 60, TINY)
    whole = test.scores(adapter(), "first")
    for i in (0, 17, 59):
        np.testing.assert_allclose(test.scores(adapter(), "first", [i])[0], whole[i], rtol=0.05, atol=0.1)  # bfloat16


def test_routing_gives_each_text_its_adapter():
    test = Evaluator("test", 30, TINY)
    choice = np.arange(30) % 2
    scores = [test.scores(a, "first").argmax(axis=1) for a in (adapter(), None)]
    expected = np.mean([scores[c][i] == test.labels("first")[i] for i, c in enumerate(choice)])
    assert test.routed([adapter(), None], choice, "first") == pytest.approx(expected, abs=1 / 30)
    assert test.routed([None], np.zeros(30, int), "first") == test.accuracy(None, "first")
    with pytest.raises(ValueError, match="for each of 30 texts"):
        test.routed([None], [0, 0], "first")


def test_a_search_over_mergers_takes_the_scorer():
    adapters = AdapterSet([adapter(0), adapter(1)])
    test = Evaluator("validation", 30, TINY)
    search = GridSearchCV(SVDMerger(), {"k": [1, 4]}, scoring=test.scorer(["first"]), cv=AllAdapters()).fit(adapters)
    merged = SVDMerger(4).fit(adapters).merged_
    assert search.cv_results_["mean_test_score"][1] == test.accuracy(merged, "first")


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"split must be one of .* got 'dev'"):
        Evaluator("dev")
    with pytest.raises(ValueError, match="n must be 1 or more; got 0"):
        Evaluator(n=0)


def test_hashes_know_numbers_and_nothing_else():
    assert update_hash(None) == "base"
    assert update_hash(adapter()) == update_hash(adapter().renamed("other"))
    assert update_hash(adapter()) != update_hash(adapter(1))
    swapped = Adapter({module: adapter()[module] for module in ("query", "dense")}, name="order")
    assert update_hash(swapped) == update_hash(adapter())


def test_permuted_adapters_do_the_same():
    other = permuted(adapter(rank=5), np.random.RandomState(0))
    for module, factors in adapter(rank=5).items():
        torch.testing.assert_close(other[module].delta(), factors.delta())
        assert not torch.equal(other[module].A, factors.A)


def test_joined_adapters_add_up():
    total = joined(adapter(0), adapter(1, rank=1), name="both")
    for module, factors in total.items():
        torch.testing.assert_close(factors.delta(), adapter(0)[module].delta() + adapter(1, rank=1)[module].delta())


def test_norms():
    flat = torch.cat([factors.delta().flatten() for factors in adapter().values()])
    assert norm(adapter()) == pytest.approx(flat.norm().item(), rel=1e-5)
    adapters = [adapter(0), adapter(1)]
    matched = at_norm(adapter(2), adapters, 1.5)
    assert norm(matched) == pytest.approx(1.5 * np.mean([norm(a) for a in adapters]), rel=1e-5)
    zero = changed(adapter(), lambda factors: factors.scaled(0))
    assert norm(at_norm(zero, adapters, 1.5)) == 0


def test_scales_are_chosen_on_validation_texts():
    adapters = AdapterSet([adapter(0), adapter(1)])
    merged = ConcatMerger().fit(adapters).merged_
    validation = Evaluator("validation", 60, TINY)
    best = best_scale(merged, adapters, validation, ["first"], scales=[0.1, 1.0, 3.0])
    scores = {s: validation.accuracy(at_norm(merged, adapters, s), "first") for s in (0.1, 1.0, 3.0)}
    assert scores[best] == max(scores.values())
    with pytest.raises(ValueError, match="chosen on the validation split"):
        best_scale(merged, adapters, Evaluator("test", 60, TINY), ["first"])


def test_several_tasks_at_once_are_the_same_as_one_by_one(monkeypatch):
    updates = []

    def counted(model, adapter):
        updates.append(adapter)
        return updated(model, adapter)

    test, one = Evaluator("test", 30, TINY), adapter()
    expected = {task: test.scores(one, task) for task in ("first", "second")}
    evaluation.cache_folder("scores").rename(evaluation.cache_folder("elsewhere") / "scores")
    monkeypatch.setattr(evaluation, "updated", counted)
    found = test.scores_by_task(one, {"first": None, "second": [3, 1]})
    assert len(updates) == 1
    np.testing.assert_array_equal(found["first"], expected["first"])
    np.testing.assert_allclose(found["second"], expected["second"][[3, 1]], rtol=0.05, atol=0.1)  # bfloat16
    test.scores_by_task(one, {"second": [3, 1], "first": None})
    assert len(updates) == 1
    assert list(test.accuracies(adapter(1), ["second"])) == ["second"]
    assert list(test.accuracies(adapter(1), ["first", "second"])) == ["first", "second"]  # what is remembered not first
    assert test.accuracies(one, ["first"]) == {"first": test.accuracy(one, "first")}
