"""``lorakit merge A:0.7 B:-0.3``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit import ConcatMerger, TSVMerger, load_adapter, load_adapters, save_adapter
from lorakit.discovery import all_estimators


def test_gives_the_sum(lorakit_, tasks, out):
    lorakit_("merge", f"{tasks[0]}:0.7", f"{tasks[1]}:-0.3", tasks[2], "-o", out, "-m", "concat")
    merged, sources = load_adapter(out), load_adapters(tasks)
    for module, factors in merged.items():
        wanted = sum(
            c * (x[module].B.double() @ x[module].A.double()) for c, x in zip((0.7, -0.3, 1), sources, strict=True)
        )
        assert float((factors.delta().double() - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize(("options", "scale"), [((), 1.0), (("--scale", "match"), "match"), (("--scale", "2"), 2)])
def test_scale_is_match_only_where_it_is_asked_for(lorakit_json, tasks, out, tmp_path, contents, options, scale):
    report = lorakit_json("merge", f"{tasks[0]}:0.7", f"{tasks[1]}:-0.3", "-o", out, *options)
    assert report["parameters"]["scale"] == scale
    assert [row["strength"] for row in report["adapters"]] == [0.7, -0.3]
    merged = TSVMerger(strengths=[0.7, -0.3], scale=scale).fit(load_adapters(tasks[:2])).merged_
    assert contents(out) == contents(save_adapter(merged, tmp_path / "by_hand"))


def test_strengths_are_shown_and_verified(lorakit_, tasks, out):
    shown = lorakit_("merge", f"{tasks[0]}:0.7", tasks[1], "-o", out).stdout.splitlines()
    assert shown[0].split()[:2] == ["adapter", "strength"]
    assert [line.split()[:2] for line in shown[2:4]] == [["task0", "0.7"], ["task1", "1"]]
    assert "tsv, scale 1.0 (times 1) | rank 12" in "".join(shown)
    assert "bit for bit" in lorakit_("verify", out, "--sources", *tasks[:2]).stdout


def test_paths_with_colons(lorakit_, tasks, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(tasks[0]).rename("a:0.7")
    Path(tasks[1]).rename("b:c")
    lorakit_("merge", "a:0.7", "b:c:0.5", "-o", out, "-m", "concat")
    sources = load_adapters(["a:0.7", "b:c"])
    wanted = ConcatMerger(strengths=[1, 0.5]).fit(sources).merged_
    assert torch.equal(load_adapter(out)["layer.0"].delta(), wanted["layer.0"].delta())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{0}:0.7", "{1}", "-w", "1,2"), "--weights are shares"),
        (("{0}:0.7x", "{1}"), "'0.7x' is no strength"),
        (("{0}:nan", "{1}"), "finite number"),
        (("{0}:0", "{1}:0"), "strengths must be finite and not all zero"),
        (("{0}", "{1}", "-p", "strengths=[1,2]"), "has an option of its own: ADAPTER:STRENGTH"),
    ],
)
def test_errors(lorakit_, tasks, out, arguments, message):
    result = lorakit_("merge", *(text.format(*tasks) for text in arguments), "-o", out, code=2)
    assert message in result.stderr
    assert not Path(out).exists()


@pytest.mark.parametrize("method", [name for name, cls in all_estimators("merger").items() if not cls.needs_data])
def test_every_method_subtracts(lorakit_, equal_tasks, out, method):
    lorakit_("merge", f"{equal_tasks[0]}:1", f"{equal_tasks[1]}:-0.5", "-o", out, "--method", method, "-k", 4)
    assert load_adapter(out).ranks == (4,)
