"""bake, extract and fit on the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import load_adapter, save_adapter
from lorakit.cli._values import split_strength
from lorakit.testing import make_adapters


@pytest.fixture
def base(tmp_path):
    """A base of two shards that the adapters of make_adapters fit."""
    folder = tmp_path / "base"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    placed = {}
    for i in range(2):
        content = {f"model.layer.{i}.weight": torch.randn(16, 24, generator=generator), f"norm{i}": torch.ones(4)}
        save_file(content, folder / f"part{i}.safetensors", metadata={"format": "pt"})
        placed |= dict.fromkeys(content, f"part{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (folder / "config.json").write_text("{}")
    return folder


def weights(folder):
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


@pytest.fixture
def two(tmp_path):
    return [str(save_adapter(a, tmp_path / a.name)) for a in make_adapters(2, ranks=4, random_state=0)]


def test_bake_and_verify(lorakit_, lorakit_json, base, two, out):
    report = lorakit_json("bake", base, f"{two[0]}:0.7", f"{two[1]}:-.5", "-o", out)
    assert [row["strength"] for row in report["adapters"]] == [0.7, -0.5]
    assert (report["tensors"], report["tensors_changed"]) == (4, 2)
    first, second = (load_adapter(path) for path in two)
    made, before = weights(out), weights(base)
    for i in range(2):
        update = 0.7 * first[f"layer.{i}"].delta() - 0.5 * second[f"layer.{i}"].delta()
        torch.testing.assert_close(made[f"model.layer.{i}.weight"], before[f"model.layer.{i}.weight"] + update)
    assert lorakit_json("verify", out, "--sources", base, *two)["verdict"] == "yes"
    shown = lorakit_("verify", out, "--sources", base, *reversed(two), code=1).stdout
    assert "no: 2 of 4 tensors are not what these sources give, first 'model.layer.0.weight'" in shown
    assert lorakit_json("verify", out, "--sources", base, two[0], code=3)["reason"].startswith(
        "it was made of a base and"
    )
    save_file({"other": torch.ones(2)}, base.parent / "other.safetensors")
    other = lorakit_json("verify", out, "--sources", base.parent / "other.safetensors", *two, code=3)
    assert "is not the base that it was made of" in other["reason"]


def test_bake_says_what_it_did(lorakit_, base, two, out):
    (base / "model.gguf").write_text("x")
    text = lorakit_("bake", base, two[0], "-o", out).stdout
    assert "changes 2 of the 4 tensors of" in text
    assert "leaves out, as other copies of the base's weights: model.gguf" in text
    assert "rounding took at most" in text
    assert text.endswith(f"wrote {out}\n")
    assert lorakit_("bake", base, two[0], "-o", out, "--overwrite", "-q").stdout == ""


def test_bake_dry_run(lorakit_, lorakit_json, base, two, out):
    assert lorakit_json("bake", base, two[0], "-o", out, "--dry-run")["dry_run"]
    assert "dry run, nothing written; would write" in lorakit_("bake", base, two[0], "-o", out, "-n").stdout
    assert not out.exists()
    out.mkdir()
    (out / "notes").write_text("mine")
    for options in ((), ("--overwrite",)):
        assert "notes" in lorakit_("bake", base, two[0], "-o", out, "-n", *options, code=2).stderr or not options


@pytest.mark.parametrize("where", ["base", "missing", "lies", "shape", "module", "strength"])
def test_bake_refuses(where, lorakit_, base, two, tmp_path):
    out, adapter = tmp_path / "out", two[0]
    lorakit_("bake", base, adapter, "-o", out, "-q")
    before = weights(out)
    if where == "base":
        out, message = base, "is the base, in it or around it"
    elif where == "missing":
        (base / "part1.safetensors").unlink()
        message = "part1.safetensors: is missing"
    elif where == "lies":
        index = json.loads((base / "model.safetensors.index.json").read_text())
        index["weight_map"]["norm0"] = "part1.safetensors"
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        message = "says that 'norm0' is in part1.safetensors"
    elif where == "shape":
        save_file({"model.layer.0.weight": torch.ones(16, 23), "norm0": torch.ones(4)}, base / "part0.safetensors")
        message = "'model.layer.0.weight' has the shape (16, 23), expected (16, 24)"
    elif where == "module":
        moved = load_adapter(adapter).rename_modules(lambda module: f"{module}.q")
        adapter, message = save_adapter(moved, tmp_path / "moved"), "has no tensor for 2 of the modules of 'moved'"
    else:
        adapter, message = f"{adapter}:nan", "is not ADAPTER:STRENGTH with a finite number"
    assert message in " ".join(lorakit_("bake", base, adapter, "-o", out, "--overwrite", code=2).stderr.split())
    assert {name: tensor.tolist() for name, tensor in weights(tmp_path / "out").items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }


def test_a_path_may_hold_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("law", "law:0.7"):
        (tmp_path / name).mkdir()
    assert split_strength("law:0.7") == ("law:0.7", None)
    assert split_strength("law:0.7:0.5") == ("law:0.7", 0.5)
    assert split_strength("law:1e-1") == ("law", 0.1)
    assert split_strength("org/name:-2") == ("org/name", -2.0)
    assert split_strength("C:\\adapters\\law") == ("C:\\adapters\\law", None)
    for wrong in ("law:much", "law:inf", ":0.5"):
        with pytest.raises(Exception, match=r"is no strength|finite number"):
            split_strength(wrong)


def test_extract_and_verify(lorakit_, lorakit_json, base, two, tmp_path, out):
    tuned, adapter = tmp_path / "tuned", load_adapter(two[0])
    lorakit_("bake", base, two[0], "-o", tuned, "-q")
    assert lorakit_json("extract", tuned, base, "-k", 4, "-o", out, "--dry-run")["dry_run"]
    assert not out.exists()
    report = lorakit_json("extract", tuned, base, "-k", 4, "-o", out)
    assert report["kept"] == pytest.approx(1, abs=1e-6)
    assert [module["rank"] for module in report["modules"]] == [4, 4]
    again = load_adapter(out)
    for module in adapter:
        torch.testing.assert_close(again[f"model.{module}"].delta(), adapter[module].delta(), rtol=1e-4, atol=1e-4)
    assert lorakit_json("verify", out, "--sources", tuned, base)["verdict"] == "yes"
    assert lorakit_json("verify", out, "--sources", tuned, code=3)["reason"].startswith("it was extracted from two")
    text = lorakit_("extract", tuned, base, "-k", "0.5", "-o", out, "--overwrite").stdout
    assert "of the energy of their changes is kept; rounding alone would make" in text
    sized = lorakit_json("extract", tuned, base, "-k", "size:6kB", "-o", out, "--overwrite", "--layout", "compact")
    assert 1 <= min(sized["rank"]) <= 4
    assert (out / "adapter_model.safetensors").stat().st_size <= 6000
    lorakit_("extract", tuned, base, "-k", "sv_ratio:1.5", "-o", out, "--overwrite", "--layout", "compact")
    for module, factors in load_adapter(out).items():
        s = torch.linalg.svdvals(adapter[module.removeprefix("model.")].delta())
        assert factors.rank == int((s >= s[0] / 1.5).sum())
    assert lorakit_json("verify", out, "--sources", tuned, base)["verdict"] == "yes"


def test_extract_refuses(lorakit_, base, tmp_path, two, out):
    tuned = tmp_path / "tuned"
    lorakit_("bake", base, two[0], "-o", tuned, "-q")
    save_file({**load_file(tuned / "part0.safetensors"), "norm0": torch.zeros(4)}, tuned / "part0.safetensors")
    done = lorakit_("extract", tuned, base, "-k", 4, "-o", out, code=2)
    assert "'norm0' (a vector (a norm or a bias)" in done.stderr
    assert "--rest drop" in done.stderr
    assert "left out: norm0 (a vector" in lorakit_("extract", tuned, base, "-k", 4, "-o", out, "--rest", "drop").stdout
    for rank in ("0", "size:many", "nothing", "sv_fro:2", "sv_ratio:x"):
        lorakit_("extract", tuned, base, "-k", rank, "-o", tmp_path / "new", code=2)
    assert "nothing differs" not in done.stderr


def test_fit(lorakit_, lorakit_json, base, two, tmp_path, out):
    report = lorakit_json("fit", base, *two)
    assert report["fits"]
    assert [row["tensors"] for row in report["adapters"]] == [2, 2]
    moved = save_adapter(load_adapter(two[0]).rename_modules(lambda module: f"text.{module}"), tmp_path / "moved")
    # one beginning for another is no longer the same name: it is proposed, and not taken
    found = lorakit_json("fit", base, two[1], moved, code=1)
    assert [row["fits"] for row in found["adapters"]] == [True, False]
    assert found["adapters"][1]["renaming"] == {f"text.layer.{i}": f"model.layer.{i}" for i in range(2)}
    other = load_adapter(two[0]).rename_modules(lambda m: m.replace("layer", "model.block"))
    other = save_adapter(other, tmp_path / "other")
    text = lorakit_("fit", base, other, code=1).stdout
    assert "model.block.0: no tensor; the base has" in text
    done = lorakit_("fit", base, other, "--rename", out, code=2)
    assert "so there is nothing to rename" in done.stderr
    lorakit_("fit", base.parent / "nothing", two[0], code=2)


def test_fit_renames(lorakit_, lorakit_json, base, two, tmp_path, out):
    named = load_adapter(two[0]).rename_modules(lambda module: f"language.{module}")
    path = save_adapter(named, tmp_path / "named")
    for file in base.glob("*.safetensors"):
        content = {name.replace("model.", "text."): tensor for name, tensor in load_file(file).items()}
        save_file(content, file)
    index = (base / "model.safetensors.index.json").read_text().replace("model.layer", "text.layer")
    (base / "model.safetensors.index.json").write_text(index)
    found = lorakit_json("fit", base, path, "--rename", out, code=1)
    assert found["renamed"] == str(out)
    assert lorakit_json("fit", base, out)["fits"]
    assert "fits as it is" in lorakit_("fit", base, out, "--rename", tmp_path / "again", code=2).stderr


def test_extract_writes_a_file_of_a_format(lorakit_, lorakit_json, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"double_blocks.0.img_attn.qkv": (24, 8), "single_blocks.0.modulation.lin": (24, 8)}
    base = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = {name: weight + 0.01 * torch.outer(weight[:, 0], weight[0]) for name, weight in base.items()}
    paths = [tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"]
    for path, tensors in zip(paths, (tuned, base), strict=True):
        save_file(tensors, path)
    out, recipe = tmp_path / "out.safetensors", tmp_path / "recipe.yaml"
    lorakit_("extract", *paths, "-k", 1, "-o", out, "--format", "kohya", "--save-recipe", recipe)
    assert set(load_adapter(out)) == {"lora_unet_" + name.replace(".", "_") for name in shapes}
    assert lorakit_json("verify", out, "--sources", *paths)["verdict"] == "yes"
    again = tmp_path / "again" / out.name  # the file holds its name
    again.parent.mkdir()
    lorakit_("extract", "--recipe", recipe, "-o", again)
    assert again.read_bytes() == out.read_bytes()
    split = tmp_path / "split.safetensors"
    lorakit_("extract", *paths, "-k", 1, "-o", split, "--format", "diffusers")
    assert "transformer.transformer_blocks.0.attn.to_k" in load_adapter(split)
