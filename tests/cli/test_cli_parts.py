"""``lorakit merge --module-weights --block-weights``, and a synthetic SDXL merge against dense algebra."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import ConcatMerger, ModuleScaler, load_adapter, load_adapters, load_recipe, save_adapter
from lorakit.testing import make_adapters

# A module of each block of XL, with the place of its value among 26
SDXL = {
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": 0,
    "lora_te2_text_model_encoder_layers_31_mlp_fc1": 0,
    **{f"lora_unet_input_blocks_{i}_1_transformer_blocks_0_attn1_to_q": 1 + i for i in (4, 5, 7, 8)},
    "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v": 13,
    **{f"lora_unet_output_blocks_{i}_1_transformer_blocks_1_ff_net_2": 14 + i for i in range(6)},
}
VALUES = [0.8, *(round(0.05 * i, 2) for i in range(1, 13)), 0, *(round(1.5 - 0.1 * i, 1) for i in range(12))]


@pytest.fixture
def sdxl(tmp_path):
    """Two files of XL, as sd-scripts writes them."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name, rank, alpha in (("a", 4, 2.0), ("b", 6, 6.0)):
        tensors = {}
        for module in SDXL:
            tensors[f"{module}.lora_down.weight"] = torch.randn(rank, 20, generator=generator)
            tensors[f"{module}.lora_up.weight"] = torch.randn(24, rank, generator=generator)
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save_file(tensors, paths[-1])
    return paths


def dense(path, module):
    """The update in a kohya file, in float64."""
    tensors = load_file(path)
    if f"{module}.lora_up.weight" not in tensors:
        return torch.zeros(24, 20, dtype=torch.float64)
    up, down = tensors[f"{module}.lora_up.weight"].double(), tensors[f"{module}.lora_down.weight"].double()
    return up @ down * tensors[f"{module}.alpha"].double() / len(down)


def options(values):
    return "--block-weights", ",".join(map(str, values))


def test_26_values_and_strengths_give_the_dense_sum(lorakit_, sdxl, tmp_path):
    out = tmp_path / "out.safetensors"
    lorakit_("merge", f"{sdxl[0]}:0.7", f"{sdxl[1]}:0.5", "-o", out, "-m", "concat", *options(VALUES))
    for module, place in SDXL.items():
        wanted = VALUES[place] * (0.7 * dense(sdxl[0], module) + 0.5 * dense(sdxl[1], module))
        error = (dense(out, module) - wanted).norm()
        assert float(error) <= 1e-6 * float(wanted.norm()), module


def test_it_is_the_published_merge_by_svd_without_its_clamp(lorakit_, sdxl, tmp_path):
    """sd-scripts' svd_merge_lora: the sum of ratio * value * alpha / rank * up @ down, cut to a rank by an SVD."""
    out = tmp_path / "out.safetensors"
    values = [0.5 if value == 0 else value for value in VALUES]
    lorakit_("merge", f"{sdxl[0]}:0.7", f"{sdxl[1]}:0.5", "-o", out, "-m", "svd", "-k", 4, *options(values))
    for module, place in SDXL.items():
        total = sum(ratio * values[place] * dense(path, module) for ratio, path in ((0.7, sdxl[0]), (0.5, sdxl[1])))
        U, S, Vh = torch.linalg.svd(total)
        wanted = U[:, :4] @ torch.diag(S[:4]) @ Vh[:4]
        assert float((dense(out, module) - wanted).norm() / wanted.norm()) < 1e-6, module


def test_block_weights_of_one_adapter_and_by_name(lorakit_, sdxl, tmp_path):
    out = tmp_path / "out.safetensors"
    given = ("--block-weights", "b@OUT03-OUT05=0.5,in=0", "--block-weights", f"a@{','.join(map(str, VALUES))}")
    lorakit_("merge", f"{sdxl[0]}:1", f"{sdxl[1]}:1", "-o", out, "-m", "concat", *given)
    for module, place in SDXL.items():
        factor = 0.5 if "output" in module and place >= 17 else 0 if "input" in module else 1
        wanted = VALUES[place] * dense(sdxl[0], module) + factor * dense(sdxl[1], module)
        assert float((dense(out, module) - wanted).norm()) <= 1e-6 * float(wanted.norm()), module


def test_module_weights_are_a_step_in_python(lorakit_, tasks, out, tmp_path, contents):
    given = ("--module-weights", r"task1@layer\.0=-0.5", "--module-weights", ".*=0.5,1")
    lorakit_("merge", f"{tasks[0]}:0.7", tasks[1], "-o", out, "-m", "concat", *given)
    scaler = ModuleScaler([[["task1", r"layer\.0"], -0.5], [".*", [0.5, 1.0]]])
    merged = ConcatMerger(strengths=[0.7, 1.0]).fit(scaler.fit_transform(load_adapters(tasks[:2]))).merged_
    assert contents(out) == contents(save_adapter(merged, tmp_path / "by_hand"))


def test_a_name_with_an_at_sign_and_a_pattern_with_an_equals_sign(lorakit_, tmp_path, out):
    paths = [save_adapter(a, tmp_path / "in" / a.name) for a in make_adapters(ranks=(4, 4), random_state=0)]
    lorakit_("merge", *paths, "-o", out, "-m", "concat", "--scale", 1, "--name", "v1@law", "--name", "b",
             "--module-weights", "v1@law@.*[=0]=0.5")  # fmt: skip
    first, second = load_adapters(paths)
    wanted = (0.5 * first["layer.0"].delta() + second["layer.0"].delta()) / 2
    torch.testing.assert_close(load_adapter(out)["layer.0"].delta(), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--module-weights", ".*mpl.*=0.5"), r"no module of any adapter is left for the pattern '.*mpl.*'"),
        (("--module-weights", ".*"), "is not REGEX=NUMBER"),
        (("--module-weights", ".*=x"), "is not REGEX=NUMBER"),
        (("--module-weights", ".*=nan"), "finite"),
        (("--module-weights", ".*=0"), "has the factor 0"),
        (("--module-weights", "(=0.5"), "'('"),
        (("--block-weights", "1,2"), "no module is in a block"),
        (("--block-weights", "1,x"), "is neither 1,0.5"),
        (("--block-weights", "OUT03=x"), "is not BLOCK=NUMBER"),
        (("--block-weights", "IN=1", "--block-weights", "OUT=1"), "--block-weights is given once"),
        (("--block-weights", "nobody@IN=1"), "'nobody'"),
    ],
)
def test_errors(lorakit_, tasks, out, given, message):
    result = lorakit_("merge", *tasks, "-o", out, *given, code=None)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert not out.exists()


def test_a_list_for_another_model_is_refused(lorakit_, sdxl, tmp_path):
    shown = lorakit_("merge", *sdxl, "-o", tmp_path / "o.safetensors", *options([1] * 17), code=None)
    assert shown.exit_code
    assert "blocks has 17 values" in shown.stderr


def test_the_report_and_the_dry_run_say_the_step(lorakit_json, tasks, out):
    given = ("--module-weights", ".*0=0", "--module-weights", ".*=0.5")
    tried = lorakit_json("merge", *tasks, "-o", out, *given, "--dry-run")
    made = lorakit_json("merge", *tasks, "-o", out, *given)
    assert tried["method"] == made["method"] == "scale, tsv"
    assert tried["modules"] == made["modules"] == len(load_adapter(out))
    assert tried["rank_out"] == made["rank_out"]


@pytest.mark.parametrize("method", ["tsv", "ties", "svd"])
def test_recipe_replay_and_verify(lorakit_, lorakit_json, tasks, out, tmp_path, contents, method):
    recipe = tmp_path / "merge.yaml"
    given = ("--module-weights", "task0@.*0=0", "--module-weights", ".*0=0.25", "--module-weights", ".*=0.5,1")
    lorakit_("merge", *tasks, "-o", out, "-m", method, "-k", 6, *given, "--save-recipe", recipe)
    assert "scale:" in recipe.read_text()
    first, _ = (step for _, step in load_recipe(recipe).steps)
    assert isinstance(first, ModuleScaler)
    lorakit_("merge", "--recipe", recipe, "-o", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)
    report = lorakit_json("replay", out, "--sources", tmp_path / "in")
    assert report["verdict"] == "the same"
    assert "bit for bit" in lorakit_("verify", out, "--sources", *tasks).stdout


def test_block_weights_in_a_recipe(lorakit_, lorakit_json, sdxl, tmp_path):
    recipe, out, again = (tmp_path / name for name in ("merge.yaml", "out.safetensors", "again.safetensors"))
    given = ("--block-weights", "b@OUT03-OUT05=0.5,IN=0", "--block-weights", f"a@{','.join(map(str, VALUES))}")
    lorakit_("merge", f"{sdxl[0]}:0.7", sdxl[1], "-o", out, *given, "--save-recipe", recipe)
    lorakit_("merge", "--recipe", recipe, "-o", again)
    assert load_file(out).keys() == load_file(again).keys()
    assert all(torch.equal(tensor, load_file(again)[key]) for key, tensor in load_file(out).items())
    assert lorakit_json("replay", out, "--sources", *sdxl)["verdict"] == "the same"


def test_whole_numbers_in_a_recipe_are_as_on_the_command_line(lorakit_, tasks, out, tmp_path, contents):
    recipe = tmp_path / "merge.yaml"
    recipe.write_text("sources: [in/task0, in/task1]\nsteps: [scale: {factors: [['.*0', 2], ['.*', [0, 1]]]}, merge]\n")
    given = ("--module-weights", ".*0=2", "--module-weights", ".*=0,1")
    lorakit_("merge", *tasks[:2], "-o", out, *given)
    lorakit_("merge", "--recipe", recipe, "-o", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)


def test_the_options_and_a_recipe_are_refused_together(lorakit_, tmp_path):
    recipe = tmp_path / "merge.yaml"
    recipe.write_text("steps: [merge]\n")
    shown = lorakit_("merge", "--recipe", recipe, "--module-weights", ".*=1", code=2)
    assert "--module-weights: a recipe says it itself" in shown.stderr
