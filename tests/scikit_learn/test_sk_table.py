"""The table of the documentation and the tests beside this file name the same things."""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "scikit_learn.rst"


def rows():
    """What, how, and the name of the test, which is a comment in the last cell; headers left out."""
    items = re.findall(r"^   \* - (.*?)(?=^   \* - |^\S|\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    cells = [
        [" ".join(cell.split()) for cell in re.split(r"^     - |^       \.\. (?=test_)", item, flags=re.MULTILINE)]
        for item in items
    ]
    return [row for row in cells if row != ["what", "how it goes"]]


def names_beside_this_file():
    return [
        node.name
        for path in Path(__file__).parent.glob("test_sk_*.py")
        if path != Path(__file__)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_each_row_says_what_how_and_where_it_is_tested():
    assert len(rows()) > 50
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row
        assert re.fullmatch(r"test_\w+", row[2]), row


def test_each_row_is_a_test_and_each_test_a_row():
    assert sorted(row[2] for row in rows()) == sorted(names_beside_this_file())
