"""The language model's leaderboard: what a measurement is, what is measured once, what the tables say."""

import json

import evaluation
import language_bench
import language_model
import numpy as np
import prompts
import pytest
import torch
from adapters import mean_norm, norm
from entrants import WHOLE, Entrant, data_free
from language_bench import SCALES, Bench, matched
from language_model import units
from language_runs import Run
from prompts import TRAINED, PromptRecipe, own_targets
from tables_language import final_table, joined, tables
from tiny_bench import adapter, tiny_bench
from tiny_language import TinyLanguage, language_tasks, model

from lorakit import AdapterSet, SVDMerger, TSVMerger, applied

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def bench(monkeypatch):
    """Two adapters of different ranks and modules, one of a task of answers; a task without an adapter."""
    return tiny_bench(monkeypatch)


def test_matched_is_scale_match(bench):
    found = matched(SVDMerger(k=2).fit(bench.adapters).merged_, bench.adapters)
    expected = SVDMerger(k=2, scale="match").fit(bench.adapters).merged_
    assert len(found) == 6
    for module in expected:
        torch.testing.assert_close(found[module].delta(), expected[module].delta(), rtol=1e-4, atol=1e-5)


def test_a_measurement_has_the_chosen_norm_and_every_text(bench):
    entrant = Entrant("tsv", TSVMerger())
    found, untuned = bench.chosen(entrant, 4), bench.untuned(entrant, 4)
    assert found["rank"] == untuned["rank"] == 4
    merged = TSVMerger(k=4).fit(bench.adapters).merged_
    assert found["norm"] == untuned["norm"] == pytest.approx(norm(merged) / mean_norm(bench.adapters))
    means = {scale: np.mean(list(of.values())) for scale, of in found["validation"].items()}
    assert {float(scale) for scale in means} <= set(SCALES)
    assert means[f"{found['scale']:g}"] == max(means.values())
    assert {task: len(right) for task, right in untuned["published"].items()} == {"colour": 12, "opposite": 12}
    assert set(untuned["matched"]) == {"colour", "opposite", "other"}
    assert set(found) == {"rank", "norm", "validation", "scale", "chosen", "seconds"}
    assert joined({"tsv, 4, untuned": untuned, "tsv, 4, chosen": found, "a, b": 1}) == {
        "tsv, 4": untuned | found,
        "a, b": 1,
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
    # the ranks are 5 in all
    assert few == ["references", "final, own adapters", "final, tsv", "PEFT alike", f"tsv, {WHOLE}, chosen"]
    bench.adapters = AdapterSet([adapter("a", 16, ("mlp.up_proj",), 0), adapter("b", 16, ("mlp.up_proj",), 1)])
    names = [name for name, _, _ in units(bench, language_model.METHODS)]
    assert len(set(names)) == len(names)
    assert names[:2] == ["references", "tsv, 16, untuned"]
    assert {f"{name}, 16, untuned" for name in language_model.METHODS if name not in TRAINED} < set(names)
    assert {f"svd, {k}, chosen" for k in (8, 16, 32, WHOLE)} < set(names)
    assert set(language_model.METHODS) <= {entrant.name for entrant in data_free()} | set(TRAINED)


def test_the_final_is_on_texts_that_come_after_the_others(bench, monkeypatch):
    monkeypatch.setattr(language_model, "K", 4)
    expected = language_model.own_final(bench)["own"]
    bench.test = evaluation.Evaluator("test", language_bench.FRESH * 12, bench.backbone)
    whole = bench.references()["own"]
    assert {task: right[12:] for task, right in whole.items()} == expected
    bench.test.n = 12
    found = {"final, own adapters": {"own": dict.fromkeys(bench.tasks, "1" * 24)}}
    for name in ("tsv", "svd"):
        found[f"final, {name}"] = language_model.final(
            bench, Entrant(name, TSVMerger() if name == "tsv" else SVDMerger()), None
        )
    table = final_table([found])
    assert {row[0] for row in table.rows} == {"tsv", "svd", "own adapters"}
    assert all(len(row) == len(table.titles) for row in table.rows)


def test_peft_refuses_what_has_two_ranks_and_its_cat_is_the_mean(bench):
    pytest.importorskip("peft")
    found = language_model.peft_alike(bench)
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert set(found["refused"]) == set(language_model.UNEQUAL)


def test_a_trained_merge_comes_nearer_to_its_teachers(bench):
    merged, about = prompts.trained_merge(
        PromptRecipe(n=20, k=2, epochs=4, learning_rate=2e-2), bench.adapters, TinyLanguage()
    )
    assert max(merged.ranks) == 2
    assert about["loss"][-1] < 0.8 * about["loss"][0]
    json.dumps(about)
    short = language_model.distilled(bench, PromptRecipe(n=4, k=2, epochs=1))
    assert short["matched"].keys() == {"colour", "opposite", "other"}


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
        found[f"svd, {k}, chosen"] = bench.chosen(Entrant("svd", SVDMerger()), 3)
    found["svd, 16, untuned"] = bench.untuned(Entrant("svd", SVDMerger()), 3)
    made = {table.name: table for table in tables(Run({0: found}, {0: about(bench)}, 12, 8))}
    assert [row[0] for row in made["language-model-adapters"].rows] == ["colour", "opposite", "other"]
    methods = made["language-model-methods"]
    assert [row[0] for row in methods.rows] == ["svd", "own adapters", "base model"]
    right = np.mean([[int(mark) for mark in found["svd, 16, untuned"]["matched"][t]] for t in bench.adapters.names])
    assert methods.rows[0][methods.titles.index("match")] == f"{right:.3f}"
    assert all(len(row) == len(table.titles) for table in made.values() for row in table.rows)
    (ranks,) = made["language-model-ranks"].rows
    assert ranks[1].endswith(f"({found['svd, 8, chosen']['scale']:g})")
    assert len(ranks) == 4  # the method, two ranks, and nothing that is whole
    assert ranks[3] == ""


def about(bench):
    training = {"rank": 2, "targets": None}
    return {t: {"labels": 3, "training": training, "seconds": 1.0} for t in bench.adapters.names}


def test_seeds_are_averaged_and_compared_on_those_that_both_have(bench):
    """Of svd there are two seeds, of tsv the first: the points are of the first, the accuracy is of both."""
    own = {"own": {"colour": "1" * 12, "opposite": "1" * 12}, "base": {"colour": "0" * 12, "opposite": "0" * 12}}

    def one(n, scale):
        right = {"colour": "1" * n + "0" * (12 - n), "opposite": "1" * 6 + "0" * 6}
        same = {"published": right, "matched": right, "chosen": right}
        return same | {"norm": 1.0, "scale": scale, "seconds": 1.0, "rank": 16}

    first = {"references": own, "tsv, 16, untuned": one(6, 1.0), "svd, 16, untuned": one(9, 1.0)}
    second = {"references": own, "svd, 16, untuned": one(3, 1.4)}
    run = Run({0: first, 1: second}, {0: about(bench), 1: about(bench)}, 12, 8)
    made = {table.name: table for table in tables(run)}
    methods = made["language-model-methods"]
    rows = {row[0]: dict(zip(methods.titles, row, strict=True)) for row in methods.rows}
    assert (rows["svd"]["seeds"], rows["tsv"]["seeds"]) == ("2", "1")
    assert rows["svd"]["match"] == "0.500 ± 0.177"  # of 7.5 and 4.5 of 12
    assert rows["svd"]["by seed"] == "+12.5"
    assert rows["svd"]["points"] == f"+12.5 ± {100 * np.sqrt(3 * 0.75**2 + 9 * 0.25**2) / np.sqrt(11 * 12) / 2:.1f}"
    norms = {row[0]: row for row in made["language-model-norms"].rows}
    assert norms["svd"][3] == "1, 1.4"
