"""Texts that belong to no task: fragments of sentences, the package's own or any others."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from sklearn.utils import check_random_state


def corpus() -> list[str]:
    """Return 172 English sentences on everyday matters, in no order.

    They were written for lorakit, are under its licence, and were taken from no data set.
    """
    return files(__package__).joinpath("corpus.txt").read_text(encoding="utf-8").splitlines()


def generic_inputs(
    texts: Iterable[str] | None = None,
    n: int = 700,
    *,
    words: tuple[int, int] = (2, 19),
    random_state: Any = 0,
) -> list[str]:
    """Cut fragments of some words out of texts: inputs that make every head say something, whatever its task.

    Parameters
    ----------
    texts : iterable of str, default=None
        Any texts, of any length. None: 172 English sentences on everyday matters that come with lorakit, were written
        for it and are under its licence.
    n : int, default=700
        Fragments wanted. Each begins in a text that is drawn at random.
    words : tuple of int, default=(2, 19)
        Fewest and most words of a fragment; one goes on into another text where its own is too short.
    random_state : int, RandomState or None, default=0
        Draws texts, lengths and places.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If no text has a word, or the numbers make no sense.

    Examples
    --------
    >>> from lorakit.distillation.generic import generic_inputs
    >>> generic_inputs(["one two three four five"], 2, words=(2, 3))
    ['one two', 'four five one']
    """
    found = [split for text in (corpus() if texts is None else texts) if (split := text.split())]
    shortest, longest = words
    if not found or n < 1 or not 1 <= shortest <= longest:
        raise ValueError(
            f"expected texts with words, n of 1 or more and 1 <= fewest <= most words; got {len(found)} texts with "
            f"words, n={n}, words={words}"
        )
    rng = check_random_state(random_state)
    fragments = []
    for _ in range(n):
        length = rng.randint(shortest, longest + 1)
        text = found[rng.randint(len(found))]
        drawn = text[rng.randint(len(text)) :]
        while len(drawn) < length:
            drawn = drawn + found[rng.randint(len(found))]
        fragments.append(" ".join(drawn[:length]))
    return fragments
