"""``lorakit replay``: the outputs of every command, byte for byte; and what it says where that cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.pipeline import make_pipeline

import lorakit._version
from lorakit import (
    Adapter,
    LegoMerger,
    LoraFactors,
    ModuleSelector,
    NormBalancer,
    SVDMerger,
    SVDPruner,
    convert_adapter,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.adapters import Provenance
from lorakit.cli._conversions import converted, renamed_modules
from lorakit.testing import make_adapters


@pytest.fixture
def replayed(lorakit_json, tmp_path):
    """Replay an output; every byte must be the same, and the output stays as it was."""

    def run(out, *sources):
        sources = sources or [tmp_path / "in"]
        report = lorakit_json("replay", out, "--sources", *sources)
        assert report["verdict"] == "the same", report
        assert report["files"]
        return report

    return run


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "ties", "-p", "density=0.3", "--dtype", "bfloat16", "-k", "5"],
        ["--method", "lego", "-k", "6", "--seed", "3", "--layout", "compact"],
        ["--method", "svc_calibrator", "-k", "4", "-p", "merger=dare", "--pad-to", "32"],
        ["--method", "ties", "-k", "sv_ratio:3,max:5"],
        ["--method", "svd", "-k", "size:20kB", "--name", "a", "--name", "b/c", "--name", "task0"],
    ],
    ids=lambda options: "-".join(options[1::2]),
)
def test_a_merge(lorakit_, replayed, tasks, out, options):
    lorakit_("merge", *tasks, "-o", out, *options)
    replayed(out)


def test_strengths_and_recipes(lorakit_, replayed, tasks, out, tmp_path):
    lorakit_("merge", f"{tasks[0]}:0.7", f"{tasks[1]}:-0.3", "-o", out)
    replayed(out)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "sources: [in/task0, in/task1, in/task2]\noutput: many\nsteps: [select: {exclude: '*.1'}, prune: {k: 3}, "
        "balance, merge: {method: lego, k: 4}, calibrate: {k: 3}, prune: {k: 2}]"
    )
    lorakit_("merge", "--recipe", recipe)
    assert len(replayed(tmp_path / "many")["operations"]) == 6  # calibrated with the merge; then written


def test_pruned_adapters(lorakit_, replayed, tasks, out):
    lorakit_("prune", *tasks, "-o", out, "-k", "2", "--method", "lego")
    for name in ("task0", "task1", "task2"):
        replayed(out / name)


@pytest.fixture
def diffusion(tmp_path):
    """Adapters of a diffusion model, in PEFT's names."""
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    rng = torch.Generator().manual_seed(0)
    paths = []
    for name, rank in (("one", 2), ("two", 3)):
        factors = {
            f"{block}.to_{x}": LoraFactors(torch.randn(rank, 4, generator=rng), torch.randn(6, rank, generator=rng))
            for x in "qk"
        }
        paths.append(save_adapter(Adapter(factors, provenance=Provenance(format="peft")), tmp_path / "in" / name))
    return paths


def test_a_chain_of_conversions(lorakit_, replayed, diffusion, tmp_path):
    """Merged, to kohya in bfloat16, to diffusers, to kohya again: from each file before, and from the sources."""
    chain = [tmp_path / "a", tmp_path / "b.safetensors", tmp_path / "c.safetensors", tmp_path / "d.safetensors"]
    lorakit_("merge", *diffusion, "-o", chain[0], "-k", "4", "--pad-to", "8")
    lorakit_("convert", chain[0], "-o", chain[1], "--to", "kohya", "--component", "unet", "--dtype", "bfloat16")
    lorakit_("convert", chain[1], "-o", chain[2], "--to", "diffusers", "--layout", "portable", "--pad-to", "16")
    lorakit_("convert", chain[2], "-o", chain[3], "--to", "kohya", "--dtype", "float32", "--name", "another")
    for i, path in enumerate(chain):
        report = replayed(path)
        assert len(report["operations"]) == i + 2, report
        for before in chain[:i]:
            replayed(path, before)


@pytest.mark.parametrize("k", ["1", "0.5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cut(lorakit_, replayed, tmp_path, out, dtype, k):
    """Cut in the wider of the two dtypes."""
    (adapter,) = make_adapters(1, ranks=4, dtype=torch.bfloat16, random_state=0)
    lorakit_("convert", save_adapter(adapter, tmp_path / "in" / "task"), "-o", out, "-k", k, "--dtype", dtype)
    replayed(out)


def test_other_formats(lorakit_, replayed, tmp_path):
    factors = {f"model.layers.{i}.self_attn.q_proj": LoraFactors(torch.ones(2, 4), torch.ones(4, 2)) for i in (0, 1)}
    peft = save_adapter(Adapter(factors, provenance=Provenance(format="peft")), tmp_path / "in" / "one")
    lorakit_("convert", peft, "-o", tmp_path / "mlx", "--to", "mlx")
    replayed(tmp_path / "mlx")
    lorakit_("merge", tmp_path / "mlx", tmp_path / "mlx", "-o", tmp_path / "merged")
    replayed(tmp_path / "merged", tmp_path / "mlx")
    key = "diffusion_model.double_blocks.0.img_attn.qkv"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, 4), f"{key}.lora_B.weight": torch.ones(12, 2)},
        tmp_path / "in" / "comfy.safetensors",
    )
    lorakit_("prune", tmp_path / "in" / "comfy.safetensors", "-o", tmp_path / "small.safetensors", "-k", "1")
    replayed(tmp_path / "small.safetensors")


@pytest.fixture
def checkpoints(tmp_path, tasks):
    """A base and a tuned model of the modules of the adapters."""
    infos = load_adapter(tasks[0]).infos
    rng = torch.Generator().manual_seed(0)
    base = {f"{m}.weight": torch.randn(i.d_out, i.d_in, generator=rng) for m, i in infos.items()}
    tuned = {name: weight + 0.1 * torch.randn(weight.shape, generator=rng) for name, weight in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / "in" / name).mkdir()
        save_file(tensors, tmp_path / "in" / name / "model.safetensors")
        (tmp_path / "in" / name / "config.json").write_text("{}")
    return tmp_path / "in" / "base", tmp_path / "in" / "tuned"


def test_a_baked_model(lorakit_, replayed, lorakit_json, tasks, checkpoints, tmp_path, out):
    lorakit_("bake", checkpoints[0], f"{tasks[0]}:0.7", tasks[1], "-o", out)
    replayed(out)
    report = lorakit_json("replay", out, "--sources", tasks[1], checkpoints[0], tasks[0])
    assert report["verdict"] == "the same"
    single = tmp_path / "in" / "base" / "model.safetensors"
    lorakit_("bake", single, tasks[2], "-o", tmp_path / "one.safetensors")
    replayed(tmp_path / "one.safetensors", single, tasks[2])
    weights = {name: weight + 1 for name, weight in load_file(single).items()}
    save_file(weights, single)
    assert lorakit_json("replay", out, "--sources", tmp_path / "in", code=1)["files"] == {
        "config.json": True,
        "model.safetensors": False,
    }


def test_what_was_carried_along_is_in_the_record(lorakit_, replayed, tmp_path):
    """Also of a baked model: there is no option to say whether differences were kept, or extra weights dropped."""
    (tmp_path / "in").mkdir(exist_ok=True)
    prefix = "diffusion_model.b.q"
    for i in range(2):
        a, b, added = torch.ones(2, 4), torch.full((3, 2), 1.0 + i), torch.arange(3.0) + i
        tensors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b, f"{prefix}.diff_b": added}
        save_file(tensors, tmp_path / "in" / f"{i}.safetensors")
    base = {f"{prefix}.weight": torch.zeros(3, 4), f"{prefix}.bias": torch.zeros(3)}
    save_file(base, tmp_path / "in" / "base.safetensors")
    files = [tmp_path / "in" / f"{name}.safetensors" for name in (0, 1, "base")]
    merged, baked, plain = (tmp_path / f"{name}.safetensors" for name in ("merged", "baked", "plain"))
    keep = ("--differences", "keep")
    lorakit_("merge", *files[:2], "-o", merged, "--method", "concat", *keep)
    lorakit_("bake", files[2], *files[:2], "-o", baked, *keep)
    lorakit_("bake", files[2], *files[:2], "-o", plain, "--differences", "drop")
    assert load_file(baked)[f"{prefix}.bias"].tolist() == [1, 3, 5]
    for out in (merged, baked, plain):
        replayed(out, *files)
    for option in (keep, ("--modules-to-save", "first")):
        assert "No such option" in lorakit_("replay", merged, *option, code=2).stderr


def test_an_extracted_adapter(lorakit_, replayed, checkpoints, tmp_path, out):
    base, tuned = checkpoints
    lorakit_("extract", tuned, base, "-k", "0.9", "-o", out, "--layout", "compact", "--seed", "4")
    replayed(out)
    lorakit_("extract", tuned / "model.safetensors", base, "-k", "3", "-o", tmp_path / "half", "--dtype", "float16")
    replayed(tmp_path / "half", tuned, base)
    save_file({"other.weight": torch.ones(2, 2)}, tuned / "model.safetensors")
    error = lorakit_("replay", tmp_path / "half", "--sources", tuned, base, code=2).stderr
    assert "source 'model.safetensors': " in error
    assert "say where the right one is" in error


@pytest.mark.parametrize("prefix", ["net.encoder.", "encoder.net."])
def test_a_renamed_adapter(lorakit_, replayed, checkpoints, tasks, tmp_path, out, prefix):
    file = checkpoints[0] / "model.safetensors"
    save_file({f"model.encoder.{name}": weight for name, weight in load_file(file).items()}, file)
    adapter = load_adapter(tasks[0]).rename_modules(lambda module: f"{prefix}{module}")
    path = save_adapter(adapter, tmp_path / "in" / "net")
    lorakit_("fit", checkpoints[0], path, "--rename", out, code=1)
    replayed(out, path)


def test_some_modules_are_renamed():
    """One prefix stands for the new names only if no other module has it."""
    (adapter,) = make_adapters(1, n_modules=3, random_state=0)
    for renaming, done in (
        ({"layer.0": "new.0"}, "names"),
        ({f"layer.{i}": f"new.layer.{i}" for i in range(3)}, "prefix"),
        ({f"layer.{i}": f"model.{i}" for i in range(3)}, "prefix"),
    ):
        renamed = renamed_modules(adapter, renaming)
        assert list(renamed) == [renaming.get(module, module) for module in adapter]
        assert list(renamed.provenance.conversions[0]) == [done]
        assert list(converted(adapter, json.loads(json.dumps(renamed.provenance.conversions)))) == list(renamed)


def test_what_python_wrote(replayed, tasks, tmp_path):
    adapters = load_adapters(tasks)
    merged = LegoMerger(k=5, random_state=1).fit(adapters).merged_
    replayed(save_adapter(merged, tmp_path / "one"))
    replayed(save_adapter(merged.renamed("mine").astype(torch.float16), tmp_path / "two", pad_to=9))
    steps = make_pipeline(ModuleSelector(include="*.1"), NormBalancer(), SVDPruner(k=3), SVDMerger(k=4))
    (piped,) = steps.fit_transform([adapter.astype(torch.float64) for adapter in adapters])
    replayed(save_adapter(piped, tmp_path / "three", layout="compact"))
    again = load_adapter(tmp_path / "one", name="other")
    replayed(save_adapter(again, tmp_path / "four", dtype=torch.bfloat16))


def test_converted_sources(lorakit_, replayed, diffusion, tmp_path):
    converted = [convert_adapter(load_adapter(path), "diffusers", component="unet") for path in diffusion]
    out = save_adapter(LegoMerger(k=3, random_state=0).fit(converted).merged_, tmp_path / "out.safetensors")
    replayed(out)
    assert "yes" in lorakit_("verify", out, "--sources", *diffusion).stdout


def test_extra_weights_and_alphas(lorakit_, replayed, tasks, tmp_path, out):
    file, config = (tmp_path / "in" / "task0" / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    save_file(load_file(file) | {"base_model.model.head.weight": torch.ones(2, 2)}, file)
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"modules_to_save": ["head"]}))
    lorakit_("merge", *tasks, "-o", out, "--modules-to-save", "first")
    assert "Taken as they are from task0" in (out / "README.md").read_text()
    replayed(out)
    lorakit_("convert", out, "-o", tmp_path / "carried", "--modules-to-save", "first", "--dtype", "float16")
    replayed(tmp_path / "carried")
    lorakit_("merge", *tasks, "-o", tmp_path / "dropped", "--modules-to-save", "drop")
    replayed(tmp_path / "dropped")
    del fields["lora_alpha"]
    config.write_text(json.dumps(fields | {"modules_to_save": ["head"]}))
    lorakit_("prune", tasks[0], "-o", tmp_path / "alpha", "-k", "2", "--assume-alpha", "3", "--modules-to-save", "drop")
    replayed(tmp_path / "alpha")


def test_written_to_another_place(lorakit_, tasks, tmp_path, out, contents):
    lorakit_("merge", *tasks, "-o", out)
    new = tmp_path / "new" / "place"
    text = lorakit_("replay", out, "-o", new, "--sources", *tasks).stdout
    assert text.splitlines()[-2:] == [f"the same: all 3 files of {out}, byte for byte", f"wrote {new}"]
    assert contents(new) == contents(out)
    assert "exists; pass --overwrite" in lorakit_("replay", out, "-o", new, "--sources", *tasks, code=2).stderr
    lorakit_("replay", out / "adapter_model.safetensors", "-o", new, "--overwrite", "--sources", *tasks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "new", "out"]


def test_sources_are_found_near_the_result(lorakit_json, lorakit_, tasks, tmp_path, out, monkeypatch):
    lorakit_("merge", *tasks, "-o", out)
    report = lorakit_json("replay", out)  # in/ is beside out/
    assert [row["path"] for row in report["sources"]] == tasks
    (tmp_path / "far" / "away").mkdir(parents=True)
    out.rename(tmp_path / "far" / "away" / "out")
    monkeypatch.chdir(tmp_path / "in")
    (tmp_path / "in" / "task1").rename(tmp_path / "in" / "new-name")
    report = lorakit_json("replay", tmp_path / "far" / "away" / "out")
    assert [row["path"] for row in report["sources"]] == [tasks[0], str(tmp_path / "in" / "new-name"), tasks[2]]


def test_sources_that_are_missing_or_changed(lorakit_, tasks, tmp_path, out):
    lorakit_("merge", *tasks, "-o", out)
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        digest = json.loads(file.metadata()["lorakit"])["sources"][1]["sha256"]
    save_adapter(load_adapter(tasks[0]), tasks[1], overwrite=True)
    error = lorakit_("replay", out, code=2).stderr
    assert f"source 'task1' is not among the adapters near it: {tasks[1]} has the sha256 " in error
    assert f"expected weights with the sha256 {digest}" in error
    assert "say where the sources are now: --sources PATH..." in error
    error = lorakit_("replay", out, "--sources", tasks[0], tasks[2], code=2).stderr
    assert "source 'task1' is not among those given" in error
    assert "there is no such path" in lorakit_("replay", out, "--sources", tmp_path / "no", code=2).stderr
    config = tmp_path / "in" / "task0" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    assert "with another config, " in lorakit_("replay", out, code=2).stderr


def test_what_is_not_the_same(lorakit_, lorakit_json, tasks, out):
    lorakit_("merge", *tasks, "-o", out)
    readme = out / "README.md"
    readme.write_text(readme.read_text() + "mine\n")
    report = lorakit_json("replay", out, code=1)
    assert (report["verdict"], report["files"]["README.md"]) == ("different", False)
    assert "different: README.md of " in lorakit_("replay", out, code=1).stdout


def test_another_version_is_named(lorakit_, tasks, out, monkeypatch):
    lorakit_("merge", *tasks, "-o", out)
    monkeypatch.setattr("lorakit.io.formats.record.__version__", "9.9")
    text = lorakit_("replay", out, code=1).stdout
    assert f"made with lorakit {lorakit._version.__version__}, here 9.9" in text


def edited(out, change):
    """Rewrite the record of an output."""
    file = out / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        record = json.loads(opened.metadata()["lorakit"])
    change(record)
    save_file(load_file(file), file, {"lorakit": json.dumps(record)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.pop("written"), "did not record all that its bytes depend on"),
        (lambda record: record.update(written=[{}]), "did not record all"),
        (lambda record: record["written"][0].update(conversions=[{"run": "rm"}]), "did not record all"),
        (lambda record: record["written"][0].update(conversions=[{"to": "kohya"}]), "cannot be converted as it was"),
        (lambda record: record["written"][0].update(conversions=[{"dtype": "nn"}]), "there is no dtype 'nn'"),
        (lambda record: record["written"][0].update(dtype="nn"), "names the dtype 'nn'"),
        (lambda record: record["operations"][0].update({"class": "Popen"}), "no method 'Popen'"),
        (lambda record: record["operations"][0]["inputs"][0].update(conversions=3), "what no record says"),
        (lambda record: record.update(result=None), "left no record"),
        (lambda record: record["written"].insert(0, None), "an earlier lorakit, which wrote a file on the way"),
    ],
)
def test_records_that_cannot_be_replayed(lorakit_json, lorakit_, tasks, out, change, says):
    lorakit_("merge", *tasks, "-o", out)
    edited(out, change)
    assert says in lorakit_json("replay", out, code=3)["reason"]


def test_without_a_record_or_sources(lorakit_, lorakit_json, tasks, tmp_path, out):
    file = tmp_path / "in" / "task0" / "adapter_model.safetensors"
    save_file(load_file(file), file)
    assert "holds no record" in lorakit_json("replay", tasks[0], code=3)["reason"]
    save_adapter(SVDMerger(k=2).fit(make_adapters(2, random_state=0)).merged_, out)
    error = lorakit_("replay", out, code=2).stderr
    assert "source 'task0' has no hash in the record: it was made in memory" in error
    assert "Missing argument" in lorakit_("replay", code=2).stderr
    assert "No such option '--name'" in lorakit_("replay", out, "--name", "a", code=2).stderr
    assert "--overwrite is for -o" in lorakit_("replay", out, "--overwrite", code=2).stderr


def test_a_family_of_transformers(lorakit_, replayed, tmp_path):
    """Which is said on the command line, as the names do not show it."""
    factors = {"transformer_blocks.0.attn.to_out.0": LoraFactors(torch.ones(2, 4), torch.ones(4, 2))}
    adapter = Adapter(factors, provenance=Provenance(format="diffusers"))
    path = save_adapter(adapter, tmp_path / "in" / "one.safetensors")
    recipe, out, again = (tmp_path / name for name in ("r.yaml", "out.safetensors", "again.safetensors"))
    lorakit_("convert", path, "-o", out, "--to", "kohya", "--family", "sd3", "--save-recipe", recipe)
    assert list(load_adapter(out)) == ["lora_unet_joint_blocks_0_x_block_attn_proj"]
    replayed(out)
    lorakit_("convert", "--recipe", recipe, "-o", again)
    assert again.read_bytes() == out.read_bytes()
