"""``--save-recipe`` and ``--recipe``: the same bytes as the command, of every command that writes."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraFactors, load_adapter, load_recipe, save_adapter
from lorakit.adapters import Provenance
from lorakit.cli import main
from lorakit.cli._recipe import _OF_THE_RUN
from lorakit.testing import make_adapters


@pytest.fixture
def again(lorakit_, contents, tmp_path):
    """Run a command that saves its recipe, then the recipe; return the recipe. Both must write the same bytes."""

    def run(*args, end="", option="-o", name="first", code=0):
        first, second, file = (
            tmp_path / f"{name}{end}",
            tmp_path / "other" / f"{name}{end}",
            tmp_path / f"r-{name}.yaml",
        )
        lorakit_(*args, option, first, "--save-recipe", file, code=code)
        lorakit_(args[0], "--recipe", file, option, second, code=code)
        if first.is_file():
            assert first.read_bytes() == second.read_bytes()
        else:
            assert contents(first) == contents(second) != {}
        before = file.read_text()
        lorakit_(args[0], "--recipe", file, "--overwrite", "--save-recipe", file, code=code)  # to where it was
        assert file.read_text() == before
        return yaml.safe_load(before)

    return run


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "5"],
        ["--method", "ties", "-p", "density=0.3", "--weights", "task0=2,task1=1,task2=1", "--scale", "1"],
        ["--method", "lego", "-k", "6", "--seed", "3", "-p", "align=svd", "--dtype", "bfloat16"],
        ["--method", "dare", "-k", "mean:3,max:8", "--layout", "compact"],
        ["--method", "svc_calibrator", "-k", "4", "-p", "merger=ties", "-p", "merger__density=0.3"],
        ["--method", "svd", "-k", "0.8", "--pad-to", "server", "--name", "a", "--name", "b", "--name", "c"],
    ],
    ids=lambda options: "-".join(options[1::2]),
)
def test_a_merge(again, tasks, options):
    again("merge", *tasks, *options)


def test_strengths(again, lorakit_, tasks, tmp_path, contents):
    given = [f"{tasks[0]}:0.7", tasks[1], f"{tasks[2]}:-0.3"]
    found = again("merge", *given, "--method", "concat")
    assert found["steps"][0]["merge"]["strengths"] == [0.7, 1.0, -0.3]
    recipe = tmp_path / "short.yaml"
    recipe.write_text(
        "sources: [{path: in/task0, strength: 0.7}, in/task1, {path: in/task2, strength: -0.3}]\noutput: short\n"
        "steps: [merge: {method: concat}]"
    )
    assert "0.7" in lorakit_("merge", "--recipe", recipe).stdout
    assert contents(tmp_path / "short") == contents(tmp_path / "first")
    error = lorakit_("merge", *given, "--recipe", recipe, "--overwrite", code=2).stderr
    assert "ADAPTER:STRENGTH: a recipe says it itself" in error
    recipe.write_text(recipe.read_text().replace("concat", "concat, weights: [1, 2, 3]"))
    error = lorakit_("merge", "--recipe", recipe, code=2).stderr
    assert "line 3: steps[0].merge.weights: weights stand here, and strengths beside the sources" in error


def test_pruned_adapters(again, tasks):
    again("prune", *tasks, "-k", "2", "--method", "lego")
    assert again("prune", tasks[0], "-k", "0.9", name="one")["steps"] == [{"prune": {"method": "svd", "k": 0.9}}]


def diffusion(tmp_path):
    factors = {
        f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{x}": LoraFactors(torch.ones(2, 4), torch.ones(6, 2))
        for x in "qk"
    }
    return save_adapter(Adapter(factors, provenance=Provenance(format="peft")), tmp_path / "diffusion")


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (["--dtype", "bfloat16", "--layout", "compact"], ""),
        (["-k", "1"], ""),
        (["--to", "kohya", "--component", "unet"], ".safetensors"),
    ],
)
def test_a_conversion(again, tmp_path, options, end):
    again("convert", diffusion(tmp_path), *options, end=end)


@pytest.fixture
def checkpoints(tmp_path, tasks):
    """A base and a tuned model of the modules of the adapters."""
    infos = load_adapter(tasks[0]).infos
    rng = torch.Generator().manual_seed(0)
    base = {f"{m}.weight": torch.randn(i.d_out, i.d_in, generator=rng) for m, i in infos.items()}
    tuned = {name: weight + 0.1 * torch.randn(weight.shape, generator=rng) for name, weight in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "tuned"


def test_a_baked_model(again, tasks, checkpoints):
    found = again("bake", checkpoints[0], f"{tasks[0]}:0.7", f"{tasks[1]}:-0.3")
    assert [source["strength"] for source in found["sources"]] == [0.7, -0.3]


def test_an_extracted_adapter(again, checkpoints):
    base, tuned = checkpoints
    found = again("extract", tuned, base, "-k", "size:20kB", "--modules", "layer.*", "--layout", "compact")
    assert found["steps"][0]["extract"]["k"] == "size:20kB"


def test_a_renamed_adapter(again, tmp_path, checkpoints, tasks):
    file = tmp_path / "base" / "model.safetensors"
    save_file({f"model.encoder.{name}": weight for name, weight in load_file(file).items()}, file)
    adapter = load_adapter(tasks[0]).rename_modules(lambda module: f"net.encoder.{module}")
    again("fit", tmp_path / "base", save_adapter(adapter, tmp_path / "net"), option="--rename", code=1)


def test_steps_around_a_merge(lorakit_, lorakit_json, tasks, tmp_path):
    """A pipeline that no single command is: the CLI does what Python does."""
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text(
        "sources: [in/task0, in/task1, in/task2]\noutput: out\nsteps:\n- select: {exclude: '*.1'}\n- prune: {k: 3}\n"
        "- balance\n- merge: {method: ties, k: 5}\n- calibrate: {alpha: 1}\n- prune: {k: 4}\n"
    )
    report = lorakit_json("merge", "--recipe", recipe, "--dry-run")
    assert (report["rank_out"], out.exists()) == ([4], False)
    report = lorakit_json("merge", "--recipe", recipe)
    assert report["method"] == "select, svd, balance, svc_calibrator, svd"
    found = load_adapter(out)
    (expected,) = load_recipe(recipe).fit_transform([load_adapter(path) for path in tasks])
    assert list(found) == ["layer.0"]
    torch.testing.assert_close(found["layer.0"].delta(), expected["layer.0"].delta())
    assert "wrote" in lorakit_("merge", "--recipe", recipe, "--overwrite").output


def test_sources_that_moved_or_changed(lorakit_, tasks, tmp_path, contents):
    recipe, out, moved = tmp_path / "r.yaml", tmp_path / "out", tmp_path / "moved"
    lorakit_("merge", *tasks, "-k", "4", "-o", out, "--save-recipe", recipe)
    first = contents(out)
    (tmp_path / "in" / "task1").rename(moved)
    error = lorakit_("merge", "--recipe", recipe, "--overwrite", code=2).stderr
    digest = yaml.safe_load(recipe.read_text())["sources"][1]["sha256"]
    assert f"r.yaml: line 8: source 'task1' ({tasks[1]}) is not there, expected a file with the" in error
    assert f"with the sha256 {digest}; say where" in error
    assert "say where it is now: change its path in the recipe, or give all sources on the command line" in error
    lorakit_("merge", tasks[0], moved, tasks[2], "--recipe", recipe, "--overwrite")
    assert contents(out) == first

    error = lorakit_("merge", tasks[0], tasks[2], moved, "--recipe", recipe, "--overwrite", code=2).stderr
    assert f"{tasks[2]}/adapter_model.safetensors is another file than it was: its sha256 is" in error
    assert f"expected {digest}" in error
    assert "or take sha256 out of the recipe" in error
    error = lorakit_("merge", tasks[0], "--recipe", recipe, "--overwrite", code=2).stderr
    assert "has 3 sources, and 1 are given; give as many" in error
    config = moved / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    error = lorakit_("merge", tasks[0], moved, tasks[2], "--recipe", recipe, "--overwrite", code=2).stderr
    assert f"{config} is another file than it was: its config_sha256 is" in error
    assert contents(out) == first


def test_a_base_that_changed(lorakit_, tasks, checkpoints, tmp_path):
    recipe, base = tmp_path / "r.yaml", checkpoints[0]
    lorakit_("bake", base, tasks[0], "-o", tmp_path / "out", "--save-recipe", recipe)
    file = base / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(file).items()}, file)
    error = lorakit_("bake", "--recipe", recipe, "-o", tmp_path / "again", code=2).stderr
    assert "its headers_sha256 is" in error


def test_usage(lorakit_, tasks, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps: [merge]")
    assert "has no sources; give them" in lorakit_("merge", "--recipe", recipe, "-o", "out", code=2).stderr
    assert "has no output; give it" in lorakit_("merge", *tasks, "--recipe", recipe, code=2).stderr
    for option in (["-k", "4"], ["--scale", "1"], ["--method", "svd"], ["--dtype", "float32"], ["-p", "density=1"]):
        error = lorakit_("merge", *tasks, "--recipe", recipe, "-o", tmp_path / "out", *option, code=2).stderr
        assert f"{option[0] if option[0] != '-p' else '--param'}: a recipe says it itself" in error
    error = lorakit_("prune", *tasks, "--recipe", recipe, "-o", "out", code=2).stderr
    assert f"is a recipe of merge; run it with lorakit merge --recipe {recipe}" in error
    assert "Missing argument 'ADAPTER[:STRENGTH]...'" in lorakit_("merge", "-o", "out", code=2).stderr
    assert "Missing option '-o'" in lorakit_("merge", *tasks, code=2).stderr
    recipe.write_text("steps:\n- merge: {desity: 1}")
    error = lorakit_("merge", *tasks, "--recipe", recipe, "-o", "out", code=2).stderr
    assert "r.yaml: line 2: steps[0].merge.desity: there is no 'desity'" in error
    assert "no such recipe" in lorakit_("merge", "--recipe", tmp_path / "other", "-o", "out", code=2).stderr


SAID_BY_A_RECIPE = {
    *(
        "method",
        "k",
        "weights",
        "scale",
        "params",
        "seed",
        "format",
        "modules_to_save",
        "differences",
        "assume_alpha",
        "layout",
    ),
    *(
        "pad_to",
        "dtype",
        "target",
        "component",
        "family",
        "patterns",
        "rest",
        "exact",
        "module_weights",
        "block_weights",
    ),
}


def test_every_option_is_of_the_run_or_of_the_recipe():
    """An option that is new must be put on one side."""
    commands = [main.commands[name] for name in ("merge", "prune", "convert", "extract", "bake", "fit")]
    options = {param.name for command in commands for param in command.params if param.expose_value}
    assert options - _OF_THE_RUN == SAID_BY_A_RECIPE


def test_a_report_beside_a_recipe(lorakit_, tasks, tmp_path, out):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sources: [in/task0, in/task1]\nsteps: [merge: {k: 4}]")
    lorakit_("merge", "--recipe", recipe, "-o", out, "--report")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"]


def test_the_recipe_is_written_like_any_output(lorakit_, tasks, tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    lorakit_("merge", *tasks, "-o", out, "--save-recipe", recipe, "--dry-run")
    assert not recipe.exists()
    recipe.write_text("mine")
    error = lorakit_("merge", *tasks, "-o", out, "--save-recipe", recipe, code=2).stderr
    assert "r.yaml: exists; pass --overwrite" in error
    assert (recipe.read_text(), out.exists()) == ("mine", False)


def test_adapters_of_a_recipe_without_sources(lorakit_, tasks, tmp_path, contents):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps:\n- merge: {k: 4, weights: {task0: 2, task1: 1, task2: 1}}")
    lorakit_("merge", *tasks, "--recipe", recipe, "-o", tmp_path / "one")
    lorakit_("merge", *tasks, "-k", "4", "-w", "task0=2,task1=1,task2=1", "-o", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_names_and_bytes_of_made_up_sources(lorakit_, tmp_path):
    """Sources under odd names: quotes, spaces and what YAML would read as something else."""
    names = ["no", "1e-3", "it's: #1", "ünï"]
    paths = [save_adapter(a, tmp_path / name) for a, name in zip(make_adapters(4, random_state=1), names, strict=True)]
    recipe = tmp_path / "r.yaml"
    lorakit_("merge", *paths, "-o", tmp_path / "out", "--save-recipe", recipe)
    assert [source["name"] for source in yaml.safe_load(recipe.read_text())["sources"]] == names
    lorakit_("merge", "--recipe", recipe, "--overwrite")
