"""``lorakit merge``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorakit import (
    ConcatMerger,
    DareMerger,
    Isotropizer,
    SVDMerger,
    TSVMerger,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.discovery import all_estimators
from lorakit.files.safetensors import FLOAT_DTYPES, read_header
from lorakit.io.formats.record import read_record
from lorakit.metrics import cosine_similarity, relative_error


def same_updates(x, y):
    return set(x) == set(y) and all(torch.allclose(x[m].delta(), y[m].delta(), atol=1e-5) for m in x)


def test_writes_what_the_library_makes(lorakit_, tasks, out, tmp_path, contents):
    lorakit_("merge", *tasks, "-o", out, "-k", 6)
    (merged,) = TSVMerger(k=6, scale="match").fit_transform(load_adapters(tasks))
    assert contents(out) == contents(save_adapter(merged, tmp_path / "by_hand"))


@pytest.mark.parametrize("method", [name for name, cls in all_estimators("merger").items() if not cls.needs_data])
def test_every_method_runs(lorakit_, equal_tasks, out, method):
    lorakit_("merge", *equal_tasks, "-o", out, "--method", method, "-k", 4)
    assert load_adapter(out).ranks == (4,)


def test_table(lorakit_, tasks, out):
    result = lorakit_("merge", *tasks, "-o", out, "-k", 6)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["adapter", "rank", "in", "bytes", "in", "cosine", "relative", "error"]
    assert [line.split()[:2] for line in lines[2:5]] == [["task0", "4"], ["task1", "8"], ["task2", "8"]]
    assert "\ntsv, scale match (times " in result.stdout
    assert " by module) | rank 6 | 2 modules | " in result.stdout
    assert f"wrote {out} (float32, portable)" in result.stdout
    assert result.stderr == ""


def test_json(lorakit_json, tasks, out):
    report = lorakit_json("merge", *tasks, "-o", out, "-k", 6, "--method", "svd")
    merged, sources = load_adapter(out), load_adapters(tasks)
    assert [row["name"] for row in report["adapters"]] == ["task0", "task1", "task2"]
    for row, source, path in zip(report["adapters"], sources, tasks, strict=True):
        assert row["path"] == path
        assert row["rank_in"] == list(source.ranks)
        assert row["cosine"] == pytest.approx(cosine_similarity(merged, source), abs=1e-5)
        assert row["relative_error"] == pytest.approx(relative_error(merged, source), abs=1e-5)
        assert row["bytes_in"] == (Path(path) / "adapter_model.safetensors").stat().st_size
    assert report["rank_out"] == [6]
    assert report["modules"] == 2
    assert report["bytes_out"] == (out / "adapter_model.safetensors").stat().st_size
    assert report["parameters"] == SVDMerger(k=6, scale="match").get_params()
    assert report["seconds"] > 0


@pytest.mark.parametrize("weights", ["1,3,0", "task1=3,task0=1,task2=0"])
def test_weights(lorakit_, tasks, out, weights):
    lorakit_("merge", *tasks, "-o", out, "-m", "concat", "--scale", 1, "--weights", weights)
    (merged,) = ConcatMerger(weights=[1, 3, 0]).fit_transform(load_adapters(tasks))
    assert same_updates(load_adapter(out), merged)


def test_negative_weights(lorakit_, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "concat", "--scale", 1, "--weights", "-1,1,1")
    (merged,) = ConcatMerger(weights=[-1, 1, 1]).fit_transform(load_adapters(tasks))
    assert same_updates(load_adapter(out), merged)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1,2", "one number for each of 3 adapters"),
        ("1,x,2", "neither 1,2,1 nor name=1"),
        ("1,task1=2,task2=2", "name every adapter once, or none"),
        ("task0=1,task0=2,task2=1", "name every adapter once, or none"),
        ("task0=1,task1=2,tsk2=2", "did you mean 'task2'?"),
        ("task0=1,task1=2", "no weight for the adapters ['task2']"),
        ("0,0,0", "not all zero"),
        ("nan,1,1", "finite"),
    ],
)
def test_wrong_weights(lorakit_, tasks, out, weights, message):
    assert message in lorakit_("merge", *tasks, "-o", out, "--weights", weights, code=2).stderr
    assert not out.exists()


def test_scale(lorakit_json, tasks, out):
    report = lorakit_json("merge", *tasks, "-o", out, "-m", "svd")
    assert report["parameters"]["scale"] == "match"
    report = lorakit_json("merge", *tasks, "-o", out, "--scale", "-0.5", "-m", "svd", "--overwrite")
    assert report["parameters"]["scale"] == -0.5


def test_params(lorakit_json, tasks, out):
    args = ("-p", "norm=none", "-p", "align=svd", "-p", "n-init=2", "-p", "output_scale=1.5", "--seed", 7, "-j", 2)
    params = lorakit_json("merge", *tasks, "-o", out, "-m", "lego", *args)["parameters"]
    expected = {"norm": None, "align": "svd", "n_init": 2, "output_scale": 1.5, "random_state": 7, "n_jobs": 2}
    assert expected.items() <= params.items()


def test_a_step_after_another_method(lorakit_, lorakit_json, tasks, out, tmp_path, contents):
    args = ("-p", "merger=dare", "-p", "merger__density=0.3", "-p", "merger__space=core", "-p", "merger__k=9")
    report = lorakit_json("merge", *tasks, "-o", out, "-m", "isotropizer", "-k", 5, *args, "--seed", 7)
    first = DareMerger(density=0.3, space="core", k=9, random_state=7)
    assert report["parameters"]["merger"] == repr(first)
    (merged,) = Isotropizer(first, k=5, scale="match").fit_transform(load_adapters(tasks))
    assert contents(out) == contents(save_adapter(merged, tmp_path / "by_hand"))
    lorakit_("verify", out, "--sources", *tasks)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "isotropizer", "-p", "merger=tis"], "no merger 'tis'; did you mean 'ties'?"),
        (["-m", "isotropizer", "-p", "merger=ties", "-p", "merger__dense=1"], "merger 'ties' has no parameter 'dense'"),
        (["-m", "isotropizer", "-p", "merger=svd", "-p", "merger__random_state=1"], "no parameter 'random_state'"),
        (["-m", "isotropizer", "-p", "merger__k=3"], "merger__k needs a method to belong to: --param merger=METHOD"),
        (["-m", "isotropizer", "-p", "merger=3"], "'merger' parameter of --method isotropizer must be"),
        (["-m", "svd", "-p", "merger__k=3"], "merger 'svd' has no parameter 'merger__k'"),
        (["-m", "leg"], "no merger 'leg'; did you mean 'lego'? The mergers are average, breadcrumbs, concat, "),
        (["-m", "zzzz"], "no merger 'zzzz'. The mergers are"),
        (["-m", "ties", "-p", "densty=0.5"], "no parameter 'densty'; did you mean 'density'?"),
        (["-p", "density"], "is not NAME=VALUE"),
        (["-m", "lego", "-p", "random_state=3"], "has an option of its own: --seed"),
        (["-p", "k=3"], "has an option of its own: -k"),
        (["-m", "lego", "-p", "norm=l3"], "'norm' parameter of --method lego must be"),
        (["-m", "lego", "-p", "n_init=0.5"], "'n_init' parameter of --method lego must be"),
        (["-k", "0"], "'0' is no rank. Give a whole number from 1"),
        (["-k", "21"], "-k 21 is above 20"),
        (["-m", "lego", "--seed", "-1"], "'random_state' parameter of --method lego must be"),
        (["--scale", "big"], "'big' is neither a finite number nor match"),
        (["--device", "nope"], "device 'nope' cannot be used"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--jobs", "0"], "0 is neither a number from 1"),
        (["--name", "one"], "3 different names"),
        (["-m", "average"], "needs one rank"),
        (["-m", "ties", "-p", "space=factors"], "needs one rank"),
    ],
)
def test_wrong_parameters(lorakit_, tasks, out, args, message):
    for dry in ([], ["--dry-run"]):
        result = lorakit_("merge", *tasks, "-o", out, *args, *dry, code=2)
        assert result.stderr.startswith("lorakit: error: ")
        assert message in result.stderr
        assert result.stdout == ""
        assert not out.exists()


def test_names(lorakit_json, tasks, out):
    report = lorakit_json("merge", *tasks, "-o", out, "--name", "a", "--name", "b", "--name", "c", "-w", "a=1,b=1,c=2")
    assert [row["name"] for row in report["adapters"]] == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES.values()])
def test_dtype(lorakit_json, tasks, out, dtype):
    report = lorakit_json("merge", *tasks, "-o", out, "--dtype", dtype, "-m", "svd")
    assert report["dtype"] == dtype
    assert load_adapter(out).dtype == getattr(torch, dtype)


def test_layout(lorakit_json, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    small, large = (load_small(tmp_path, rank) for rank in (2, 6))
    del large["layer.0"]
    for folder, modules in ((first, small), (second, large)):
        save_adapter(as_adapter(modules), folder)
    sizes = {}
    for layout in ("portable", "compact"):
        report = lorakit_json("merge", first, second, "-o", tmp_path / layout, "-m", "concat", "--layout", layout)
        sizes[layout] = report["bytes_out"]
        assert report["rank_out"] == [2, 8]
        assert set(load_adapter(tmp_path / layout).ranks) == ({8} if layout == "portable" else {2, 8})
    assert sizes["compact"] < sizes["portable"]


def load_small(tmp_path, rank):
    from lorakit.testing import make_adapters

    return dict(make_adapters(1, ranks=rank, random_state=rank)[0])


def as_adapter(modules):
    from lorakit import Adapter

    return Adapter(modules)


def test_quiet(lorakit_, tasks, out):
    assert lorakit_("merge", *tasks, "-o", out, "--quiet").output == ""
    assert load_adapter(out)


def test_real_adapters(lorakit_json, real_adapter_paths, out):
    names = ["icd10", "langid_r16", "wn_noun_r4"]
    paths = [real_adapter_paths[name] for name in names]
    report = lorakit_json("merge", *paths, "-o", out, "-k", 12)
    assert [row["rank_in"] for row in report["adapters"]] == [[8], [16], [4]]
    assert all(0.3 < row["cosine"] < 1 for row in report["adapters"])
    assert report["modules"] == len(load_adapter(out)) == 36
    assert load_adapter(out).ranks == (12,)


@pytest.mark.parametrize(
    ("k", "ranks"), [("0.6", None), ("auto", None), ("mean:5", None), ("mean:5,max:5", [5]), ("5", [5])]
)
def test_ranks_by_rule(lorakit_json, tasks, out, k, ranks):
    args = ["merge", *tasks, "-o", out, "-k", k, "--method", "svd", "--layout", "compact"]
    foretold = lorakit_json(*args, "--dry-run")["rank_out"]
    found = lorakit_json(*args)["rank_out"]
    assert found == foretold
    assert ranks is None or found == ranks


def test_padding_for_servers(lorakit_json, tasks, out):
    report = lorakit_json("merge", *tasks, "-o", out, "-k", 5, "--method", "svd", "--pad-to", "server")
    assert report["rank_out"] == [5]
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-k", "mean:x"], "is not mean:N"),
        (["-k", "mean:0.5"], "1 or more"),
        (["-k", "most"], "'most' is no rank"),
        (["--pad-to", "2", "-k", "5"], "padded to 2"),
    ],
)
def test_bad_ranks(lorakit_, tasks, out, args, message):
    result = lorakit_("merge", *tasks, "-o", out, "--method", "svd", *args, code=2)
    assert message in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("scope", ["module", "model"])
def test_the_factor_of_the_scale_is_named(lorakit_, lorakit_json, tasks, out, scope):
    """The command line scales by default and Python does not: the same method, and another adapter."""
    args = ("-m", "svd", "-k", 5, "-p", f"scale_scope={scope}", "--overwrite")
    report = lorakit_json("merge", *tasks, "-o", out, *args)
    own = SVDMerger(k=5).fit(load_adapters(tasks)).merged_
    scaled = load_adapter(out)
    factors = sorted(float(scaled[module].delta().norm() / own[module].delta().norm()) for module in own)
    assert report["factor"]["min"] == pytest.approx(factors[0], rel=1e-4)
    assert report["factor"]["max"] == pytest.approx(factors[-1], rel=1e-4)
    assert (report["factor"]["min"] == report["factor"]["max"]) is (scope == "model")
    (operation,) = read_record(read_header(out / "adapter_model.safetensors").metadata)["operations"]
    assert operation["factor"] == report["factor"]
    assert f"scale match (times {report['factor']['median']:.3g}" in lorakit_("merge", *tasks, "-o", out, *args).stdout
    plain = lorakit_json("merge", *tasks, "-o", out, "-m", "svd", "-k", 5, "--scale", 0.5, "--overwrite")
    assert plain["factor"] == {"min": 0.5, "median": 0.5, "max": 0.5}
    lorakit_("verify", out, "--sources", *tasks)
