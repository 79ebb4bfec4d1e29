"""``lorakit inspect``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import load_adapters, save_adapter
from lorakit.testing import make_adapters


def test_json(lorakit_json, tasks):
    report = lorakit_json("inspect", *tasks)
    adapters = load_adapters(tasks)
    for row, adapter, path in zip(report["adapters"], adapters, tasks, strict=True):
        assert row["name"] == adapter.name
        assert row["format"] == "peft"
        assert row["kinds"] == ["LoRA"]
        assert row["dtype"] == "float32"
        assert row["modules"] == 2
        assert row["ranks"] == {str(adapter.ranks[0]): 2}
        assert row["scaling"] == [1.0]
        assert row["parameters"] == adapter.n_parameters
        assert row["bytes"] == (Path(path) / "adapter_model.safetensors").stat().st_size
    assert report["unreadable"] == []
    assert report["mergeable"] is True
    assert report["equal_ranks"] is False
    flat = torch.stack([torch.cat([f.delta().flatten() for f in adapter.values()]) for adapter in adapters]).double()
    flat /= flat.norm(dim=1, keepdim=True)
    assert torch.allclose(torch.tensor(report["cosines"], dtype=torch.float64), flat @ flat.T, atol=1e-5)


def test_table(lorakit_, tasks):
    result = lorakit_("inspect", *tasks)
    assert result.stdout.startswith("adapter")
    assert "They can be merged with one another, by methods that take different ranks" in result.stdout
    assert "1.0000" in result.stdout
    assert result.stderr == ""


def test_one_adapter_is_compared_with_nothing(lorakit_, tasks):
    text = lorakit_("inspect", tasks[0]).stdout
    assert "merged with" not in text
    assert "Cosines" not in text


def test_equal_ranks(lorakit_, equal_tasks):
    assert "with one another, by every method" in lorakit_("inspect", *equal_tasks).stdout


def test_scaling_of_real_adapters(lorakit_json, real_adapter_paths):
    rows = lorakit_json("inspect", real_adapter_paths["icd10"], real_adapter_paths["wn_noun_r4"])["adapters"]
    assert [row["scaling"] for row in rows] == [[2.0], [2.0]]
    assert rows[0]["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_not_mergeable_is_no_error(lorakit_, lorakit_json, tasks, tmp_path):
    wide = save_adapter(make_adapters(1, d_in=48, random_state=0)[0], tmp_path / "wide")
    report = lorakit_json("inspect", tasks[0], wide)
    assert report["mergeable"] is False
    assert "16 x 48" in report["reason"]
    assert report["cosines"] is None
    text = lorakit_("inspect", tasks[0], wide).stdout
    assert "cannot be merged with one another: module 'layer.0' differs" in text


@pytest.mark.parametrize("damage", ["missing", "truncated", "nan"])
def test_one_unreadable_of_three(lorakit_, lorakit_json, tasks, damage):
    file = Path(tasks[1]) / "adapter_model.safetensors"
    if damage == "missing":
        tasks[1] += "x"
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        tensors = load_file(file)
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, file)
    result = lorakit_("inspect", *tasks, code=2)
    assert result.stderr.startswith("lorakit: error: ")
    assert "task1" in result.stderr
    assert "task0" in result.stdout
    assert "task2" in result.stdout
    report = lorakit_json("inspect", *tasks, code=2)
    assert [row["name"] for row in report["adapters"]] == ["task0", "task2"]
    assert [row["path"] for row in report["unreadable"]] == [tasks[1]]


def test_nothing_readable(lorakit_, tmp_path):
    result = lorakit_("inspect", tmp_path, code=2)
    assert "holds no adapter" in result.stderr
    assert result.stdout == ""


def test_many_adapters_get_no_matrix(lorakit_json, tmp_path):
    paths = [save_adapter(a, tmp_path / a.name) for a in make_adapters(21, ranks=1, n_modules=1, random_state=0)]
    report = lorakit_json("inspect", *paths)
    assert report["mergeable"] is True
    assert report["cosines"] is None


def test_names(lorakit_json, lorakit_, tasks):
    rows = lorakit_json("inspect", *tasks[:2], "--name", "x", "--name", "y")["adapters"]
    assert [row["name"] for row in rows] == ["x", "y"]
    assert "2 times" in lorakit_("inspect", *tasks[:2], "--name", "x", code=2).stderr
