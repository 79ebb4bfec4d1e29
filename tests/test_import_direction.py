"""Imports point one way: a part of the package imports only parts above it in its list, and no files form a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lorakit"
ORDER = [
    "_version",
    "_environment",
    "_nearest",
    "_few",
    "_recipes",
    "_listing",
    "exceptions",
    "files",
    "_html",
    "_bars",
    "_frozen",
    "linalg",
    "factors",
    "provenance",
    "readers",
    "adapters",
    "differences",
    "pieces",
    "_experts",
    "experts",
    "adapter_set",
    "_scaled",
    "_cores",
    "results",
    "applying",
    "activations",
    "gradients",
    "_models",
    "_forked",
    "_execution",
    "comparison",
    "_sklearn",
    "_ranks",
    "_base_models",
    "_validation",
    "cluster",
    "base",
    "_groups",
    "distillation",
    "merging",
    "pruning",
    "preparing",
    "io",
    "checkpoints",
    "metrics",
    "model_selection",
    "retrieval",
    "discovery",
    "recipes",
    "plotting",
    "reporting",
    "testing",
    "cli",
    "__main__",
]
# The same for the folders that are large enough to have floors of their own, by the path of the folder
FLOORS = {
    "": ORDER,
    "files": [
        "printable",
        "_rename",
        "_scratch",
        "checks",
        "digests",
        "json_text",
        "safetensors",
        "pickled",
        "tensors",
        "expressions",
        "patterns",
        "atomic",
        "checkpoint",
        "open_checkpoint",
    ],
    "checkpoints": [
        "sums",
        "experts",
        "renaming",
        "places",
        "fitting",
        "naming",
        "differences",
        "pairing",
        "decomposing",
        "extraction",
        "extracting",
        "baked",
        "baked_record",
        "writing",
        "baking",
    ],
    "io": [
        "names",
        "formats",
        "hub",
        "_given",
        "convert",
        "origin",
        "expert_layouts",
        "align",
        "opening",
        "beside",
        "load",
        "save",
        "_live_layers",
        "_live_kinds",
        "live",
        "servers",
    ],
    "io/names": [
        "table",
        "families",
        "spelling",
        "translate",
        "component",
        "diffusion",
        "kohya",
        "language",
        "steps",
        "in_checkpoints",
    ],
    "recipes": ["text", "steps", "recipe", "sources", "files"],
    "io/formats": [
        "about",
        "_unsupported",
        "_padding",
        "_factors",
        "_elsewhere",
        "_modules",
        "_servers",
        "codec",
        "_differences",
        "_bases",
        "dora",
        "_record_form",
        "_record_v1",
        "record",
        "_pairs",
        "kinds",
        "known_kinds",
        "peft",
        "diffusers",
        "kohya",
        "mlx",
        "comfyui",
        "bare",
        "xlabs",
        "control_lora",
        "registry",
    ],
}
SIBLINGS = {"merging", "pruning", "preparing", "io", "metrics"}  # never import one another


def dotted(path: Path, package: Path) -> tuple[str, ...]:
    """The parts of a file's module name, from the package's own on."""
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


@cache
def modules_of(package: Path) -> frozenset[tuple[str, ...]]:
    return frozenset(dotted(path, package) for path in package.rglob("*.py"))


def imports_of(path: Path, package: Path = PACKAGE) -> set[tuple[str, ...]]:
    """The modules of the package that a file imports, wherever in the file it does."""
    modules = modules_of(package)
    own = dotted(path, package)
    folder = own if path.name == "__init__.py" else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        # a name may be a module, or what a module defines
        found |= {
            next((n for n in (name, name[:-1]) if n in modules), name) for name in names if name[0] == package.name
        }
    return found


def circle(package: Path) -> list[str]:
    """Files that import one another in a circle; nothing if there is none."""
    graph = {
        dotted(path, package): imports_of(path, package) - {dotted(path, package)} for path in package.rglob("*.py")
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [".".join(module) for module in error.args[1]]
    return []


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("folder", FLOORS)
def test_every_part_has_its_place(folder):
    inside = {
        path.stem for path in (PACKAGE / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert inside - {"__init__"} == set(FLOORS[folder])


@pytest.mark.parametrize("folder", FLOORS)
def test_imports_point_up_the_list(folder):
    order, prefix = FLOORS[folder], ("lorakit", *Path(folder).parts)
    wrong = []
    for path in (PACKAGE / folder).rglob("*.py"):
        part = path.relative_to(PACKAGE / folder).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for module in imports_of(path):
            if module[: len(prefix)] != prefix or len(module) == len(prefix) or module[len(prefix)] not in order:
                continue
            target = module[len(prefix)]
            backwards = order.index(target) > order.index(part)
            if backwards or (not folder and target != part and {target, part} <= SIBLINGS):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {'.'.join(module)}")
    assert not wrong


def test_no_files_import_one_another_in_a_circle():
    assert circle(PACKAGE) == []


def test_a_circle_is_found(tmp_path):
    package = tmp_path / "planted"
    (package / "deep").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "deep/__init__": "",
        "deep/first": "from . import second",
        "deep/second": "def late():\n    from ..third import something",
        "third": "import planted.deep.first",
    }.items():
        (package / f"{name}.py").write_text(text)
    assert set(circle(package)) == {"planted.deep.first", "planted.deep.second", "planted.third"}
    (package / "third.py").write_text("from planted import deep")
    assert circle(package) == []


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
    """Beside those that show the word to users: what the machine has, and what the Tab key offers."""
    says = {p.name for p in PACKAGE.rglob("*.py") if "cuda" in p.read_text(encoding="utf-8").lower()}
    assert says <= {"_execution.py", "_environment.py", "_completion.py"}
