"""Adapters out of checkpoints: exactness, ranks, what is left out, what is warned of."""

import numpy as np
import pytest
import torch
from models import SHAPES, adapter, tensors, write_shards

from lorakit import Adapter, LoraFactors, RankBudget, RankRule, bake, extract_adapter, load_adapter, save_adapter
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedCheckpointError

WIDE = {f"layers.{i}.q": (96, 160) for i in range(3)}


def wide(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {f"{name}.weight": torch.randn(shape, generator=generator).to(dtype) for name, shape in WIDE.items()}


def fine_tuned(base, seed=1, size=0.03):
    """A change of full rank whose singular values decay slowly, as those of real differences do."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for i, (name, tensor) in enumerate(base.items()):
        u, _ = torch.linalg.qr(torch.randn(96, 96, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(160, 96, generator=generator))
        s = size * (i + 1) * torch.arange(1, 97).float() ** -0.6
        tuned[name] = (tensor.double() + ((u * s) @ v.T).double()).to(tensor.dtype)
    return tuned


def spectra(tuned, base):
    return {n: torch.linalg.svdvals(tuned[n].double() - base[n].double()).numpy() for n in base}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_was_baked_comes_back(dtype, tmp_path):
    made = adapter(size=0.3, drop="")
    folder = write_shards(tmp_path / "base", tensors(dtype))
    baked = bake(folder, made, tmp_path / "tuned")
    again = extract_adapter(tmp_path / "tuned", folder, made.ranks[-1])
    assert set(again) == set(made)
    noise = {module: baked.rounding[f"{module}.weight"] for module in made}
    for module in made:
        update = made[module].delta().double()
        error = ((again[module].delta().double() - update).norm() / update.norm()).item()
        # the factors are stored in the dtype too
        bound = 1e-5 if dtype != torch.bfloat16 else noise[module] + 2 * torch.finfo(dtype).eps
        assert error <= bound
    assert again.dtype == dtype
    report = again.report
    assert report.left_out == ()
    assert report.unchanged == 2  # the embedding and the norm
    if dtype == torch.bfloat16:
        lost = np.mean(list(noise.values())) ** 2
        assert report.rounding == pytest.approx(lost, rel=0.5)


@pytest.mark.parametrize("k", [1, 4, 16])
def test_the_error_is_within_a_thousandth_of_the_least(k):
    base = wide()
    tuned = fine_tuned(base)
    found = extract_adapter(tuned, base, k)
    exact = extract_adapter(tuned, base, k, exact=True)
    for name, values in spectra(tuned, base).items():
        module = name.removesuffix(".weight")
        difference = tuned[name].double() - base[name].double()
        least = np.sqrt((values[k:] ** 2).sum())
        errors = [(difference - one[module].delta().double()).norm().item() for one in (found, exact)]
        assert errors[0] <= 1.001 * least
        assert errors[1] == pytest.approx(least, rel=1e-4)
        u, s, v = torch.svd_lowrank(difference.float(), q=k)
        assert errors[0] <= (difference - ((u * s) @ v.T).double()).norm().item()
        kept = {one.module: one.kept for one in found.report.modules}[module]
        assert kept == pytest.approx(1 - (errors[0] / difference.norm().item()) ** 2, abs=1e-5)


def test_ranks_by_rule():
    base = wide()
    tuned = fine_tuned(base)
    values = spectra(tuned, base)
    by_energy = extract_adapter(tuned, base, 0.6)
    for name, s in values.items():
        rank = by_energy[name.removesuffix(".weight")].rank
        kept = np.cumsum(s**2) / (s**2).sum()
        assert kept[rank - 1] >= 0.6 - 1e-5
        assert kept[rank - 2] < 0.6 + 1e-5
    automatic = extract_adapter(tuned, base, "auto")
    for name, s in values.items():
        p = s / s.sum()
        assert abs(automatic[name.removesuffix(".weight")].rank - np.exp(-(p * np.log(p)).sum())) <= 1
    budget = extract_adapter(tuned, base, RankBudget(4))
    ranks = [budget[module].rank for module in WIDE]
    assert sum(ranks) == 12
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]  # the changes grow from layer to layer
    with pytest.raises(ValueError, match="k must be a rank of 1 or more"):
        extract_adapter(tuned, base, 0)
    with pytest.raises(ValueError, match="k must be"):
        extract_adapter(tuned, base, None)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "rule", [{"sv_ratio": 1.7}, {"sv_ratio": 50}, {"sv_fro": 0.7}, {"sv_cumulative": 0.6}], ids=str
)
def test_ranks_by_the_rules_of_image_tools(rule, exact):
    base = wide()
    tuned = fine_tuned(base)
    found = extract_adapter(tuned, base, RankRule(**rule), exact=exact)
    capped = extract_adapter(tuned, base, RankRule(**rule, max_rank=5), exact=exact)
    for name, s in spectra(tuned, base).items():
        wanted = RankRule(**rule).choose(s)
        module = name.removesuffix(".weight")
        assert abs(found[module].rank - wanted) <= 0.02 * wanted  # the leading singular values are approximate
        assert capped[module].rank == min(5, found[module].rank)


def test_a_size(tmp_path):
    base = wide()
    sized = extract_adapter(fine_tuned(base), base, RankBudget(size="20kB"))
    save_adapter(sized, tmp_path / "out", layout="compact")
    assert 15_000 < (tmp_path / "out" / "adapter_model.safetensors").stat().st_size <= 20_000


def test_neither_threads_nor_the_order_of_files_change_it(tmp_path):
    base = wide()
    tuned = fine_tuned(base)
    one = extract_adapter(tuned, base, 4)
    write_shards(tmp_path / "tuned", dict(reversed(tuned.items())), n_shards=2)
    other = extract_adapter(tmp_path / "tuned", base, 4, n_jobs=2)
    assert all(torch.equal(x, y) for m in one for x, y in zip(one[m], other[m], strict=True))
    seeded = extract_adapter(tuned, base, 4, random_state=3)
    assert any(not torch.equal(one[m].A, seeded[m].A) for m in one)


def test_changes_that_no_lora_can_hold():
    base = tensors() | {"model.layers.0.q_proj.bias": torch.zeros(12)}
    tuned = dict(bake(base, adapter()))
    tuned["model.norm.weight"] = base["model.norm.weight"] + 0.5
    tuned["model.layers.0.q_proj.bias"] = torch.ones(12)
    tuned["model.embed_tokens.weight"] = torch.cat([base["model.embed_tokens.weight"], torch.full((2, 8), 0.5)])
    tuned["new.weight"] = torch.zeros(3, 3)
    del tuned["model.layers.1.q_proj.weight"]
    with pytest.raises(IncompatibleAdaptersError, match=r"in 5 tensors that no LoRA can hold.*\+2 rows.*rest='drop'"):
        extract_adapter(tuned, base, 2)
    found = extract_adapter(tuned, base, 2, rest="drop")
    assert set(found) == {"model.layers.0.q_proj", "model.layers.0.k_proj"}
    left = {one.tensor: one for one in found.report.left_out}
    assert set(left) == {
        "model.norm.weight",
        "model.layers.0.q_proj.bias",
        "model.embed_tokens.weight",
        "new.weight",
        "model.layers.1.q_proj.weight",
    }
    assert left["new.weight"].share is None
    energies = {
        "model.norm.weight": 8 * 0.25,
        "model.layers.0.q_proj.bias": 12.0,
    }
    total = sum(energies.values()) + sum(
        adapter()[m.removeprefix("model.")].delta().square().sum().item() for m in found
    )
    for name, energy in energies.items():
        assert left[name].share == pytest.approx(energy / total, rel=1e-4)
    assert left["model.embed_tokens.weight"].share == pytest.approx(4 / (total + 4), rel=1e-4)
    with pytest.raises(ValueError, match="rest must be"):
        extract_adapter(tuned, base, 2, rest="keep")


def test_modules_are_chosen_by_regular_expressions():
    base = tensors()
    tuned = dict(bake(base, adapter()))
    found = extract_adapter(tuned, base, 2, modules=r".*\.q_proj")
    assert set(found) == {"model.layers.0.q_proj", "model.layers.1.q_proj"}
    ((tensor, why, share),) = found.report.left_out
    assert (tensor, why) == ("model.layers.0.k_proj.weight", "not chosen")
    assert 0 < share < 1
    several = extract_adapter(tuned, base, 2, modules=[r"model\.layers\.1\..*", r"model\.layers\.0\.k_proj"])
    assert set(several) == {"model.layers.1.q_proj", "model.layers.0.k_proj"}
    with pytest.raises(ValueError, match="is no regular expression"):
        extract_adapter(tuned, base, 2, modules="(")
    with pytest.raises(IncompatibleAdaptersError, match="no tensor that was chosen is in both"):
        extract_adapter(tuned, base, 2, modules="nothing")


def test_no_change():
    with pytest.raises(IncompatibleAdaptersError, match="no module differs by more than rounding makes, of 4"):
        extract_adapter(tensors(), tensors(), 2)


def test_rounding_is_no_change():
    """A copy that went through half precision differs, and holds nothing to extract."""
    base = tensors()
    rounded = {name: t.bfloat16() if t.is_floating_point() else t for name, t in base.items()}
    some = dict(bake(rounded, adapter(["model.layers.0.q_proj"])))
    found = extract_adapter(some, base, 2, rest="drop")
    # the noise is estimated, so that a module near it may be on either side
    assert "model.layers.0.q_proj" in found
    assert all(one.change < 0.01 for one in found.report.modules if one.module != "model.layers.0.q_proj")


def test_another_model_is_warned_of():
    base = wide()
    with pytest.warns(UserWarning, match=r"does not look like a fine-tune.*times as large as the weights"):
        extract_adapter(wide(seed=5), base, 4)
    generator = torch.Generator().manual_seed(3)
    noise = {name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    with pytest.warns(UserWarning, match=r"the singular values of the change are as even as those of noise"):
        extract_adapter(noise, base, 4)


def test_kinds_of_layers(tmp_path):
    rng = torch.Generator().manual_seed(0)
    kinds = {"embed_tokens": ModuleKind("embedding"), "c": ModuleKind("conv", (3, 3)), "h.0.c_attn": ModuleKind()}
    factors = {m: LoraFactors(torch.randn(2, 18, generator=rng), torch.randn(4, 2, generator=rng)) for m in kinds}
    base = {
        "embed_tokens.weight": torch.randn(18, 4, generator=rng),
        "c.weight": torch.randn(4, 2, 3, 3, generator=rng),
        "h.0.c_attn.weight": torch.randn(18, 4, generator=rng),
        "h.0.c_attn.bias": torch.zeros(4),
        "depthwise.weight": torch.randn(4, 1, 3, 3, generator=rng),
    }
    made = Adapter(factors, kinds=kinds)
    tuned = dict(bake(base, made))
    with pytest.warns(UserWarning, match="times as large"):
        found = extract_adapter(tuned, base, 2)
    assert {m: info.kind for m, info in found.infos.items()} == kinds
    assert found.provenance.fan_in_fan_out
    for module in made:
        torch.testing.assert_close(found[module].delta(), made[module].delta(), rtol=1e-4, atol=1e-4)
    again = load_adapter(save_adapter(found, tmp_path / "out"))
    assert dict(again.infos) == dict(found.infos)
    tuned["depthwise.weight"] = base["depthwise.weight"] + 1
    with pytest.raises(IncompatibleAdaptersError, match="a convolution with groups"):
        extract_adapter(tuned, base, 2)


def test_quantized_weights_are_refused():
    base = {"q.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}
    with pytest.raises(UnsupportedCheckpointError, match="is stored as F8_E4M3"):
        extract_adapter(base, base, 2)


def test_weights_that_are_not_finite():
    base = tensors()
    tuned = dict(bake(base, adapter()))
    tuned["model.layers.0.q_proj.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"q_proj\.weight' minus that of .* is not finite"):
        extract_adapter(tuned, base, 2)


def test_the_names_and_the_record(tmp_path):
    folder = write_shards(tmp_path / "base", tensors(), config={"_name_or_path": "org/base"})
    bake(folder, adapter(), tmp_path / "tuned")
    found = extract_adapter(tmp_path / "tuned", folder, 2, name="mine")
    assert found.name == "mine"
    assert found.provenance.base_model == "org/base"
    assert [source.name for source in found.provenance.sources] == ["tuned", "base"]
    assert found.provenance.made.step.recipe["class"] == "extract_adapter"
    assert set(found) == set(SHAPES)
