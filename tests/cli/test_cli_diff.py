"""``lorakit diff``, and the distance under it."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.base import GAUGES
from lorakit.cli._differences import differences
from lorakit.testing import Gauge, make_adapters


def changed(adapter, module, factor):
    """The same adapter with one module's update multiplied."""
    return Adapter({name: f.scaled(factor) if name == module else f for name, f in adapter.items()}, name="changed")


@pytest.fixture
def adapter():
    return make_adapters(1, ranks=6, d_in=40, d_out=30, n_modules=3, dtype=torch.float64, random_state=0)[0]


@pytest.mark.parametrize("gauge", GAUGES)
def test_other_factors_of_the_same_updates(lorakit_json, adapter, tmp_path, gauge):
    x = save_adapter(adapter, tmp_path / "x", dtype=torch.float32)
    y = save_adapter(Gauge(gauge)([adapter])[0], tmp_path / "y", dtype=torch.float32)
    report = lorakit_json("diff", x, y, "--all")
    assert report["same"] is True
    assert report["identical"] is False
    assert report["relative_error"] < 3e-7  # and not the root of a rounding error
    assert {row["module"] for row in report["differences"]} == set(adapter)


def test_exact_to_round_off(adapter):
    """In float64 equal updates are 1e-15 apart, and small differences come out with all their digits."""
    (other,) = Gauge("GL(r)")([adapter])
    found, totals = differences(adapter, other)
    assert totals.relative_error < 1e-14
    assert totals.same
    for size in (1e-3, 1e-7, 1e-10):
        found, totals = differences(adapter, changed(other, "layer.1", 1 + size), tolerance=1e-13)
        by_name = {d.module: d for d in found}
        assert by_name["layer.1"].relative_error == pytest.approx(size / (1 + size), rel=1e-3)
        assert [d.module for d in found if not d.same] == ["layer.1"]
        total, part = (math.sqrt(sum(float(f.delta().norm()) ** 2 for f in fs)) for fs in (
            adapter.values(), [adapter["layer.1"]]))  # fmt: skip
        assert totals.relative_error == pytest.approx(size * part / total, rel=1e-2)


def test_dense_reference(adapter):
    other = make_adapters(1, ranks=3, d_in=40, d_out=30, n_modules=3, dtype=torch.float64, random_state=1)[0]
    for d in differences(adapter, other)[0]:
        x, y = adapter[d.module].delta(), other[d.module].delta()
        assert d.norms == pytest.approx((float(x.norm()), float(y.norm())))
        assert d.relative_error == pytest.approx(float((x - y).norm() / max(x.norm(), y.norm())))
        assert d.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))


def test_different(lorakit_, lorakit_json, tasks, tmp_path):
    source = load_adapter(tasks[1])
    other = save_adapter(changed(source, "layer.1", 1.25), tmp_path / "other")
    report = lorakit_json("diff", tasks[1], other, code=1)
    assert (report["same"], report["modules"], report["modules_different"]) == (False, 2, 1)
    (row,) = report["differences"]
    assert row["module"] == "layer.1"
    assert row["relative_error"] == pytest.approx(0.2)
    assert row["cosine"] == pytest.approx(1)
    text = lorakit_("diff", tasks[1], other, code=1).stdout
    assert "Different updates in 1 of 2 modules" in text
    assert "layer.0" not in text
    assert "layer.0" in lorakit_("diff", tasks[1], other, "--all", code=1).stdout
    assert lorakit_json("diff", tasks[1], other, "--tolerance", 0.21)["same"] is True


def test_the_largest_difference_comes_first(lorakit_json, tmp_path):
    (adapter,) = make_adapters(1, ranks=2, n_modules=4, random_state=0)
    other = adapter
    for module, factor in (("layer.1", 1.1), ("layer.3", 2.0), ("layer.2", 1.5)):
        other = changed(other, module, factor)
    paths = [save_adapter(a, tmp_path / name) for a, name in ((adapter, "x"), (other, "y"))]
    rows = lorakit_json("diff", *paths, "--all", code=1)["differences"]
    assert [row["module"] for row in rows] == ["layer.3", "layer.2", "layer.1", "layer.0"]
    assert [row["same"] for row in rows] == [False, False, False, True]


def test_the_same_file(lorakit_, lorakit_json, tasks):
    assert lorakit_json("diff", tasks[0], tasks[0])["identical"] is True
    assert "The same factors, bit for bit, in all 2 modules." in lorakit_("diff", tasks[0], tasks[0]).stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_allowed_for_and_no_more(adapter, tmp_path, lorakit_json, dtype):
    wide = save_adapter(adapter, tmp_path / "wide", dtype=torch.float32)
    half = save_adapter(adapter, tmp_path / "half", dtype=dtype)
    assert lorakit_json("diff", wide, half)["same"] is True
    widened = save_adapter(load_adapter(half), tmp_path / "widened", dtype=torch.float32)
    assert lorakit_json("diff", wide, widened, code=1)["same"] is False  # two float32 files that are further apart
    off = save_adapter(changed(adapter, "layer.0", 1.2), tmp_path / "off", dtype=dtype)
    assert lorakit_json("diff", wide, off, code=1)["modules_different"] == 1


def test_rounding_where_large_units_cancel(tmp_path, lorakit_json):
    """The update is a thousand times smaller than its units, so that half precision leaves two digits of it."""
    torch.manual_seed(0)
    a, b, small = torch.randn(1, 30), torch.randn(20, 1), torch.randn(1, 30)
    factors = LoraFactors(torch.cat([a + 0.02 * small, a]), torch.cat([b, -b], dim=1))
    adapter = Adapter({"m": factors})
    paths = [save_adapter(adapter, tmp_path / str(d), dtype=d) for d in (torch.float32, torch.bfloat16)]
    report = lorakit_json("diff", *paths, "--all")
    assert 0.03 < report["differences"][0]["relative_error"] < report["differences"][0]["tolerance"]


def test_subnormal_numbers_of_half_precision(tmp_path, lorakit_json):
    torch.manual_seed(0)
    tiny = Adapter({"m": LoraFactors(torch.randn(2, 30), torch.randn(20, 2) * 3e-6)})
    paths = [save_adapter(tiny, tmp_path / str(d), dtype=d) for d in (torch.float32, torch.float16)]
    (row,) = lorakit_json("diff", *paths, "--all")["differences"]
    assert 2**-10 * 2 < row["relative_error"] < row["tolerance"] < 0.1


def test_modules_that_one_lacks(lorakit_, lorakit_json, tasks, tmp_path):
    source = load_adapter(tasks[0])
    part = save_adapter(source.select(["layer.0"]), tmp_path / "part")
    report = lorakit_json("diff", tasks[0], part, code=1)
    (row,) = report["differences"]
    assert (row["module"], row["note"], row["relative_error"]) == ("layer.1", "only in task0", 1.0)
    assert "only in task0" in lorakit_("diff", part, tasks[0], code=1).stdout
    # a zero update is what a module that is not there does
    zeros = LoraFactors(torch.zeros(2, 24), torch.zeros(16, 2))
    more = save_adapter(Adapter({**source, "layer.2": zeros}, name="more"), tmp_path / "more")
    report = lorakit_json("diff", tasks[0], more, "--all")
    assert report["same"] is True
    assert report["identical"] is False
    assert [row["note"] for row in report["differences"] if row["module"] == "layer.2"] == ["only in more"]


def test_shapes_that_differ(lorakit_json, tasks, tmp_path):
    wide = save_adapter(make_adapters(1, d_in=48, random_state=0)[0], tmp_path / "wide")
    report = lorakit_json("diff", tasks[0], wide, code=1)
    assert report["relative_error"] is None
    assert report["differences"][0]["note"] == "16 x 24 (linear) / 16 x 48 (linear)"
    linear = Adapter({"m": LoraFactors(torch.ones(1, 12), torch.ones(4, 1))})
    for kernel, misfit in (((1, 1), False), ((3, 2), True)):
        conv = Adapter(dict(linear), kinds={"m": ModuleKind("conv", kernel)})
        assert differences(linear, conv)[1].same is not misfit


def test_formats(lorakit_, tmp_path):
    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    adapter = Adapter({name: LoraFactors(torch.randn(4, 12), torch.randn(8, 4))}, provenance=Provenance(format="kohya"))
    kohya = save_adapter(adapter, tmp_path / "a.safetensors")
    tensors = load_file(kohya)
    tensors[f"{name}.alpha"] = tensors[f"{name}.alpha"] * 3  # the scale is part of the update
    save_file(tensors, tmp_path / "b.safetensors")
    lorakit_("convert", kohya, "-o", tmp_path / "peft", "--to", "peft")
    lorakit_("diff", kohya, tmp_path / "peft")
    lorakit_("diff", tmp_path / "peft", kohya)
    lorakit_("diff", tmp_path / "peft", tmp_path / "b.safetensors", code=1)


def test_families_without_a_way_between(lorakit_, tasks, tmp_path):
    modules = {"diffusion_model.new_layer": LoraFactors(torch.ones(1, 4), torch.ones(4, 1))}
    adapter = Adapter(modules, provenance=Provenance(format="comfyui"))
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    assert "task0: " in lorakit_("diff", path, tasks[0], code=2).stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{0}", "{0}x"], "does not exist"),
        (["{0}"], "Missing argument 'B'"),
        (["{0}", "{0}", "--tolerance", "-1"], "--tolerance"),
        (["{0}", "{0}", "--name", "x"], "--name must be given twice"),
    ],
)
def test_errors(lorakit_, tasks, args, message):
    result = lorakit_("diff", *(arg.format(*tasks) for arg in args), code=2)
    assert message in result.stderr
    assert result.stdout == ""
