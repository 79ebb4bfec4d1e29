"""Regular expressions of configs mean what Python's re says, and never take long."""

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError
from lorakit.files.expressions import ExpressionError, matcher
from lorakit.files.patterns import Patterns

ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", r"\w", r"\W", r"\d", r"\s", "[ab]", "[^a]", r"[\w.]", "[a-q]", "a|b", "(a|b)", "(?:ab)", "^",
     "$", r"\b", r"\B", r"\A", r"\Z", ".*", "a+", "b?", "(a.)*", "(a|b)+?", "x{2}", "a{0,2}", "(?:)", "()*", "q", "0",
     "_", "-", r"\-", "é"]
)  # fmt: skip
# What RE2 reads otherwise, or only one of the two takes.
ODD = st.sampled_from(
    ["a{,2}", "a{2", "{", "}", "a{}", "a{,}", "a{,2}?", "[]a]", "[^]a]", "[a-]", "[[:alpha:]]", r"[\w-z]", r"[\W\d]",
     r"[^\W]", "[a&&b]", "^*", r"\b+", "$?", "a{2}{2}", "a++", "(?>a)", "a*??", r"\12", r"\1", r"\07", r"\z", r"\Qa\E",
     r"\pL", r"\C", r"\_", r"\é", r"\u0061", r"\x61", "(?P<x>a)", "(?P<1>a)", "(?<x>a)", "(?P=x)", "(?U)", "(?i)",
     "(?#a)", "(?=a)", "(?(1)a)", "[", "(", ")", "*", "a{1001}", "a{99999999999}", "a{2,1}", "(?:a{40}){40}", "]",
     "a|", "|", "(|a)+", "(^|a)*", "(a$)?", r"(\b|a)*b", r"[\]a]", r"[\.\-]", "\\", "\n", r"\n"]
)  # fmt: skip


def first_match(where, keys, module):
    return Patterns(where, keys).first(module)


def expected(keys, module):
    for key in keys:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return None


def check(keys, module):
    """Compare with re, and return whether there was anything to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for key in keys:
                re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError):
            with pytest.raises((CorruptFileError, UnsupportedAdapterError)) as caught:
                first_match("f", keys, module)
            return caught.type is CorruptFileError
        try:
            found = first_match("f", keys, module)
        except UnsupportedAdapterError:
            return False
        assert found == expected(keys, module)
    return True


@settings(max_examples=1500)
@given(
    keys=st.lists(st.lists(ATOMS, min_size=1, max_size=5).map("".join), min_size=1, max_size=3, unique=True),
    module=st.text("ab.q0_-", min_size=1, max_size=8),
)
def test_it_is_what_re_says(keys, module):
    assert check(tuple(keys), module)


@settings(max_examples=1500)
@given(
    keys=st.lists(st.lists(ATOMS | ODD, min_size=1, max_size=5).map("".join), min_size=1, max_size=3, unique=True),
    module=st.text("ab.q0_-é]{}&[:1", min_size=1, max_size=8),
)
def test_it_is_what_re_says_or_refused(keys, module):
    check(tuple(keys), module)


def test_letters_beyond_ascii():
    """Python takes é for a letter and RE2 does not: where it matters, neither answer is given."""
    assert first_match("f", ["a[é]+", "b"], "m.aéé") == "a[é]+"
    assert first_match("f", [r"q\w"], "m.qa") == r"q\w"
    with pytest.raises(UnsupportedAdapterError, match=r"'q\\\\w' holds .* RE2 knows for ASCII only.*'m.qé'"):
        first_match("f", [r"q\w"], "m.qé")


@pytest.mark.parametrize("module", ["model.layers.12.q_proj", "model.layers.1.q_proj", "xmodel.layers.1.q_proj"])
def test_paths_are_looked_up_as_re_would(module):
    keys = (
        "layers.1.q_proj",
        r"^model\.layers\.12\.q_proj$",
        "layers.12.q_proj",
        "q_proj",
        r"a\.b",
        "^layers.1.q_proj",
    )
    for i in range(len(keys)):
        assert first_match("f", keys[i:], module) == expected(keys[i:], module)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b",
        "(a|a)*b",
        "(.*)*(.*)*(.*)*x",
        "(a|ab|b)*c",
        "(?:a?){500}a{500}b",
        "(" * 99 + ")" * 99,
    ],
)
def test_none_takes_long(key):
    """Without RE2 the first four end on no day; the time limit of every test is what fails then."""
    assert first_match("f", (key,), "a" * 900 + "." + "a" * 99) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("(?=a)b", "looks ahead or behind"),
        ("(?<!a)b", "looks ahead or behind"),
        (r"(?P<x>a)(?P=x)", "refers to a group"),
        ("(?i:a)", "sets flags"),
        (r"(a)\1", "refers to a group"),
        ("a++", "is not taken by RE2 .*bad repetition operator"),
        ("[[:alpha:]]", "put a backslash before each bracket in it"),
        ("((a{99}){99}){99}", "is not taken by RE2 .*invalid repetition size"),
        ("(?:){99999999}", "repeats too often"),
        ("(" * 5000 + ")" * 5000, "is too large: .* instructions, the limit is 5000"),
        ("[" + "a" * 100_000 + "]", "has 100012 characters, the limit is 100000"),
    ],
)
def test_what_may_never_end_is_refused(key, message):
    with pytest.raises(UnsupportedAdapterError, match=f"f: .*{message}.*expected a module's path.*write it so"):
        first_match("f", (key,), "a")


@pytest.mark.parametrize("key", ["(", "(?i)a", "a{99999999999}", "[", "*"])
def test_what_is_none_is_corrupt(key):
    with pytest.raises(CorruptFileError, match="is no regular expression"):
        first_match("f", (key,), "a")


def ask(matches, names):
    for name in names:
        matches(name)


def test_the_sum_of_all_is_bounded():
    with pytest.raises(UnsupportedAdapterError, match=r"'a2000[+]' comes after 2000 others"):
        Patterns("f", [f"a{i}+" for i in range(2001)])
    with pytest.raises(UnsupportedAdapterError, match="makes the expressions longer than 1000000 characters"):
        Patterns("f", [f"[{'a' * 90_000}]{i}" for i in range(20)])
    patterns = Patterns("f", [f"(?:[ab]?){{600}}{i}x" for i in range(30)])
    with pytest.raises(UnsupportedAdapterError, match=r"f: .*takes too long to match"):
        ask(patterns.first, ["ab" * 450 + str(i) for i in range(20)])
    # dots of plain paths stand for any character, so that each of these is compared with each name
    names = ["a" * 899 + "b", *("a" * i + "." + "a" * (899 - i) for i in range(1, 899))]
    patterns = Patterns("f", names)
    with pytest.raises(UnsupportedAdapterError, match=r"f: looking up module 'a+' .* 899 paths takes too long.*write"):
        ask(patterns.first, ["a" * 899 + "c"] * 200)


def test_a_model_of_many_layers_is_quick():
    """As a compact file has it, a key for every module; counted in steps, which no busy machine makes more."""
    keys = tuple(f"model.layers.{i}.self_attn.{p}_proj" for i in range(80) for p in "qkvogud")
    patterns = Patterns("f", keys)
    before = patterns._work.left
    assert all(patterns.first(key) == key for key in keys)
    assert before - patterns._work.left < len(keys) * 5_000


def test_one_expression_for_names_that_are_given_otherwise():
    is_query = matcher(r".*\.q(kv)?")
    assert [is_query(name) for name in ("a.q", "a.b.qkv", "a.qkv.c", "q")] == [True, True, False, False]
    with pytest.raises(ValueError, match=r"'[(]' is no regular expression: missing"):
        matcher("(")
    with pytest.raises(ExpressionError, match="looks ahead or behind"):
        matcher("(?=a)a")
    slow = matcher("(?:[ab]?){600}x")
    with pytest.raises(ExpressionError, match="takes too long to match"):
        ask(slow, ["ab" * 450 + str(i) for i in range(400)])


def test_the_message_names_the_file(tmp_path):
    from peft_files import write_directory

    path = write_directory(tmp_path, rank_pattern={"(?=q)q": 2})
    with pytest.raises(
        UnsupportedAdapterError, match=r"task/adapter_config\.json: rank_pattern: '\(\?=q\)q' looks ahead"
    ):
        load_adapter(path)
