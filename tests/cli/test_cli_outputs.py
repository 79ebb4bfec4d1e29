"""Where results go, what is refused, and dry runs."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from lorakit import load_adapter, save_adapter
from lorakit.testing import make_adapters


def test_existing_output_is_refused_before_any_work(lorakit_, tasks, out):
    out.mkdir()
    result = lorakit_("merge", *tasks, "-o", out, "-m", "no such method", code=2)
    assert f"{out}: exists; pass --overwrite to replace it" in result.stderr


def test_overwrite(lorakit_, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-k", 4)
    lorakit_("merge", *tasks, "-o", out, "-k", 6, "--overwrite")
    assert load_adapter(out).ranks == (6,)


def test_overwrite_an_input(lorakit_json, tasks):
    report = lorakit_json("merge", *tasks, "-o", tasks[0], "-k", 6, "--overwrite")
    assert load_adapter(tasks[0]).ranks == (6,)
    assert report["adapters"][0]["rank_in"] == [4]
    assert report["adapters"][0]["cosine"] < 0.99


def test_a_folder_of_other_files_is_never_replaced(lorakit_, tasks, out, contents):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    before = contents(out)
    result = lorakit_("merge", *tasks, "-o", out, "--overwrite", code=2)
    assert "thesis.tex" in result.stderr
    assert contents(out) == before


def test_output_below_a_file(lorakit_, tasks, tmp_path):
    (tmp_path / "file").write_text("")
    result = lorakit_("merge", *tasks, "-o", tmp_path / "file" / "out", code=2)
    assert "is a file; give another path" in result.stderr


def test_prune_one(lorakit_, tasks, out):
    lorakit_("prune", tasks[1], "-o", out, "-k", 3)
    assert load_adapter(out).ranks == (3,)


def test_prune_several(lorakit_json, tasks, out):
    report = lorakit_json("prune", *tasks, "-o", out)
    assert sorted(folder.name for folder in out.iterdir()) == ["task0", "task1", "task2"]
    assert [row["rank_out"] for row in report["adapters"]] == [[2], [4], [4]]
    for row in report["adapters"]:
        assert load_adapter(row["output"]).ranks == tuple(row["rank_out"])
        assert 0 < row["relative_error"] < 1
        assert row["bytes_out"] < row["bytes_in"]
    assert report["rank_out"] == [2, 4]


def test_prune_table(lorakit_, tasks, out):
    lines = lorakit_("prune", *tasks, "-o", out, "-k", 4, "-m", "lego", "-p", "n_init=1").stdout.splitlines()
    assert "rank out" in lines[0]
    assert lines[2].split()[:3] == ["task0", "4", "4"]


@pytest.mark.parametrize("names", [("a/b", "a-b"), ("..", "x"), ("x", "x")])
def test_prune_names_that_make_no_folders(lorakit_, tasks, out, names):
    options = [word for name in names for word in ("--name", name)]
    assert "--name" in lorakit_("prune", *tasks[:2], "-o", out, *options, code=2).stderr
    assert not out.exists()


def test_prune_refuses_every_existing_output_first(lorakit_, tasks, out):
    (out / "task2").mkdir(parents=True)
    assert "task2: exists" in lorakit_("prune", *tasks, "-o", out, code=2).stderr
    assert [folder.name for folder in out.iterdir()] == ["task2"]


@pytest.mark.parametrize("method", ["lego", "svd", "concat"])
@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_dry_run_of_merge_foretells(lorakit_json, tmp_path, method, layout, contents):
    a, b, c = make_adapters(ranks=(2, 4, 6), n_modules=3, random_state=0)
    b = type(b)({module: factors for module, factors in b.items() if module != "layer.1"}, name="b")
    paths = [save_adapter(adapter, tmp_path / "in" / adapter.name) for adapter in (a, b, c)]
    out, before = tmp_path / "out", contents(tmp_path)
    args = ("merge", *paths, "-o", out, "-m", method, "--layout", layout, "--dtype", "bfloat16")
    planned = lorakit_json(*args, "--dry-run")
    assert contents(tmp_path) == before
    assert not out.exists()
    done = lorakit_json(*args)
    assert planned["dry_run"] is True
    for key in ("rank_out", "modules", "dtype", "parameters", "bytes_in"):
        assert planned[key] == done[key]
    assert 0 < done["bytes_out"] - planned["bytes_out"] < 3000  # the header, which has the record, is not counted


def test_dry_run_of_prune_foretells(lorakit_json, tasks, tmp_path, out, contents):
    before = contents(tmp_path)
    planned = lorakit_json("prune", *tasks, "-o", out, "--dry-run")
    assert contents(tmp_path) == before
    assert not out.exists()
    done = lorakit_json("prune", *tasks, "-o", out)
    assert [row["rank_out"] for row in planned["adapters"]] == [row["rank_out"] for row in done["adapters"]]


def test_dry_run_says_so(lorakit_, tasks, out):
    text = lorakit_("merge", *tasks, "-o", out, "--dry-run").stdout
    assert f"dry run, nothing written; would write {out}" in text
    assert "cosine" not in text


def test_dry_run_reads_every_weight(lorakit_, tasks, out):
    file = f"{tasks[1]}/adapter_model.safetensors"
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    tensors[last][0, 0] = float("nan")
    save_file(tensors, file)
    result = lorakit_("merge", *tasks, "-o", out, "--dry-run", code=2)
    assert "1 NaN or infinite values" in result.stderr


def test_dry_run_refuses_existing_output(lorakit_, tasks):
    assert "exists" in lorakit_("merge", *tasks, "-o", tasks[0], "--dry-run", code=2).stderr
