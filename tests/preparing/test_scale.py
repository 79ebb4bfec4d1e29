"""ModuleScaler: factors for parts of a model, against dense sums in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline

from lorakit import Adapter, AdapterSet, ConcatMerger, LoraFactors, ModuleScaler, NormBalancer, SVDMerger
from lorakit.exceptions import ParameterError
from lorakit.testing import adapter_sets, make_adapters

LAYERS = [f"model.layers.{i}.{part}" for i in range(4) for part in ("attn.q_proj", "mlp.up_proj")]


@pytest.fixture
def X():
    made = make_adapters(ranks=(3, 4), n_modules=len(LAYERS), dtype=torch.float64, random_state=0)
    return AdapterSet(
        Adapter(dict(zip(LAYERS, adapter.values(), strict=True)), name=name)
        for adapter, name in zip(made, ("law", "art"), strict=True)
    )


def factors_in(X, scaler):
    """By what each update was multiplied, found from the updates; 0 where a module is left out."""
    found = []
    for before, after in zip(X, scaler.fit_transform(X), strict=True):
        x = {module: before[module].delta() for module in before}
        y = {module: after[module].delta() if module in after else 0 * x[module] for module in before}
        found.append({module: round(float((x[module] * y[module]).sum() / (x[module] ** 2).sum()), 12) for module in x})
        for module in x:
            torch.testing.assert_close(y[module], found[-1][module] * x[module], rtol=1e-10, atol=1e-12)
    return found


def test_first_match_counts_and_the_rest_keeps_its_update(X):
    for factors in (
        {".*layers.1.*": 0.25, ".*mlp.*": 0.5},
        [(".*layers.1.*", 0.25), (".*mlp.*", 0.5)],
        [[".*layers.1.*", 0.25], [".*mlp.*", 0.5]],
    ):
        law, art = factors_in(X, ModuleScaler(factors))
        assert law == art == {m: 0.25 if "layers.1" in m else 0.5 if "mlp" in m else 1.0 for m in LAYERS}


def test_a_rule_for_one_adapter(X):
    scaler = ModuleScaler([(("law", ".*mlp.*"), -2), (["art", ".*attn.*"], 0), (".*mlp.*", 0.5)])
    law, art = factors_in(X, scaler)
    assert law == {m: -2 if "mlp" in m else 1 for m in LAYERS}
    assert art == {m: 0.5 if "mlp" in m else 0 for m in LAYERS}
    assert not any("attn" in module for module in scaler.transform(X)[1])


@pytest.mark.parametrize(
    ("gradient", "wanted"),
    [
        ([0, 1], [0, 1 / 3, 2 / 3, 1]),
        ([1, 0, 1], [1, 1 / 3, 1 / 3, 1]),
        ([0.5], [0.5] * 4),
        ((2, 2, -1), [2, 2, 1, -1]),
    ],
)
def test_gradients_over_depth(X, gradient, wanted):
    found, _ = factors_in(X, ModuleScaler({".*mlp.*": np.array(gradient), ".*": 1}))
    np.testing.assert_allclose([found[m] for m in LAYERS if "mlp" in m], wanted, atol=1e-10)
    assert {found[m] for m in LAYERS if "attn" in m} == {1}


def test_globs(X):
    law, _ = factors_in(X, ModuleScaler({"*.[01].*": 0.5}, syntax="glob"))
    assert law == {m: 0.5 if m.split(".")[2] in "01" else 1 for m in LAYERS}


@given(X=adapter_sets(), factor=st.floats(-3, 3).filter(lambda x: x == 0 or abs(x) > 1e-3))
def test_one_factor_for_all_is_a_strength(X, factor):
    if factor == 0:
        with pytest.raises(ParameterError, match="factor 0"):
            ModuleScaler({".*": factor}).fit_transform(X)
        return
    merged = make_pipeline(ModuleScaler({".*": factor}), ConcatMerger(strengths=[1] * len(X))).fit_transform(X)[0]
    for module in X.module_names:
        wanted = factor * sum(a[module].delta().double() for a in X if module in a)
        torch.testing.assert_close(merged[module].delta().double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_merge_is_the_dense_sum_though_no_module_is_left_in_common(X):
    scaler = ModuleScaler([(("law", ".*mlp.*"), 0), (("art", ".*attn.*"), 0), (("art", ".*"), 0.3)])
    (merged,) = make_pipeline(scaler, SVDMerger(k=4, strengths=[0.7, 0.5])).fit_transform(X)
    for module in LAYERS:
        wanted = (0.5 * 0.3 * X[1][module].delta()) if "mlp" in module else 0.7 * X[0][module].delta()
        torch.testing.assert_close(merged[module].delta(), wanted, rtol=1e-9, atol=1e-12)


def test_adapters_of_two_models_are_still_told(X):
    other = Adapter({"other.0": LoraFactors(torch.ones(1, 3), torch.ones(3, 1))}, name="other")
    with pytest.raises(ValueError, match="shares no module"):
        make_pipeline(ModuleScaler({".*": 0.5}), ConcatMerger()).fit([*X, other])


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({".*mpl.*": 0.5}, r"no module of any adapter is left for the pattern '\.\*mpl\.\*'"),
        ([(".*", 0.5), (".*mlp.*", 0.25)], r"left for the pattern '\.\*mlp\.\*'"),
        ({("low", ".*"): 0.5}, r"adapter 'low' is left.*'law', 'art'"),
        ({".*": float("nan")}, "finite"),
        ({".*": []}, "finite"),
        ({".*": "0.5"}, "finite"),
        ([(".*",)], "factors holds"),
        ({1: 0.5}, "factors holds"),
        ({"(": 0.5}, r"\("),
    ],
)
def test_wrong_factors(X, factors, message):
    with pytest.raises(ValueError, match=message):
        ModuleScaler(factors).fit(X)


def test_a_gradient_needs_a_number_of_a_layer(X):
    named = [a.renamed(a.name) for a in X]
    plain = [Adapter({**a, "lm_head": a[LAYERS[0]]}, name=a.name) for a in named]
    with pytest.raises(ParameterError, match="'lm_head' has no number") as caught:
        ModuleScaler({".*": [0, 1]}).fit(plain)
    assert caught.value.module == "lm_head"
    ModuleScaler([("lm_head", 1), (".*", [0.5, 1])]).fit(plain)


def diffusion(X):
    names = ["lora_unet_input_blocks_4_1_proj_in", "lora_unet_middle_block_1_proj_in"]
    return AdapterSet(Adapter(dict(zip(names, a.values(), strict=False)), name=a.name) for a in X)


def test_blocks_by_adapter_and_beside_factors(X):
    X = diffusion(X)
    law, art = factors_in(X, ModuleScaler({".*input.*": 0.5}, blocks={"law": {"IN04": 0.5}, "art": [2] * 12}))
    assert (list(law.values()), list(art.values())) == ([0.25, 1], [1, 2])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"low": [1] * 12}, "names an adapter 'low'"),
        ({"M": 1, "law": [1] * 12}, "mixes"),
        ([1] * 13, "13 values"),
        ({"OUT": 1}, "'OUT'"),
    ],
)
def test_wrong_blocks(X, blocks, message):
    with pytest.raises(ParameterError, match=message):
        ModuleScaler(blocks=blocks).fit(diffusion(X))


def test_names_are_checked_by_fit_alone_as_left_out_adapters_need_not_have_them(X):
    scaler = ModuleScaler({("law", ".*"): 0.5}).fit(X)
    (alone,) = scaler.transform([X[1]])
    torch.testing.assert_close(alone[LAYERS[0]].delta(), X[1][LAYERS[0]].delta())


def test_it_can_be_searched_over(X):
    pipeline = Pipeline([("scale", ModuleScaler({".*": 1})), ("merge", ConcatMerger(strengths=[1, 1]))])
    wanted = 0.5 * sum(a[LAYERS[0]].delta() for a in X)

    def score(made, adapters, _=None):
        return -float((made.transform(adapters)[0][LAYERS[0]].delta() - wanted).norm())

    grid = {"scale__factors": [{".*": c} for c in (0.25, 0.5, 1)]}
    search = GridSearchCV(clone(pipeline), grid, scoring=score, cv=[([0, 1], [0, 1])]).fit(X)
    assert search.best_params_ == {"scale__factors": {".*": 0.5}}


def test_it_goes_after_other_steps(X):
    balanced = NormBalancer().fit_transform(X)
    (merged,) = make_pipeline(NormBalancer(), ModuleScaler({".*": 0.5}), ConcatMerger(strengths=[1, 1])).fit_transform(
        X
    )
    wanted = 0.5 * sum(a[LAYERS[0]].delta() for a in balanced)
    torch.testing.assert_close(merged[LAYERS[0]].delta(), wanted)
