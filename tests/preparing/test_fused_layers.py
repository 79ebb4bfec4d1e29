"""ModuleSplitter and ModuleJoiner: the functions of fused layers for every block, as steps of a pipeline."""

import pickle

import pytest
import torch
from click.testing import CliRunner
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from lorakit import (
    Adapter,
    AdapterSet,
    ConcatMerger,
    LoraFactors,
    ModuleJoiner,
    ModuleSplitter,
    SVDMerger,
    load_adapter,
    load_adapters,
    load_recipe,
    save_adapter,
    save_recipe,
    split_modules,
)
from lorakit.cli import main
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.testing._step_checks import check_transformer_bad_input, check_transformer_in_pipelines

PARTS = {"qkv_proj": {"q_proj": 6, "k_proj": 2, "v_proj": 2}}  # as under grouped-query attention


def adapter_of(widths, name, seed=0, blocks=2):
    rng = torch.Generator().manual_seed(seed)

    def factors(d_out):
        return LoraFactors(*(torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 5), (d_out, 2))))

    modules = {f"layers.{i}.attn.{module}": factors(d) for i in range(blocks) for module, d in widths.items()}
    return Adapter(modules, name=name)


def fused(name="fused", seed=0):
    return adapter_of({"qkv_proj": 10, "o_proj": 5}, name, seed)


def apart(name="apart", seed=1):
    return adapter_of({"q_proj": 6, "k_proj": 2, "v_proj": 2, "o_proj": 5}, name, seed)


def test_every_block_is_split_and_joined_again():
    X = AdapterSet([fused("a"), fused("b", 1)])
    split = ModuleSplitter(PARTS).fit_transform(X)
    assert split.names == X.names
    for before, after in zip(X, split, strict=True):
        by_hand = split_modules(
            before,
            {
                f"layers.{i}.attn.qkv_proj": {f"layers.{i}.attn.{part}": n for part, n in PARTS["qkv_proj"].items()}
                for i in range(2)
            },
        )
        assert dict(after.infos) == dict(by_hand.infos)
        assert all(torch.equal(after[module].delta(), by_hand[module].delta()) for module in by_hand)
    again = ModuleJoiner(PARTS).fit_transform(split)
    for before, after in zip(X, again, strict=True):
        assert dict(after.infos) == dict(before.infos)
        assert all(torch.equal(after[module].delta(), before[module].delta()) for module in before)


def test_adapters_of_fused_layers_and_of_their_parts_merge():
    """One of each: the splitter leaves layers that are apart already, the joiner those that are fused."""
    both = [fused(), apart()]
    dense = torch.cat([apart()[f"layers.1.attn.{part}"].delta() for part in PARTS["qkv_proj"]])
    dense += fused()["layers.1.attn.qkv_proj"].delta()
    (merged,) = make_pipeline(ModuleSplitter(PARTS), ConcatMerger(scale=2)).fit_transform(both)
    found = torch.cat([merged[f"layers.1.attn.{part}"].delta() for part in PARTS["qkv_proj"]])
    torch.testing.assert_close(found, dense)
    (merged,) = make_pipeline(ModuleJoiner(PARTS), ConcatMerger(scale=2)).fit_transform(both)
    torch.testing.assert_close(merged["layers.1.attn.qkv_proj"].delta(), dense)
    names = [operation.split("(")[0] for operation in merged.provenance.operations]
    assert names == ["ModuleJoiner", "ConcatMerger"]


def test_as_an_estimator():
    splitter = ModuleSplitter(PARTS)
    assert pickle.loads(pickle.dumps(clone(splitter))).get_params() == {"parts": PARTS}
    (stateless,) = splitter.transform([fused()])
    (fitted,) = splitter.fit([fused()]).transform([fused()])
    assert dict(stateless.infos) == dict(fitted.infos)
    assert set(splitter.module_names_in_) == set(fused())
    assert splitter.n_adapters_in_ == 1
    pipeline = make_pipeline(ModuleSplitter(), SVDMerger(k=2))
    (changed,) = pipeline.set_params(modulesplitter__parts=PARTS).fit_transform([fused()])
    assert "layers.0.attn.k_proj" in changed


@pytest.mark.parametrize("cls", [ModuleSplitter, ModuleJoiner])
def test_contract(cls):
    """Of the contract, what does not ask that names stay."""
    sizes = {"layer.0": {"first": 6, "second": 10}} if cls is ModuleSplitter else {"all": {"layer.0": 16, "layer.9": 4}}
    check_transformer_bad_input(cls(sizes))
    check_transformer_in_pipelines(cls(sizes))


def test_in_a_recipe_and_a_record(tmp_path):
    pipeline = make_pipeline(ModuleSplitter(PARTS), SVDMerger(k=2))
    path = save_recipe(pipeline, tmp_path / "recipe.yaml")
    assert load_recipe(path)[0].get_params() == {"parts": PARTS}
    (merged,) = pipeline.fit_transform([fused("a"), apart("b")])
    saved = load_adapter(save_adapter(merged, tmp_path / "out"))
    assert set(saved) == set(merged)


def test_verified_and_made_again(tmp_path):
    paths = [str(save_adapter(adapter, tmp_path / adapter.name)) for adapter in (fused(), apart())]
    (merged,) = make_pipeline(ModuleSplitter(PARTS), SVDMerger(k=2)).fit_transform(load_adapters(paths))
    out, again = str(save_adapter(merged, tmp_path / "out")), str(tmp_path / "again")
    for words in (["verify", out, "--sources", paths[0], "--sources", paths[1]], ["replay", out, "-o", again]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    weights = (load_adapter(path)["layers.1.attn.k_proj"].delta() for path in (out, again))
    assert torch.equal(*weights)


WRONG = {
    "no such layer": (ModuleSplitter({"qvk_proj": {"q": 5, "v": 5}}), ValueError, r"'qvk_proj'.*first module is"),
    "no number": (ModuleSplitter({"qkv_proj": {"q": 5, "v": "5"}}), ValueError, "whole and at least 1"),
    "nothing": (ModuleSplitter({"qkv_proj": {}}), ValueError, "whole and at least 1"),
    "no parts": (ModuleSplitter([1]), ValueError, "'parts' parameter"),
    "other sum": (ModuleSplitter({"qkv_proj": {"q": 5, "v": 4}}), IncompatibleAdaptersError, r"10 outputs.*5 \+ 4"),
    "two of one": (ModuleJoiner({"a": {"q_proj": 6}, "b": {"q_proj": 6}}), ValueError, "part of 'a' and of 'b'"),
    "no such part": (ModuleJoiner({"a": {"x": 6, "y": 6}}), ValueError, "'x' or 'y'"),
}


def test_adapters_without_the_layers():
    """They stay as they are, alone as well, as in a fold of cross-validation, once the step has seen the layers."""
    fitted = ModuleSplitter(PARTS).fit([fused(), apart()])
    (same,) = fitted.transform([apart()])
    assert dict(same.infos) == dict(apart().infos)


@pytest.mark.parametrize("case", WRONG)
def test_refused(case):
    step, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        step.transform([fused(), apart()])
    if "sum" not in case:
        with pytest.raises(error, match=message):
            step.fit([fused(), apart()])
