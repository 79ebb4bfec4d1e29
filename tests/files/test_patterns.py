"""Regular expressions of configs mean what Python's re says, and never take long."""

import re
import sys
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError
from lorakit.files.patterns import first_match

ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", r"\w", r"\W", r"\d", r"\s", "[ab]", "[^a]", r"[\w.]", "[a-q]", "a|b", "(a|b)", "(?:ab)", "^",
     "$", r"\b", r"\B", r"\A", r"\Z", ".*", "a+", "b?", "(a.)*", "(a|b)+?", "x{2}", "a{0,2}", "(?:)", "()*", "q", "0",
     "_", "-", r"\-", "é"]
)  # fmt: skip


def expected(keys, module):
    for key in keys:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return None


@settings(max_examples=1500)
@given(
    keys=st.lists(st.lists(ATOMS, min_size=1, max_size=5).map("".join), min_size=1, max_size=3, unique=True),
    module=st.text("ab.q0_-é", min_size=1, max_size=8),
)
def test_it_is_what_re_says(keys, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = expected(keys, module)
            for key in keys:
                re.compile(rf"(.*\.)?({key})$")
        except re.error:
            with pytest.raises(CorruptFileError, match=r"f: .* is no regular expression"):
                first_match("f", tuple(keys), module)
            return
    assert first_match("f", tuple(keys), module) == wanted


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
        "(?:){99999999}",
        "(" * 99 + ")" * 99,
    ],
)
def test_none_takes_long(key):
    name = "a" * 900 + "." + "a" * 99
    begin = time.perf_counter()
    assert first_match("f", (key,), name) is None
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("(?=a)b", "looks ahead or behind"),
        ("(?<!a)b", "looks ahead or behind"),
        (r"(?P<x>a)(?P=x)", "refers to a group"),
        ("(?i:a)", "sets flags"),
        ("((a{99}){99}){99}", "has more than 2000 characters when its repetitions are written out"),
        ("(" * 5000 + ")" * 5000, "has too many groups"),
    ],
)
def test_what_may_never_end_is_refused(key, message):
    with pytest.raises(UnsupportedAdapterError, match=f"f: .*{message}.*expected a module's path.*write it so"):
        first_match("f", (key,), "a")


@pytest.mark.parametrize("key", ["(", "(?i)a", "a{99999999999}", "[", "*"])
def test_what_is_none_is_corrupt(key):
    with pytest.raises(CorruptFileError, match="is no regular expression"):
        first_match("f", (key,), "a")


def test_many_expressions_are_refused_by_their_number_of_states_or_steps():
    with pytest.raises(UnsupportedAdapterError, match="more than 100000 states"):
        first_match("f", tuple(f"a{{1{i:03}}}" for i in range(200)), "a")
    keys = tuple(f"(?:[ab]?){{600}}{i}x" for i in range(30))
    with pytest.raises(UnsupportedAdapterError, match="f2: matching its 30 regular expressions takes too long"):
        first_match("f2", keys, "ab" * 450)


def test_a_model_of_many_layers_is_quick():
    """As a compact file has it: a key for every module."""
    keys = tuple(f"model.layers.{i}.self_attn.{p}_proj" for i in range(80) for p in "qkvogud")
    begin = time.perf_counter()
    assert all(first_match("f", keys, key) == key for key in keys)
    assert time.perf_counter() - begin < 5  # it takes a fiftieth of a second; trying each took a minute


def test_the_message_names_the_file(tmp_path):
    from peft_files import write_directory

    path = write_directory(tmp_path, rank_pattern={"(?=q)q": 2})
    with pytest.raises(
        UnsupportedAdapterError, match=r"task/adapter_config\.json: rank_pattern: '\(\?=q\)q' looks ahead"
    ):
        load_adapter(path)


def test_a_python_whose_parser_is_elsewhere_still_matches_paths(monkeypatch):
    monkeypatch.setitem(sys.modules, "lorakit.files._automaton", None)  # import then raises ImportError
    assert first_match("f3", ("layer.0.q",), "model.layer.0.q") == "layer.0.q"
    with pytest.raises(UnsupportedAdapterError, match=r"f3: 'a[+]' cannot be looked into by this version of Python"):
        first_match("f3", ("a+",), "a")
