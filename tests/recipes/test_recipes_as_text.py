"""YAML of recipes: values there and back, and where what is wrong stands."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lorakit.exceptions import InvalidRecipeError
from lorakit.recipes.text import dump, parse, read_text

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    [
        "no",
        "yes",
        "1e-3",
        "0o17",
        "0x1f",
        "1_000",
        "12:30",
        "~",
        "null",
        ".inf",
        "-",
        "on",
        "= ",
        "2024-01-01",
        "1.",
        "",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_values_come_back(values):
    assert repr(parse(dump(values), "recipe.yaml").plain()) == repr(values)


@given(st.dictionaries(TEXTS, TEXTS | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False)))
def test_other_readers_of_yaml_read_the_same(values):
    assert yaml.safe_load(dump(values)) == values


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "is empty"),
        ("a: [1\nb: 2", 2, "is no YAML"),
        ("a: 1\na: 2", 2, "stands here twice"),
        ("a: 1\nb:\n  - c\n  - !!python/object/apply:os.system ['true']", 4, "has the tag"),
        ("a: 1\n? [1, 2]\n: 3", 2, "a key that is no text"),
        ("a: 1\n--- \nb: 2", 2, "single document"),
        ("a: !!int x", 1, "is no int"),
        ("a: " + "[" * 30 + "]" * 30, 1, "holds more, or deeper"),
        ("a: " + "[" * 5000 + "]" * 5000, None, "deep"),
        ("a: \x00", None, "is no YAML"),
        ("a: " + "9" * 5000, 1, "is no int"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text, line, says):
    with pytest.raises(InvalidRecipeError, match=says) as caught:
        parse(text, "recipe.yaml")
    assert (caught.value.path, caught.value.line) == ("recipe.yaml", line)


def test_aliases_cannot_stand_for_more_than_a_recipe_needs():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(InvalidRecipeError, match="holds more"):
        parse("\n".join(lines), "recipe.yaml")


def test_a_file_that_is_no_text_or_too_long(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InvalidRecipeError, match="UTF-8"):
        read_text(file)
    file.write_bytes(b"#" * (1 << 21))
    with pytest.raises(InvalidRecipeError, match="2097152 bytes"):
        read_text(file)
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        read_text(tmp_path / "other.yaml")


def test_words_are_those_of_yaml_1_2():
    text = "a: no\nb: 1e-3\nc: 0o17\nd: 010\ne: -.INF\nf: ~\ng: True\nh:\ni: 0x1F\nj: '1'\nk: .5"
    expected = {"a": "no", "b": 0.001, "c": 15, "d": 10, "e": float("-inf"), "f": None, "g": True, "h": None, "i": 31}
    assert parse(text, "r").plain() == expected | {"j": "1", "k": 0.5}
