"""Plain PEFT adapters pass through few files of the package, from opening to saving: what others need stays out."""

import importlib.util
from pathlib import Path

import pytest

from lorakit import LegoMerger, SVDMerger, save_adapter
from lorakit.testing import make_adapters

spec = importlib.util.spec_from_file_location("walk", Path(__file__).parent / "benchmarks" / "walk.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

# What only other kinds of adapters, other files or other formats need
ELSEWHERE = ("files/pickled.py", "io/names/", "io/formats/kinds/", "io/formats/peft/variants.py",
             "io/formats/peft/kinds.py", "io/formats/peft/experts.py", "io/formats/peft/initial.py",
             "io/formats/dora.py", "io/align.py", "io/formats/_bases.py", "io/formats/_unsupported.py")  # fmt: skip


@pytest.mark.parametrize(
    ("merger", "most"),
    [(SVDMerger(k=3), 46), (LegoMerger(k=3, random_state=0), 51)],
    ids=["svd", "lego"],
)
def test_plain_adapters_pass_through_few_files(tmp_path, merger, most):
    made = make_adapters(2, ranks=(2, 4), random_state=0)
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in made]
    module.walk(merger, paths, tmp_path / "warm")  # imports what is imported late

    files, calls = module.walk(merger, paths, tmp_path / "out")

    assert calls > 500  # the walk was seen
    assert {"io/load.py", "io/save.py", "base/_merger.py"} <= files
    assert not [file for file in files if file.startswith(ELSEWHERE)]
    assert len(files) <= most, sorted(files)
