"""Records of version 1, whose operations are texts: files that an earlier lorakit wrote, and texts of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorakit import RankBudget, load_adapter, save_adapter
from lorakit.cli._rebuild import CannotTell, rebuild
from lorakit.files.safetensors import read_header
from lorakit.io.formats._record_v1 import read_operation
from lorakit.io.formats.record import KEY, read_record

WRITTEN = Path(__file__).parents[1] / "data" / "records_v1"
SOURCES = [WRITTEN / f"task{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("pipeline", ["ModuleSelector", "NormBalancer", "SVDMerger"]),
        ("lego", ["LegoMerger"]),
        ("arrays", ["SVDMerger"]),
        ("ties", ["TiesMerger"]),
    ],
)
def test_a_file_of_an_earlier_version(lorakit_json, name, operations):
    metadata = read_header(WRITTEN / name / "adapter_model.safetensors").metadata
    assert json.loads(metadata[KEY])["record"] == 1
    report = lorakit_json("verify", WRITTEN / name, "--sources", *SOURCES)
    assert report["verdict"] == "yes"
    assert list(dict.fromkeys(text.split("(")[0] for text in report["operations"])) == operations


def test_data_of_the_users_own(lorakit_json):
    report = lorakit_json("verify", WRITTEN / "unknowable", "--sources", *SOURCES, code=3)
    assert "RegMeanMerger had grams=" in report["reason"]


def test_written_again_it_has_a_record_of_today(lorakit_json, tmp_path):
    again = save_adapter(load_adapter(WRITTEN / "lego"), tmp_path / "again")
    record = read_record(read_header(again / "adapter_model.safetensors").metadata)
    assert record["record"] == 2
    assert record["operations"][0]["params"]["weights"] == {"dict": [["task0", 2], ["task1", 1], ["task2", 1]]}
    assert lorakit_json("verify", again, "--sources", *SOURCES)["verdict"] == "yes"


@pytest.mark.parametrize(
    "text",
    [
        "SVDMerger(k=__import__('os').system('true'))",
        "SVDMerger(k=(lambda: 4)())",
        "SVDMerger(k=[x for x in range(4)])",
        "SVDMerger(k=4 if True else 5)",
        "SVDMerger(k='4'.__class__)",
        "SVDMerger(k=2 ** 2)",
        "SVDMerger(k=9 * 9)",
        "SVDMerger(weights=np.load('x'))",
        "SVDMerger(weights=array([1], dtype=float32, extra=open('x')))",
        "SVDMerger(k=RankBudget(open('x')))",
        "SVDMerger(k=f'{4}')",
        "SVDMerger(k=b'4')",
        "SVDMerger(k=...)",
        "os.system(x=1)",
        "SVDMerger()(k=4)",
        "eval(x='1')",
        "SVDMerger(k=np.int64(inf))",
        "SVDMerger(weights={[1]: 2})",
        "SVDMerger(k=" + "[" * 500 + "]" * 500 + ")",
        "SVDMerger(4)",
        "SVDMerger(**{'k': 4})",
        "SVDMerger",
        "(" * 500,
    ],
)
def test_nothing_but_plain_values(text):
    with pytest.raises(CannotTell):
        rebuild(read_operation(text), device=None, n_jobs=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1.5", -1.5),
        ("inf", float("inf")),
        ("-inf", float("-inf")),
        ("np.float64(0.25)", 0.25),
        ("np.True_", True),
        ("array([1., 2.])", [1.0, 2.0]),
        ("array([1., 2.], dtype=float32)", [1.0, 2.0]),
        ("{'a': [1, (2, None)]}", {"a": [1, (2, None)]}),
        ("RankBudget(mean=4.5, max_rank=8)", RankBudget(4.5, 8)),
    ],
)
def test_values(text, expected):
    found = rebuild(read_operation(f"SVDMerger(weights={text})"), device=None, n_jobs=None).weights
    assert found == expected
    assert type(found) is type(expected)
