"""The language model's leaderboard: what a measurement is, what is measured once, what the tables say."""

import json

import evaluation
import language_model
import numpy as np
import prompts
import pytest
import torch
from adapters import mean_norm, norm
from entrants import WHOLE, Entrant, data_free
from language_model import SCALES, Bench, marks, matched, units
from prompts import PromptRecipe, own_targets
from tables_language import direct_table, final_table, tables
from tiny_language import TinyLanguage, language_tasks, model, tokenized

from lorakit import Adapter, AdapterSet, LoraFactors, SVDMerger, TSVMerger, applied

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def adapter(name: str, rank: int, modules: tuple[str, ...], seed: int) -> Adapter:
    """Of the tiny language model."""
    generator, net, factors = torch.Generator().manual_seed(seed), model(), {}
    for layer in (0, 1):
        for module in modules:
            d_out, d_in = net.get_submodule(f"model.layers.{layer}.{module}").weight.shape
            a, b = (torch.randn(shape, generator=generator) for shape in ((rank, d_in), (d_out, rank)))
            factors[f"model.layers.{layer}.{module}"] = LoraFactors(a * 0.3, b * 0.3)
    return Adapter(factors, name=name)


@pytest.fixture
def bench(monkeypatch):
    """Two adapters of different ranks and modules, one of a task of answers; a task without an adapter."""
    tokenized(monkeypatch)
    known = language_tasks()
    for cached in (evaluation._base, evaluation._head, evaluation._tokens):
        cached.cache_clear()
    for module in (evaluation, language_model, prompts):
        monkeypatch.setattr(module, "load_task", known.__getitem__)
    attention = ("self_attn.q_proj", "self_attn.v_proj")
    adapters = AdapterSet([adapter("colour", 2, attention, 0), adapter("opposite", 3, (*attention, "mlp.up_proj"), 1)])
    return Bench(adapters, TinyLanguage(), ["other"], n_test=12, n_validation=8)


def test_matched_is_scale_match(bench):
    found = matched(SVDMerger(k=2).fit(bench.adapters).merged_, bench.adapters)
    expected = SVDMerger(k=2, scale="match").fit(bench.adapters).merged_
    assert len(found) == 6
    for module in expected:
        torch.testing.assert_close(found[module].delta(), expected[module].delta(), rtol=1e-4, atol=1e-5)


def test_a_measurement_has_the_chosen_norm_and_every_text(bench):
    found = bench.entry(Entrant("tsv", TSVMerger()), 4, untuned=True)
    assert found["rank"] == 4
    merged = TSVMerger(k=4).fit(bench.adapters).merged_
    assert found["norm"] == pytest.approx(norm(merged) / mean_norm(bench.adapters))
    means = {scale: np.mean(list(of.values())) for scale, of in found["validation"].items()}
    assert {float(scale) for scale in means} <= set(SCALES)
    assert means[f"{found['scale']:g}"] == max(means.values())
    assert {task: len(right) for task, right in found["published"].items()} == {"colour": 12, "opposite": 12}
    assert set(found["matched"]) == {"colour", "opposite", "other"}
    assert set(bench.entry(Entrant("tsv", TSVMerger()), 4, untuned=False)) == {
        "rank",
        "norm",
        "validation",
        "scale",
        "chosen",
        "seconds",
    }


def test_what_is_right_is_what_the_model_says(bench):
    own = bench.references()["own"]
    net, task = model(), language_tasks()["colour"]
    backbone = TinyLanguage()
    head = backbone.head(net, task)
    texts, labels = zip(*task.splits["test"][:12], strict=True)
    with torch.no_grad(), applied(net, bench.adapters["colour"]):
        scores = backbone.scores(net, head, backbone.collate(backbone.encode(task, texts)))
    assert own["colour"] == "".join(
        str(int(y == z)) for y, z in zip(scores.argmax(dim=1).tolist(), labels, strict=True)
    )


def test_a_measurement_is_made_once_for_its_adapters_and_settings(bench):
    calls = []

    def make():
        calls.append(1)
        return {"own": {"colour": "01"}}

    first = bench.once("a", make, 1)
    assert bench.once("a", make, 1) == first
    assert len(calls) == 1
    bench.once("a", make, 2)
    bench.once("b", make, 1)
    Bench(bench.adapters[:1], bench.backbone, ["other"], 12, 8).once("a", make, 1)
    Bench(bench.adapters, bench.backbone, ["other"], 13, 8).once("a", make, 1)
    assert len(calls) == 5


def test_the_methods_are_entrants_and_each_is_measured_at_its_ranks(bench):
    few = [name for name, _, _ in units(bench, ["tsv"])]
    assert few == ["references", f"tsv, {WHOLE}", "PEFT alike"]  # the ranks are 5 in all
    bench.adapters = AdapterSet([adapter("a", 16, ("mlp.up_proj",), 0), adapter("b", 16, ("mlp.up_proj",), 1)])
    names = [name for name, _, _ in units(bench, language_model.METHODS)]
    assert len(set(names)) == len(names)
    assert names[:2] == ["references", "tsv, 16"]
    assert {f"{name}, 16" for name in language_model.METHODS if name != "distilled"} < set(names)
    assert {f"svd, {k}" for k in (8, 32, WHOLE)} < set(names)
    assert set(language_model.METHODS) <= {entrant.name for entrant in data_free()} | {"distilled"}


def test_an_adapter_and_its_permuted_copy(bench):
    found = bench.permuted("colour")
    assert found["svd"] == found["original"]
    assert found["original"]["colour"] == bench.references()["own"]["colour"]
    assert set(found) == {"original", "average", "svd", "lego"}


def test_direct_merges_are_of_adapters_of_one_rank(bench):
    attention = ("self_attn.q_proj",)
    bench.adapters = AdapterSet([adapter("colour", 2, attention, 0), adapter("opposite", 2, attention, 1)])
    assert language_model.groups(bench.adapters) == {"rank 2": ["colour", "opposite"]}
    found = bench.direct(["colour", "opposite"])
    assert set(found) == {f"{what}, {how}" for what in ("direct", "cut", "whole") for how in ("published", "matched")}
    own = {what: {"colour": "111111111111", "opposite": "101111111111"} for what in ("base", "own")}
    assert len(direct_table({"references": own, "direct, rank 2": found}, 12).rows) == 2


def test_the_final_is_on_texts_that_come_after_the_others(bench, monkeypatch):
    monkeypatch.setattr(language_model, "K", 4)
    expected = bench.own_final()["own"]
    bench.test = evaluation.Evaluator("test", language_model.FRESH * 12, bench.backbone)
    whole = bench.references()["own"]
    assert {task: right[12:] for task, right in whole.items()} == expected
    bench.test.n = 12
    found = {"final, own adapters": {"own": dict.fromkeys(bench.tasks, "1" * 24)}}
    for name in ("tsv", "svd"):
        found[f"final, {name}"] = bench.final(Entrant(name, TSVMerger() if name == "tsv" else SVDMerger()), None)
    table = final_table(found)
    assert {row[0] for row in table.rows} == {"tsv", "svd", "own adapters"}
    assert all(len(row) == len(table.titles) for row in table.rows)


def test_peft_refuses_what_has_two_ranks_and_its_cat_is_the_mean(bench):
    pytest.importorskip("peft")
    found = bench.peft_alike()
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert set(found["refused"]) == set(language_model.UNEQUAL)


def test_a_trained_merge_comes_nearer_to_its_teachers(bench):
    merged, about = prompts.trained_merge(
        PromptRecipe(n=20, k=2, epochs=4, learning_rate=2e-2), bench.adapters, TinyLanguage()
    )
    assert max(merged.ranks) == 2
    assert about["loss"][-1] < 0.8 * about["loss"][0]
    json.dumps(about)
    assert bench.distilled(PromptRecipe(n=4, k=2, epochs=1))["matched"].keys() == {"colour", "opposite", "other"}


def test_teachers_say_what_their_own_adapter_says(bench):
    backbone, net = TinyLanguage(), model()
    heads = {name: prompts.head_of(net, backbone, language_tasks()[name]) for name in bench.adapters.names}
    inputs, owners = prompts.inputs_of(3, net, bench.adapters, backbone)
    targets = own_targets(net, bench.adapters, inputs, owners, heads)
    assert owners.count("colour") == 3
    assert owners.count("opposite") > 3  # each beginning of an answer
    i = owners.index("opposite") + 1
    with torch.no_grad(), applied(net, bench.adapters["opposite"]):
        expected = net(input_ids=torch.tensor([inputs[i]])).logits[0, -1]
    torch.testing.assert_close(torch.from_numpy(targets["opposite"][i]), expected, rtol=1e-4, atol=1e-4)
    assert not targets["colour"][i].any()


def test_tables_of_a_partial_run(bench):
    found = {"references": bench.references() | {"measured_in": 1}}
    found["references"]["own"] = {"colour": "111101111111", "opposite": "010111111111"}
    for k in (8, 16):
        found[f"svd, {k}"] = bench.entry(Entrant("svd", SVDMerger()), 3, untuned=k == 16)
    training = {"rank": 2, "targets": None}
    about = {t: {"labels": 3, "training": training, "seconds": 1.0} for t in bench.adapters.names}
    made = {table.name: table for table in tables(found, about, 12, 8)}
    assert [row[0] for row in made["language-model-adapters"].rows] == ["colour", "opposite", "other"]
    methods = made["language-model-methods"]
    assert [row[0] for row in methods.rows] == ["svd", "own adapters", "base model"]
    right = np.mean([[int(mark) for mark in found["svd, 16"]["matched"][t]] for t in bench.adapters.names])
    assert methods.rows[0][2] == f"{right:.3f}"
    assert all(len(row) == len(table.titles) for table in made.values() for row in table.rows)
    (ranks,) = made["language-model-ranks"].rows
    assert ranks[1].endswith(f"({found['svd, 8']['scale']:g})")
    assert len(ranks) == 4  # the method, two ranks, and nothing that is whole
    assert ranks[3] == ""
    assert marks({"a": np.array([True, False])}) == {"a": "10"}
