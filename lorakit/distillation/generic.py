"""Texts that belong to no task: fragments of texts, the package's own or any others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from sklearn.utils import check_random_state

KINDS = ("sentences", "code", "words", "languages", "notes")


def corpus(kind: str) -> list[str]:
    """Return lorakit's texts of one kind, in no order.

    They were written for lorakit, are under its licence, and were taken from no data set.

    Parameters
    ----------
    kind : {'sentences', 'code', 'words', 'languages', 'notes'}
        English sentences on everyday matters; pieces of program and markup code in some forty languages; lists of
        words and short definitions; sentences in some thirty other languages; and messages, headings, forms and the
        like.
    """
    return files(__package__).joinpath("corpus", f"{kind}.txt").read_text(encoding="utf-8").splitlines()


def generic_inputs(
    texts: Iterable[str] | None = None,
    n: int = 1400,
    *,
    words: tuple[int, int] = (2, 19),
    kinds: Sequence[str] | None = None,
    random_state: Any = 0,
) -> list[str]:
    """Cut fragments of some words out of texts: inputs that make every head say something, whatever its task.

    Parameters
    ----------
    texts : iterable of str, default=None
        Any texts, of any length. None: texts of several kinds that come with lorakit, were written for it and are
        under its licence.
    n : int, default=1400
        Fragments wanted. Each begins in a text that is drawn at random. Many help: see the results page on distilled
        merges.
    words : tuple of int, default=(2, 19)
        Fewest and most words of a fragment; one goes on into another text where its own is too short.
    kinds : list of {'sentences', 'code', 'words', 'languages', 'notes'}, default=None
        Of lorakit's texts: English sentences, program code, lists of words, sentences in other languages, and messages
        and forms. None: all of them. A fragment is of one kind. Not with ``texts``.
    random_state : int, RandomState or None, default=0
        Draws texts, lengths and places.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If no text has a word, there is no such kind, or the numbers make no sense.

    Examples
    --------
    >>> from lorakit.distillation.generic import generic_inputs
    >>> generic_inputs(["one two three four five"], 2, words=(2, 3))
    ['one two', 'four five one']
    """
    if kinds is not None and (texts is not None or not kinds or set(kinds) - set(KINDS)):
        raise ValueError(f"expected kinds of {', '.join(KINDS)}, and no texts beside them; got kinds={kinds!r}")
    groups = [corpus(kind) for kind in kinds or KINDS] if texts is None else [texts]
    found = [[split for text in group if (split := text.split())] for group in groups]
    begun = [(split, group) for group in found for split in group]
    shortest, longest = words
    if not begun or n < 1 or not 1 <= shortest <= longest:
        raise ValueError(
            f"expected texts with words, n of 1 or more and 1 <= fewest <= most words; got {len(begun)} texts with "
            f"words, n={n}, words={words}"
        )
    rng = check_random_state(random_state)
    fragments = []
    for _ in range(n):
        length = rng.randint(shortest, longest + 1)
        text, others = begun[rng.randint(len(begun))]
        drawn = text[rng.randint(len(text)) :]
        while len(drawn) < length:
            drawn = drawn + others[rng.randint(len(others))]
        fragments.append(" ".join(drawn[:length]))
    return fragments
