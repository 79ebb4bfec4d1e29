"""
Three splits that share no source and no near-duplicate
=======================================================

Texts to train on, to choose by (validation) and to report on (test). Where a text goes depends on a hash of the source
that it comes from and on nothing else: no order, no random numbers, no other text.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

SPLITS = ("train", "validation", "test")
SHARES = (0.5, 0.2, 0.3)  # of the sources, in the order of SPLITS
SIZES = {"train": 2000, "validation": 400, "test": 1000}  # at most

Labelled = list[tuple[str, int]]


@dataclass(frozen=True)
class Example:
    """One text with its label.

    Parameters
    ----------
    text : str
        What is to be classified.
    label : int
        Index of the true label.
    sources : tuple of str
        What it comes from: an article, a file, a synset. An example whose sources fall into several splits is dropped.
    split : str or None
        Its split, where the source has one of its own: 'test' or 'train'; validation is then taken out of 'train'.
    answer : str
        What is to be generated, in tasks that have no labels. Their examples have the label 0.
    """

    text: str
    label: int
    sources: tuple[str, ...]
    split: str | None = None
    answer: str = ""


def split_of(source: str, *, salt: str) -> str:
    """Return the split of a source."""
    share = _uniform(f"{salt}/{source}")
    return SPLITS[int(np.searchsorted(np.cumsum(SHARES)[:-1], share, side="right"))]


def make_splits(examples: Iterable[Example], *, salt: str, alike: float) -> dict[str, Labelled]:
    """Sort examples into splits, drop near-duplicates across them, and take as balanced a sample as there is.

    Parameters
    ----------
    examples : iterable of Example
        In any order.
    salt : str
        Tasks with one salt put a source into one split.
    alike : float
        Texts are near-duplicates if the sets of their words have this or more in common (Jaccard index).

    Returns
    -------
    dict of str to list of (text, label)
        By name of the split, at most SIZES each.
    """
    pools: dict[str, Labelled] = {name: [] for name in SPLITS}
    for example in _without_copies(examples):
        splits = {_split(example, source, salt) for source in example.sources}
        if len(splits) == 1:
            pools[splits.pop()].append((example.text, example.label))
    taken: dict[str, Labelled] = {}
    for name in SPLITS:
        others = [text for texts in taken.values() for text, _ in texts]
        candidates = _balanced(pools[name], 3 * SIZES[name], salt)
        taken[name] = _balanced(_unlike(candidates, others, alike), SIZES[name], salt)
    return taken


def largest_similarity(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Jaccard index of each text's words with those of the other text that is most like it, shape (len(texts),)."""
    if not texts or not others:
        return np.zeros(len(texts))
    vocabulary: dict[str, int] = {}
    x, y = (_word_sets(some, vocabulary) for some in (texts, others))
    width = len(vocabulary)
    x, y = (csr_array((m.data, m.indices, m.indptr), shape=(m.shape[0], width)) for m in (x, y))
    common = (x @ y.T).toarray()
    union = x.sum(axis=1)[:, None] + y.sum(axis=1)[None, :] - common
    return (common / np.maximum(union, 1)).max(axis=1)


def plain(text: str) -> str:
    """The words of a text in lower case: what is equal for two texts that differ in case, spaces and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower())) or text


def _split(example: Example, source: str, salt: str) -> str:
    if example.split == "test":
        return "test"
    split = split_of(source, salt=salt)
    if example.split is None:
        return split
    return "validation" if split == "validation" else "train"


def _without_copies(examples: Iterable[Example]) -> list[Example]:
    """Keep one of equal texts, and none of those that have several labels. A test text goes before its copies."""
    by_text: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if len(example.text) >= 3:
            by_text[plain(example.text)].append(example)
    kept = [copies for copies in by_text.values() if len({copy.label for copy in copies}) == 1]
    return [min(copies, key=lambda e: (e.split != "test", e.sources)) for copies in kept]


def _balanced(texts: Labelled, n: int, salt: str) -> Labelled:
    """Take up to n texts, one of each label in turn, in an order of their own."""
    ordered = sorted(texts, key=lambda item: _uniform(f"{salt}/{item[0]}"))
    turns: Counter[int] = Counter()
    ranked = []
    for text, label in ordered:
        ranked.append((turns[label], label, text))
        turns[label] += 1
    taken = sorted(ranked)[:n]
    # By another hash: by the same one, the labels with the most texts to choose from would come first.
    return sorted(((text, label) for _, label, text in taken), key=lambda item: _uniform(f"{salt}/order/{item[0]}"))


def _unlike(texts: Labelled, others: Sequence[str], alike: float) -> Labelled:
    similarity = largest_similarity([text for text, _ in texts], others)
    return [item for item, s in zip(texts, similarity, strict=True) if s < alike]


def _word_sets(texts: Sequence[str], vocabulary: dict[str, int]) -> csr_array:
    rows = [{vocabulary.setdefault(word, len(vocabulary)) for word in plain(text).split()} for text in texts]
    indices = np.array([i for row in rows for i in sorted(row)], dtype=np.int32)
    indptr = np.cumsum([0, *map(len, rows)])
    return csr_array((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(rows), len(vocabulary)))


def _uniform(text: str) -> float:
    """A number in [0, 1) that looks random and is a function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
