"""Imports point one way: a part of the package imports only parts that stand above it in this list."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lorakit"
ORDER = [
    "_version",
    "exceptions",
    "linalg",
    "factors",
    "provenance",
    "adapters",
    "adapter_set",
    "results",
    "applying",
    "activations",
    "_execution",
    "_sklearn",
    "_ranks",
    "_base_models",
    "_validation",
    "cluster",
    "base",
    "merging",
    "pruning",
    "preparing",
    "io",
    "metrics",
    "model_selection",
    "retrieval",
    "discovery",
    "plotting",
    "testing",
    "cli",
    "__main__",
]
SIBLINGS = {"merging", "pruning", "preparing", "io", "metrics"}  # never import one another


def imports_of(path: Path) -> set[str]:
    """The top-level parts of lorakit that a file imports, wherever in the file it does."""
    package = ("lorakit", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "lorakit" and len(name) > 1}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    assert {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(ORDER)


def test_imports_point_up_the_list():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = part_of(path)
        if part == "__init__":
            continue
        for target in imports_of(path) & set(ORDER):
            backwards = ORDER.index(target) > ORDER.index(part)
            if backwards or (target != part and {target, part} <= SIBLINGS):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {target}")
    assert not wrong


def test_private_scikit_learn_names_stay_in_one_file():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn"):
                private = [p for p in (*node.module.split("."), *(a.name for a in node.names)) if p.startswith("_")]
                if private and part_of(path) != "_sklearn":
                    wrong.append(f"{path.relative_to(PACKAGE)}: {private}")
    assert not wrong


def test_only_one_file_says_cuda():
    assert [p.name for p in PACKAGE.rglob("*.py") if "cuda" in p.read_text().lower()] in ([], ["_execution.py"])
