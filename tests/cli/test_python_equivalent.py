"""The line that says in Python what a command did makes the same adapter."""

from __future__ import annotations

import pytest
import torch
from sklearn.pipeline import make_pipeline

import lorakit
from lorakit import load_adapters, save_adapter
from lorakit.cli._pipelines import in_python

MERGES = [
    ["-k", 6],
    ["-m", "svd", "-k", "sv_fro:0.9"],
    ["-m", "lego", "-k", 4, "-p", "n_init=3", "--seed", 5],
    ["-m", "ties", "-p", "density=0.3", "--scale", 1, "--weights", "1,2,1"],
    ["-m", "svd", "-k", "mean:4", "--module-weights", "task1@.*=0.5"],
    ["-m", "svc_calibrator", "-p", "merger=ties", "-p", "merger__density=0.3"],
    ["-m", "dare", "-p", "density=0.5", "-k", 4, "--seed", 3, "--jobs", 2],
]


def _evaluated(text):
    return eval(text, {name: getattr(lorakit, name) for name in lorakit.__all__} | {"make_pipeline": make_pipeline})


@pytest.mark.parametrize("args", MERGES, ids=lambda args: " ".join(map(str, args)))
def test_a_merge(lorakit_, lorakit_json, tasks, out, args, tmp_path, contents):
    text = lorakit_json("merge", *tasks, "-o", out, *args)["python"]
    (merged,) = _evaluated(text).fit_transform(load_adapters(tasks))
    assert contents(save_adapter(merged, tmp_path / "by_hand")) == contents(out)
    last = lorakit_("merge", *tasks, "-o", tmp_path / "again", *args).stdout.splitlines()[-1]
    assert last == f"in Python: {text}"


def test_strengths(lorakit_json, tasks, out, tmp_path, contents):
    given = [f"{path}:{strength}" for path, strength in zip(tasks, (0.7, -0.3, 1), strict=True)]
    text = lorakit_json("merge", *given, "-o", out, "-m", "concat")["python"]
    assert text == "ConcatMerger(strengths=[0.7, -0.3, 1.0])"
    (merged,) = _evaluated(text).fit_transform(load_adapters(tasks))
    assert contents(save_adapter(merged, tmp_path / "by_hand")) == contents(out)


def test_a_prune(lorakit_json, tasks, out, tmp_path, contents):
    text = lorakit_json("prune", *tasks, "-o", out, "-k", "sv_ratio:2,max:3")["python"]
    for pruned, path in zip(_evaluated(text).fit_transform(load_adapters(tasks)), sorted(out.iterdir()), strict=True):
        assert contents(save_adapter(pruned, tmp_path / path.name)) == contents(path)


def test_what_has_no_short_text_is_left_out():
    assert in_python(lorakit.DistillMerger(k=4, model=torch.nn.Linear(2, 2))) is None
    assert in_python(lorakit.ConcatMerger(strengths=[0.125] * 100)) is None


def test_a_dry_run_says_it_too(lorakit_, tasks, out):
    assert "in Python: TSVMerger(k=6, scale='match')" in lorakit_("merge", *tasks, "-o", out, "-k", 6, "-n").stdout
