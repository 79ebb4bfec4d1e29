"""The estimators that the command line and the suites find: all in the folders, each under a name of its own."""

from importlib import import_module
from inspect import getmembers, isabstract, isclass
from pathlib import Path

import pytest

import lorakit
from lorakit._listing import FOLDERS, TABLE, listed
from lorakit.base import BaseMerger, BasePruner, BaseTransformer
from lorakit.discovery import all_estimators, all_methods, estimator_named

KINDS = {
    "merger": ("merging", BaseMerger),
    "pruner": ("pruning", BasePruner),
    "transformer": ("preparing", BaseTransformer),
}


def files_of(folder):
    return sorted(path.stem for path in (Path(lorakit.__file__).parent / folder).glob("[!_]*.py"))


def estimators_in(module, base):
    return [
        cls for _, cls in getmembers(module, isclass) if issubclass(cls, base) and cls.__module__ == module.__name__
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_holds_an_estimator_that_is_public_and_found(kind):
    folder, base = KINDS[kind]
    found = {cls.__module__: cls for cls in all_estimators(kind).values()}
    for name in files_of(folder):
        module = import_module(f"lorakit.{folder}.{name}")
        (cls,) = estimators_in(module, base)
        assert not isabstract(cls), cls
        assert getattr(lorakit, cls.__name__) is cls
        assert found.pop(module.__name__) is cls
    assert not found


def test_every_public_estimator_is_found_under_a_name_of_its_own():
    public = {obj for obj in (getattr(lorakit, name) for name in lorakit.__all__) if isinstance(obj, type)}
    for kind, (_, base) in KINDS.items():
        expected = {cls for cls in public if issubclass(cls, base)}
        if kind == "transformer":
            expected = {cls for cls in expected if not issubclass(cls, BasePruner)}
        assert set(all_estimators(kind).values()) == expected
        assert list(all_estimators(kind)) == sorted(cls.method for cls in expected)
        assert [info.name for info in all_methods(kind)] == [cls.__name__ for cls in all_estimators(kind).values()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_is_named_as_its_file(kind):
    for name, cls in all_estimators(kind).items():
        assert cls.__module__ == f"lorakit.{KINDS[kind][0]}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_one_estimator_is_found_by_its_name(kind):
    for name, cls in all_estimators(kind).items():
        assert estimator_named(kind, name) is cls
    for name in ("mystery", "_common", "", "a.b", "../svd", "base"):
        assert estimator_named(kind, name) is None


def test_the_table_of_methods_is_that_of_the_estimators():
    assert set(FOLDERS) == set(KINDS)
    for kind in KINDS:
        assert listed(kind) == all_methods(kind), f"{TABLE} is old: python tests/list_methods.py writes it"
