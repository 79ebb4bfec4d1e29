"""Other kinds of adapter than plain LoRA, as the commands show and convert them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import load_adapter
from lorakit.adapters import ModuleKind
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import read_record

A, B = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_down_blocks_0_attentions_1_proj_out"


@pytest.fixture
def loha(tmp_path):
    """A LoHa of rank 3 beside a LoKr, with alpha, in half precision."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        A: {"hada_w1_a": (12, 3), "hada_w1_b": (3, 15), "hada_w2_a": (12, 3), "hada_w2_b": (3, 15), "alpha": ()},
        B: {"lokr_w1": (2, 3), "lokr_w2": (8, 8)},
    }
    tensors = {
        f"{module}.{part}": torch.randn(shape, generator=rng).half()
        for module, parts in shapes.items()
        for part, shape in parts.items()
    }
    save_file(tensors, tmp_path / "loha.safetensors")
    return tmp_path / "loha.safetensors"


def test_inspect_says_the_kinds(lorakit_json, lorakit_, loha):
    (row,) = lorakit_json("inspect", loha)["adapters"]
    assert row["kinds"] == ["LoHa", "LoKr"]
    assert row["ranks"] == {"9": 1, "16": 1}
    assert "LoHa, LoKr" in lorakit_("inspect", loha).stdout


def test_convert_is_exact_without_a_rank(lorakit_json, loha, out):
    report = lorakit_json("convert", loha, "-o", f"{out}.safetensors", "--dtype", "float32")
    assert (report["rank_in"], report["rank_out"], report["cut"]) == ([9, 16], [9, 16], None)
    plain, source = load_adapter(f"{out}.safetensors"), load_adapter(loha)
    assert plain.provenance.stored_as == ("LoRA",)
    for module, factors in source.items():
        torch.testing.assert_close(plain[module].delta(), factors.delta(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_convert_to_a_rank_reports_the_error_of_the_cut(lorakit_json, loha, tmp_path, target):
    made = tmp_path / "plain.safetensors"
    report = lorakit_json("convert", loha, "-o", made, "-k", 4, "--to", target, "--dtype", "float32")
    assert report["rank_out"] == [4]
    source = load_adapter(loha)
    squares = {}
    for module, factors in source.items():
        s = torch.linalg.svdvals(factors.delta().double())
        squares[module] = float(s[4:].square().sum()), float(s.square().sum())
        lost, whole = squares[module]
        assert report["cut"]["relative_errors"][module] == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    total = (sum(lost for lost, _ in squares.values()) / sum(whole for _, whole in squares.values())) ** 0.5
    assert report["cut"]["relative_error"] == pytest.approx(total, rel=1e-4)
    worst = max(squares, key=lambda module: squares[module][0] / squares[module][1])
    assert report["cut"]["worst_module"]["module"] == worst
    written = list(load_adapter(made).values())
    errors = sorted(squares[module][0] ** 0.5 for module in source)
    left = sorted(
        float(min((f.delta() - g.delta()).norm() for g in written if g.delta().shape == f.delta().shape))
        for f in source.values()
    )
    assert left == pytest.approx(errors, rel=1e-4)


def test_the_table_says_what_was_cut(lorakit_, loha, out):
    text = lorakit_("convert", loha, "-o", f"{out}.safetensors", "-k", 4).stdout
    assert "Cut to rank 4: relative error of the update 0." in text
    assert "Read back and compared" in text


def test_a_rank_above_its_own_cuts_nothing(lorakit_json, loha, out):
    report = lorakit_json("convert", loha, "-o", f"{out}.safetensors", "-k", 64, "--dtype", "float32")
    assert report["rank_out"] == [9, 16]
    assert report["cut"]["relative_error"] < 1e-6


def test_a_share_of_the_energy(lorakit_json, loha, out):
    report = lorakit_json("convert", loha, "-o", f"{out}.safetensors", "-k", "0.9", "--dtype", "float32")
    assert 0 < report["cut"]["relative_error"] <= 0.1**0.5


def test_a_convolution_keeps_its_kernel(lorakit_json, tmp_path):
    rng = torch.Generator().manual_seed(0)
    shapes = {"lokr_w1": (2, 3), "lokr_w2": (4, 5, 3, 3)}
    tensors = {f"lora_unet_conv.{part}": torch.randn(s, generator=rng) for part, s in shapes.items()}
    save_file(tensors, tmp_path / "in.safetensors")
    lorakit_json("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", "-k", 2)
    (info,) = load_adapter(tmp_path / "out.safetensors").infos.values()
    assert info == (2, 135, 8, ModuleKind("conv", (3, 3)))


@pytest.fixture
def pissa(tmp_path):
    """A PiSSA, the adapter that it began as, and its base, as paths."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=rng)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    half = s[:2].sqrt()
    before = {"A": half[:, None] * vh[:2], "B": u[:, :2] * half}
    after = {part: tensor + torch.randn(tensor.shape, generator=rng) / 4 for part, tensor in before.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    for folder, factors, init in (("before", before, True), ("after", after, "pissa")):
        (tmp_path / folder).mkdir()
        tensors = {f"base_model.model.q.lora_{part}.weight": t.contiguous() for part, t in factors.items()}
        save_file(tensors, tmp_path / folder / "adapter_model.safetensors")
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": init}))
    save_file({"q.weight": weight}, tmp_path / "base.safetensors")
    update = after["B"] @ after["A"] - before["B"] @ before["A"]
    return tmp_path / "after", tmp_path / "before", tmp_path / "base.safetensors", update


@pytest.mark.parametrize("given", ["initial", "initial by name", "base"])
@pytest.mark.parametrize("command", ["convert", "merge", "prune", "bake", "inspect"])
def test_a_pissa_is_read_with_what_it_began_as(lorakit_, lorakit_json, pissa, out, command, given):
    after, before, base, update = pissa
    option = {
        "initial": ("--initial", before),
        "initial by name": ("--initial", f"after={before}"),
        "base": ("--base", base),
    }[given]
    if command == "inspect":
        (row,) = lorakit_json("inspect", after, *option)["adapters"]
        assert (row["kinds"], row["ranks"]) == (["PiSSA"], {"4": 1})
        return
    if command == "bake":
        lorakit_("bake", base, after, "-o", f"{out}.safetensors", *(() if given == "base" else option))
        found = load_file(f"{out}.safetensors")["q.weight"] - load_file(base)["q.weight"]
    else:
        lorakit_(
            command, after, "-o", out, *option, *({"merge": ("--scale", "1"), "prune": ("-k", 4)}.get(command, ()))
        )
        found = load_adapter(out)["q"].delta()
    torch.testing.assert_close(found, update, rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", ["--initial", "--base"])
@pytest.mark.parametrize("command", ["convert", "merge", "prune"])
def test_a_recipe_says_what_it_began_as(lorakit_, pissa, tmp_path, contents, command, option):
    after, before, base, _ = pissa
    recipe, one, two = tmp_path / "r.yaml", tmp_path / "one", tmp_path / "two"
    given = [option, before if option == "--initial" else base]
    lorakit_(command, after, *given, "-o", one, "--save-recipe", recipe)
    lorakit_(command, "--recipe", recipe, "-o", two)
    assert contents(one) == contents(two)


def test_a_pissa_alone_says_what_it_needs(lorakit_, pissa, out):
    after, before, _, _ = pissa
    text = lorakit_("convert", after, "-o", out, code=2).output
    assert "pass --initial, the adapter that training began with, or pass --base, the model" in text
    text = lorakit_("convert", after, "-o", out, "--initial", before, "--initial", before, code=2).output
    assert "give one path for all adapters, or NAME=PATH" in text
    text = lorakit_("convert", after, "-o", out, "--initial", f"law={before}", code=2).output
    assert "--initial names 'law'. The adapters are after." in text


@pytest.fixture
def dora(tmp_path):
    """A DoRA and its base, as paths, and the change that it makes."""
    rng = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=rng) for shape in ((8, 6), (2, 6), (8, 2)))
    lengths = weight.norm(dim=1) * (1 + torch.rand(8, generator=rng) / 4)
    tensors = {"lora_A.weight": a / 4, "lora_B.weight": b / 4, "lora_magnitude_vector": lengths}
    (tmp_path / "dora").mkdir()
    save_file(
        {f"base_model.model.q.{part}": tensor for part, tensor in tensors.items()},
        tmp_path / "dora" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True}
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps(config))
    save_file({"q.weight": weight}, tmp_path / "base.safetensors")
    whole = weight + b @ a / 16
    return (
        tmp_path / "dora",
        tmp_path / "base.safetensors",
        lengths[:, None] * whole / whole.norm(dim=1)[:, None] - weight,
    )


def test_a_dora_is_cut_and_its_error_reported_and_recorded(lorakit_, lorakit_json, dora, out):
    path, base, change = dora
    s = torch.linalg.svdvals(change.double())
    expected = float(s[3:].norm() / s.norm())
    report = lorakit_json("convert", path, "-o", out, "--base", base, "-k", 3)
    assert report["cut"]["relative_error"] == pytest.approx(expected, rel=1e-4)
    written = load_adapter(out)["q"].delta()
    assert float((written - change).norm() / change.norm()) == pytest.approx(expected, rel=1e-4)
    (operation,) = read_record(read_header(out / "adapter_model.safetensors").metadata)["operations"]
    assert (operation["class"], operation["params"]["k"]) == ("SVDPruner", 3)
    assert operation["relative_error"] == pytest.approx(expected, rel=1e-4)
    assert lorakit_json("verify", out, "--sources", path, "--base", base)["verdict"] == "yes"
    text = lorakit_("convert", path, "-o", out, "--base", base, "-k", 3, "--overwrite").stdout
    assert f"Cut to rank 3: relative error of the update {expected:.2g}" in text


def test_a_dora_is_merged_and_baked(lorakit_, dora, tasks, out, tmp_path):
    path, base, change = dora
    lorakit_(
        "merge",
        path,
        path,
        "-o",
        out,
        "--base",
        base,
        "-k",
        6,
        "--scale",
        1,
        "--method",
        "svd",
        "--name",
        "x",
        "--name",
        "y",
    )
    torch.testing.assert_close(load_adapter(out)["q"].delta(), change, rtol=0, atol=1e-5)
    lorakit_("bake", base, path, "-o", tmp_path / "baked.safetensors")
    found = load_file(tmp_path / "baked.safetensors")["q.weight"] - load_file(base)["q.weight"]
    torch.testing.assert_close(found, change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("command", ["convert", "merge", "prune"])
def test_a_dora_without_a_rank_or_a_base(lorakit_, dora, out, command):
    path, base, _ = dora
    text = lorakit_(command, path, "-o", out, "--base", base, code=2).output
    assert "dora: is a DoRA, whose update of the base has full rank; pass -k, the rank to cut it to" in text
    text = lorakit_(command, path, "-o", out, "-k", 3, code=2).output
    assert "use_dora is set: DoRA" in text
    assert "pass --base, the model that it was trained on" in text
    assert not out.exists()


def test_inspect_says_what_each_is_read_as(lorakit_json, lorakit_, loha):
    """The rank that is said is that of the update, and what is not exact is not called so."""
    (row,) = lorakit_json("inspect", loha)["adapters"]
    assert row["read_as"] == "plain LoRA of rank 9/16, exactly (LoHa: r^2; LoKr: rank of w1 times rank of w2)"
    assert row["family"] == "Stable Diffusion 1, 2 or XL (kohya names)"
    assert row["trainer"] is None
    text = lorakit_("inspect", loha).stdout
    assert "Trainer unknown; for Stable Diffusion 1, 2 or XL (kohya names); read as" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_inspect_says_what_is_read_with_more_than_the_file(lorakit_json, pissa, tmp_path):
    (row,) = lorakit_json("inspect", pissa[0], "--base", pissa[2])["adapters"]
    assert row["read_as"] == "plain LoRA of rank 4, exactly (PiSSA: 2 r)"


def test_inspect_says_that_a_dora_has_full_rank(lorakit_json, dora):
    (row,) = lorakit_json("inspect", dora[0], "--base", dora[1])["adapters"]
    assert row["read_as"] == "the change that it makes to the base, of full rank 6; -k cuts it and reports the error"


def test_inspect_says_what_is_the_same_once(lorakit_, equal_tasks):
    text = " ".join(lorakit_("inspect", *equal_tasks).stdout.split())
    assert text.count("All: trainer lorakit") == 1
    assert text.count("exactly.") == 1
