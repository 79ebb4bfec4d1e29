"""The experiments' modules, importable as their scripts have them, with a cache of their own."""

import sys
from pathlib import Path

import pytest

REPRODUCE = Path(__file__).resolve().parents[2] / "examples" / "reproduce"

sys.path.insert(0, str(REPRODUCE))


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path, monkeypatch):
    """Nothing that a test makes gets into the user's cache, and nothing in that into a test."""
    monkeypatch.setenv("LORAKIT_REPRODUCE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shipped_tasks(monkeypatch):
    """The evaluation knows the tasks of the examples, and those only."""
    import evaluation
    from shipped import NAMES, shipped

    known = {name: shipped(name) for name in NAMES}
    for cached in (evaluation._head, evaluation._tokens):
        cached.cache_clear()
    monkeypatch.setattr(evaluation, "load_task", known.__getitem__)
    yield
    for cached in (evaluation._head, evaluation._tokens):
        cached.cache_clear()
