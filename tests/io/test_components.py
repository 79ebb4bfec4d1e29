"""A file of diffusers for two transformers, merged with files that name both alike: which one is meant must be said."""

import json

import pytest
import torch
from click.testing import CliRunner
from single_files import lora_ab, write_file

from lorakit import ConcatMerger, load_adapter, load_adapters
from lorakit.cli import main
from lorakit.exceptions import UnsupportedAdapterError

D = 8
BLOCK = "blocks.0.attn1.to_q"


def both(path):
    first, second = (lora_ab(f"{name}.{BLOCK}", d_in=D, d_out=D, seed=i) for i, name in enumerate(COMPONENTS))
    return write_file(path, first | second)


def one(path):
    return write_file(path, lora_ab("diffusion_model.blocks.0.self_attn.q", d_in=D, d_out=D, seed=7))


COMPONENTS = ("transformer", "transformer_2")


def test_it_is_asked_which_one(tmp_path):
    paths = [both(tmp_path / "both.safetensors"), one(tmp_path / "one.safetensors")]
    with pytest.raises(
        UnsupportedAdapterError, match=r"both.*second transformer.*component='transformer_2', or pass comp"
    ):
        load_adapters(paths)
    with pytest.raises(ValueError, match="component must be one of"):
        load_adapters(paths, component="transformer_3")
    assert len(load_adapters(paths[:1])["both"]) == 2  # alone nothing is to be said


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("order", [1, -1])
def test_one_of_them_is_merged(tmp_path, component, order):
    paths = [both(tmp_path / "both.safetensors"), one(tmp_path / "one.safetensors")]
    with pytest.warns(UserWarning, match="modules were renamed to be merged"):
        adapters = load_adapters(paths[::order], component=component)
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    (module,) = merged
    assert module == (f"{component}.{BLOCK}" if order == 1 else "diffusion_model.blocks.0.self_attn.q")
    given = load_adapter(paths[0])[f"{component}.{BLOCK}"].delta()
    expected = given + load_adapter(paths[1])["diffusion_model.blocks.0.self_attn.q"].delta()
    torch.testing.assert_close(merged[module].delta(), expected)


def test_a_part_of_files_that_are_all_alike(tmp_path):
    paths = [both(tmp_path / f"{i}.safetensors") for i in range(2)]
    adapters = load_adapters(paths, component="transformer_2")
    assert adapters.module_names == (f"transformer_2.{BLOCK}",)


def test_on_the_command_line(tmp_path):
    paths = [str(both(tmp_path / "both.safetensors")), str(one(tmp_path / "one.safetensors"))]
    out, run = str(tmp_path / "out.safetensors"), CliRunner().invoke
    merge = ["merge", *paths, "-o", out, "--method", "concat"]
    done = run(main, merge)
    assert done.exit_code == 2
    assert "pass --component transformer_2, or pass --component transformer for the first" in done.stderr
    recipe = str(tmp_path / "recipe.yaml")
    done = run(main, [*merge, "--component", "transformer_2", "--save-recipe", recipe])
    assert done.exit_code == 0, done.output
    assert list(load_adapter(out)) == [f"transformer_2.{BLOCK}"]
    before = load_adapter(out)[f"transformer_2.{BLOCK}"].delta()
    verified = run(main, ["verify", out, *(word for path in paths for word in ("--sources", path))])
    assert verified.exit_code == 0, verified.output
    done = run(main, ["merge", "--recipe", recipe, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert torch.equal(load_adapter(out)[f"transformer_2.{BLOCK}"].delta(), before)
    seen = run(main, ["inspect", paths[0]])
    assert "Holds modules of transformer and transformer_2; --component of merge" in seen.output.replace("\n", " ")
    assert json.loads(run(main, ["inspect", paths[0], "--json"]).stdout)["adapters"][0]["components"] == [*COMPONENTS]
