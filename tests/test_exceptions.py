"""What an error says, and that it says it everywhere."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from lorakit.cli._errors import message
from lorakit.exceptions import CorruptFileError, LorakitError, OutputError, Setting

PACKAGE = Path(__file__).parents[1] / "lorakit"
KINDS = {cls.__name__ for cls in LorakitError.__subclasses__()}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "was seen"),
        ({"path": Path("a/b")}, "a/b: was seen"),
        ({"path": "a", "module": "m.0", "expected": "more"}, "a: module 'm.0': was seen, expected more"),
        ({"adapters": ["law"], "remedy": "do it"}, "law: was seen; do it"),
        (
            {"expected": "more", "remedy": ["do it, or ", Setting("k", 2)]},
            "was seen, expected more; do it, or pass k=2",
        ),
    ],
)
def test_the_message_is_composed_of_the_fields(fields, text):
    assert str(CorruptFileError("was seen", **fields)) == text


def test_what_the_finding_names_is_not_repeated():
    error = LorakitError("module 'm' is 2 in 'x' and 3 in 'y'", module="m", adapters=["x", "y"], path="m")
    assert str(error) == "m: module 'm' is 2 in 'x' and 3 in 'y'"
    assert error.adapters == ("x", "y")


def test_fields_and_notes_travel_between_processes():
    error = OutputError("seen", path="p", module="m", adapters=["a"], expected="e", remedy=[Setting("overwrite", True)])
    error.add_note("in module 'm'")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is OutputError
    assert str(again) == str(error)
    assert (again.module, again.adapters, again.__notes__) == ("m", ("a",), ["in module 'm'"])


@pytest.mark.parametrize(
    ("setting", "in_python", "as_option"),
    [
        (Setting("overwrite", True), "pass overwrite=True", "pass --overwrite"),
        (Setting("modules_to_save", "drop"), "pass modules_to_save='drop'", "pass --modules-to-save drop"),
        (Setting("assume_alpha"), "pass assume_alpha=", "pass --assume-alpha"),
        (Setting("same_base", "warn"), "pass same_base='warn'", "leave out --strict"),
        (Setting("component", "unet"), "pass component='unet'", "run lorakit convert --component unet"),
    ],
)
def test_each_interface_names_a_setting_in_its_own_way(setting, in_python, as_option):
    error = OutputError("seen", path="overwrite=True", remedy=["first, or ", setting, " then"])
    assert str(error) == f"overwrite=True: seen; first, or {in_python} then"
    assert message(error) == f"overwrite=True: seen; first, or {as_option} then"  # and no name of a file is changed


def test_every_error_is_raised_with_fields():
    """Not with a message that somebody composed: it names what it is about by a keyword."""
    calls = [
        (path.relative_to(PACKAGE), node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
    ]
    assert len(calls) > 100
    assert [f"{path}:{node.lineno}" for path, node in calls if not node.keywords] == []
