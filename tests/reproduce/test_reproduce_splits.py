"""Splits share no source, no near-duplicate and no text; they are balanced, and the same every time."""

from collections import Counter

import numpy as np
import pytest
from splits import SHARES, SPLITS, Example, largest_similarity, make_splits, plain, split_of

WORDS = [f"word{i}" for i in range(400)]


def examples(n: int = 900, labels: int = 3, per_source: int = 3) -> list[Example]:
    """Random texts of six words; a source has several, most of them near-duplicates of its first."""
    rng = np.random.default_rng(0)
    made = []
    for source in range(n // per_source):
        words = list(rng.choice(WORDS, 6, replace=False))
        for copy in range(per_source):
            text = " ".join([*words, f"only{source}x{copy}"])
            made.append(Example(text, source % labels, (f"source {source}",)))
    return made


def test_a_source_is_of_one_split_whatever_else_there_is():
    all_of_them = make_splits(examples(), salt="a", alike=0.7)
    half = make_splits(examples()[:450], salt="a", alike=0.7)
    where = {text: split for split, items in all_of_them.items() for text, _ in items}
    assert all(where[text] == split for split, items in half.items() for text, _ in items if text in where)
    assert {split for split, items in half.items() if items} == set(SPLITS)


def test_no_source_crosses():
    sources = {example.text: example.sources[0] for example in examples()}
    splits = make_splits(examples(), salt="a", alike=0.7)
    seen = [{sources[text] for text, _ in items} for items in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_near_duplicates_of_other_sources_are_dropped():
    copies = [Example(e.text + " again", e.label, (f"other {i}",)) for i, e in enumerate(examples())]
    splits = make_splits([*examples(), *copies], salt="a", alike=0.7)
    texts = {split: [text for text, _ in items] for split, items in splits.items()}
    for later, earlier in (("validation", "train"), ("test", "train"), ("test", "validation")):
        assert texts[later]
        assert largest_similarity(texts[later], texts[earlier]).max() < 0.7
    kept = make_splits([*examples(), *copies], salt="a", alike=1.1)  # above 1: nothing is a near-duplicate
    assert len(kept["test"]) > len(splits["test"])


def test_an_example_whose_sources_are_of_several_splits_is_dropped():
    by_split = {split: next(s for s in map(str, range(50)) if split_of(s, salt="a") == split) for split in SPLITS}
    across = Example("a pair of two", 0, (by_split["train"], by_split["test"]))
    within = Example("another pair", 0, (by_split["test"], by_split["test"]))
    splits = make_splits([across, within], salt="a", alike=0.7)
    assert splits == {"train": [], "validation": [], "test": [("another pair", 0)]}


def test_a_given_test_split_is_kept_and_validation_comes_out_of_the_rest():
    given = [
        Example(f"{e.text} {i}", e.label, (f"s{i}",), "test" if i % 2 else "train") for i, e in enumerate(examples())
    ]
    splits = make_splits(given, salt="a", alike=1.1)
    split_in_source = {e.text: e.split for e in given}
    assert {split_in_source[text] for text, _ in splits["test"]} == {"test"}
    assert {split_in_source[text] for split in ("train", "validation") for text, _ in splits[split]} == {"train"}
    assert splits["validation"]


def test_copies_count_once_and_contradictions_not_at_all():
    made = [Example("One, two!", 0, ("a",)), Example("one two", 0, ("b",))]
    made += [Example("three four", 0, ("c",)), Example("Three four", 1, ("d",))]
    texts = [plain(text) for items in make_splits(made, salt="a", alike=0.7).values() for text, _ in items]
    assert texts == ["one two"]


def test_samples_are_balanced_as_far_as_there_are_texts(monkeypatch):
    monkeypatch.setattr("splits.SIZES", dict.fromkeys(SPLITS, 30))
    made = [Example(f"{a} {b}", 0, (f"{a}{b}",)) for a in WORDS[:20] for b in WORDS[20:40]]
    made += [Example(f"{a} x{b}", 1, (f"{a} {b}",)) for a in WORDS[:8] for b in range(4)]
    for items in make_splits(made, salt="a", alike=1.1).values():
        counts = Counter(label for _, label in items)
        assert len(items) == 30
        assert 2 <= counts[1] <= 16
        assert [label for _, label in items] != sorted(label for _, label in items)  # mixed


def test_shares_are_as_they_should_be():
    found = Counter(split_of(str(i), salt="any") for i in range(4000))
    assert [found[split] / 4000 for split in SPLITS] == pytest.approx(SHARES, abs=0.03)


def test_largest_similarity_is_the_jaccard_index():
    found = largest_similarity(["a b c", "d", "A b!"], ["b c x", "a b"])
    assert found.tolist() == pytest.approx([2 / 3, 0, 1])
    assert largest_similarity(["a"], []).tolist() == [0]
