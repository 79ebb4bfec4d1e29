"""What `lorakit` exports, and what importing it costs."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import lorakit
from lorakit.discovery import all_estimators

STUB = Path(lorakit.__file__).with_name("__init__.pyi")
API = Path(__file__).parents[1] / "docs" / "api.rst"
FROM = {
    alias.name: f"lorakit.{node.module}"
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}  # name -> the module that the stub imports it from


def test_each_name_of_the_stub_is_defined_where_the_stub_says():
    assert set(lorakit.__all__) == set(FROM)
    for name, module in FROM.items():
        assert getattr(lorakit, name) is getattr(import_module(module), name)
        assert getattr(lorakit, name).__module__ == module, name


def test_dir_lists_the_public_names():
    assert set(dir(lorakit)) >= set(FROM)


def test_the_page_of_the_api_has_every_public_name_once():
    """Its lists of estimators are written from the registry; every other name is typed there."""
    section = API.read_text().partition("\n.. currentmodule:: lorakit\n")[2].partition("\n.. currentmodule:: ")[0]
    typed = re.findall(r"^   (\w+)$", section, flags=re.M)
    included = re.findall(r"^\.\. include:: _(\w+)s\.rst$", section, flags=re.M)
    estimators = [cls.__name__ for kind in included for cls in all_estimators(kind).values()]
    assert sorted(typed + estimators) == sorted(FROM)


def test_importing_loads_nothing_heavy():
    code = "import lorakit, sys; print(sorted({'torch', 'sklearn', 'numpy', 'rich'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
