"""Differences of biases and norms: read, added up by the methods that add updates up, written, and lost nowhere."""

import pickle
import warnings
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft_files import pair, write_directory
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import lora_ab, write_file

from lorakit import (
    Adapter,
    AverageMerger,
    ConcatMerger,
    LegoMerger,
    LegoPruner,
    ModuleScaler,
    ModuleSelector,
    NormBalancer,
    SVDMerger,
    SVDPruner,
    TaskArithmeticMerger,
    TiesMerger,
    applied,
    bake,
    check_fit,
    convert_adapter,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.cli import main
from lorakit.exceptions import (
    CorruptFileError,
    IncompatibleAdaptersError,
    OutputError,
    UnsupportedAdapterError,
)
from lorakit.metrics import interference

P = "diffusion_model.blocks.0."
ADDED = {"q.bias": 3, "norm.weight": 5, "norm.bias": 5, "scale.weight": 4}
KEYS = {"q.bias": "q.diff_b", "norm.weight": "norm.w_norm", "norm.bias": "norm.b_norm", "scale.weight": "scale.diff"}


def vectors(seed):
    rng = torch.Generator().manual_seed(100 + seed)
    return {name: torch.randn(size, generator=rng) for name, size in ADDED.items()}


def contents(seed=0, dtype=torch.float32):
    added = {P + KEYS[name]: vector.to(dtype) for name, vector in vectors(seed).items()}
    return lora_ab(f"{P}q", seed=seed, dtype=dtype) | added


def kept(path, **options):
    return load_adapter(path, differences="keep", **options)


def read(adapter):
    return {name.removeprefix(P): adapter.differences.read(name) for name in adapter.differences.infos}


def assert_added(adapter, expected, **tolerance):
    seen = read(adapter)
    assert set(seen) == set(expected)
    for name, vector in expected.items():
        torch.testing.assert_close(seen[name].double(), vector.double(), **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))


@pytest.fixture
def two(tmp_path):
    paths = [write_file(tmp_path / f"{i}.safetensors", contents(i)) for i in range(2)]
    return load_adapters(paths, differences="keep")


@pytest.fixture
def refused(two):
    def check(act, *says):
        with pytest.raises(UnsupportedAdapterError) as caught:
            act()
        for text in ("also adds to", "q.bias", "differences='drop'", *says):
            assert text in str(caught.value)

    return check


def test_read(tmp_path):
    path = write_file(tmp_path / "x.safetensors", contents())
    adapter = kept(path)
    assert list(adapter) == [f"{P}q"]
    assert_added(adapter, vectors(0))
    assert adapter.differences.infos[f"{P}q.bias"] == (torch.float32, (3,))
    again = pickle.loads(pickle.dumps(adapter))
    assert joblib.hash(again) == joblib.hash(adapter)
    assert_added(again, vectors(0))
    with pytest.raises(
        UnsupportedAdapterError, match=r"b_norm' belongs to .*without factors \(so do 3 more\).*'keep'.*'drop'"
    ):
        load_adapter(path)
    with pytest.warns(UserWarning, match=r"left out, because of differences='drop'"):
        assert load_adapter(path, differences="drop").differences is None
    with pytest.raises(ValueError, match="differences must be 'refuse', 'keep' or 'drop', got 'first'"):
        load_adapter(path, differences="first")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_dtypes(tmp_path, dtype):
    adapter = kept(write_file(tmp_path / "x.safetensors", contents(dtype=dtype)))
    assert_added(adapter, {name: vector.to(dtype) for name, vector in vectors(0).items()})


def test_kohya_and_bare(tmp_path):
    flat = {f"lora_unet_{key.removeprefix(P)}": tensor for key, tensor in contents().items()}
    kohya = {key.replace("lora_A.", "lora_down.").replace("lora_B.", "lora_up."): t for key, t in flat.items()}
    adapter = kept(write_file(tmp_path / "kohya.safetensors", kohya))
    assert adapter.provenance.format == "kohya"
    assert set(adapter.differences.infos) == {f"lora_unet_{name}" for name in ADDED}
    bare = {f"double_blocks.0.{key.removeprefix(P)}": tensor for key, tensor in contents().items()}
    adapter = kept(write_file(tmp_path / "bare.safetensors", bare))
    assert adapter.provenance.format == "bare"
    for format in ("kohya", "bare"):
        path = tmp_path / f"{format}.safetensors"
        given = kept(path)
        again = kept(save_adapter(given, tmp_path / f"{format}-out.safetensors"))
        assert read(again).keys() == read(given).keys()
        assert all(torch.equal(vector, read(given)[name]) for name, vector in read(again).items())


BAD = {
    "a matrix": (
        {"norm.w_norm": torch.ones(2, 5)},
        CorruptFileError,
        r"has the shape \(2, 5\), expected a vec",
    ),
    "twice": ({"norm.diff": torch.ones(5)}, CorruptFileError, r"norm\.\w+' and '.*norm\.\w+' are both added to"),
    "empty": ({"q.diff_b": torch.ones(0)}, CorruptFileError, "diff_b' is empty"),
    "integers": ({"q.diff_b": torch.ones(3).int()}, UnsupportedAdapterError, "diff_b' is stored as I32"),
    "replaced": ({"norm.set_weight": torch.ones(3)}, UnsupportedAdapterError, "set_weight' belongs to whole"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    changes, error, message = BAD[case]
    path = write_file(tmp_path / "x.safetensors", contents() | {P + key: t for key, t in changes.items()})
    with pytest.raises(error, match=message):
        kept(path)


def test_not_finite(tmp_path):
    tensors = contents() | {f"{P}q.diff_b": torch.tensor([1, torch.nan, 3])}
    adapter = kept(write_file(tmp_path / "x.safetensors", tensors))
    with pytest.raises(CorruptFileError, match=r"q\.diff_b' has NaN .*differences='drop'"):
        adapter.differences.read(f"{P}q.bias")


SUMS = [
    (ConcatMerger(), (0.5, 0.5)),
    (SVDMerger(k=1), (0.5, 0.5)),
    (SVDMerger(k=1, weights=[1, 3], scale=2.0), (0.5, 1.5)),
    (ConcatMerger(weights=[1, -3]), (0.25, -0.75)),
    (SVDMerger(strengths=[0.7, -0.2]), (0.7, -0.2)),
    (ConcatMerger(strengths={"0": 0.0, "1": 2.0}), (0.0, 2.0)),
    (TaskArithmeticMerger(coefficient=0.3), (0.3, 0.3)),
    (TaskArithmeticMerger(), (0.4, 0.4)),
    (TaskArithmeticMerger(weights=[1, 3]), (0.2, 0.6)),
    (TaskArithmeticMerger(strengths=[0.5, 0.25], space="core"), (0.5, 0.25)),
]


@pytest.mark.parametrize(("merger", "factors"), SUMS, ids=lambda x: str(x)[:60])
def test_methods_that_add_up(two, merger, factors):
    merged = merger.fit(two).merged_
    first, second = vectors(0), vectors(1)
    expected = {name: factors[0] * first[name].double() + factors[1] * second[name].double() for name in ADDED}
    assert_added(merged, expected)
    # and the factors of the updates are the same ones
    if getattr(merger, "k", None) is None and isinstance(merger, ConcatMerger):
        dense = sum(c * x[f"{P}q"].delta().double() for c, x in zip(factors, two, strict=True))
        torch.testing.assert_close(merged[f"{P}q"].delta().double(), dense, rtol=1e-5, atol=1e-6)
    hashes = {joblib.hash(merged), joblib.hash(pickle.loads(pickle.dumps(merged)))}
    assert len(hashes) == 1


def test_an_adapter_that_is_listed_twice_has_two_weights(two):
    merged = SVDMerger(weights=[1, 3, 4]).fit([two[0], two[0], two[1]]).merged_
    first, second = vectors(0), vectors(1)
    assert_added(merged, {name: (first[name].double() + second[name].double()) / 2 for name in ADDED})


def test_one_lacks_them(two, tmp_path):
    plain = load_adapter(write_file(tmp_path / "plain.safetensors", lora_ab(f"{P}q", seed=3)))
    merged = SVDMerger().fit([plain, two[1]]).merged_
    assert_added(merged, {name: vector / 2 for name, vector in vectors(1).items()})
    other = contents(1) | {f"{P}q.diff_b": torch.ones(7)}
    wrong = kept(write_file(tmp_path / "wrong.safetensors", other))
    with pytest.raises(IncompatibleAdaptersError, match=r"q\.bias' has \(7,\) numbers in 'wrong', expected \(3,\)"):
        SVDMerger().fit([two[0], wrong])


@pytest.mark.parametrize(
    "merger",
    [LegoMerger(k=2), AverageMerger(), TiesMerger(), TaskArithmeticMerger(space="factors"), SVDMerger(scale="match")],
    ids=str,
)
def test_others_refuse(two, refused, merger):
    refused(lambda: merger.fit(two), "ConcatMerger, SVDMerger or TaskArithmeticMerger")


def test_steps(two, refused, tmp_path):
    for pruner in (SVDPruner(k=1), LegoPruner(k=1)):
        pruned = pruner.fit_transform(two)
        assert pruned[0].ranks == (1,)
        assert_added(pruned[0], vectors(0))
        assert_added(pruned[1], vectors(1))
    refused(lambda: NormBalancer().fit(two))
    refused(lambda: ModuleScaler({".*": 0.5}).fit_transform(two))
    refused(lambda: SVDMerger(k=1).partial_fit(two))
    refused(lambda: interference(two))
    chosen = ModuleSelector(include="*.q").fit_transform(two)
    assert_added(chosen[0], {"q.bias": vectors(0)["q.bias"]})  # the norms are other layers
    renamed = two[0].rename_modules(lambda module: module.replace("blocks.0", "blocks.7"))
    assert set(renamed.differences.infos) == {f"diffusion_model.blocks.7.{name}" for name in ADDED}
    assert two[0].renamed("x").differences is two[0].differences
    assert_added(two[0].astype(torch.float16), vectors(0))
    assert_added(pickle.loads(pickle.dumps(renamed)).rename_modules(lambda m: m.replace("7", "0")), vectors(0))


def test_written(two, tmp_path):
    merged = SVDMerger(k=2).fit(two).merged_
    path = save_adapter(merged, tmp_path / "out.safetensors", dtype=torch.bfloat16)
    stored = load_file(path)
    assert {key: tensor.dtype for key, tensor in stored.items() if "lora" not in key} == {
        P + key: torch.bfloat16 for key in ("q.diff_b", "norm.w_norm", "norm.b_norm", "scale.w_norm")
    }
    assert_added(kept(path), {n: v.bfloat16() for n, v in read(merged).items()})
    for format in ("diffusers", "control_lora", "xlabs"):
        with pytest.raises((OutputError, UnsupportedAdapterError), match="also adds to"):
            save_adapter(merged, tmp_path / "x.safetensors", format=format)
    with pytest.raises((OutputError, UnsupportedAdapterError), match="also adds to"):
        save_adapter(merged, tmp_path / "x", format="mlx")
    large = load_adapters([tmp_path / "0.safetensors"], differences="keep")[0]
    huge = ConcatMerger(strengths=[1e6]).fit([large]).merged_
    with pytest.raises(OutputError, match=r"float16 holds at most"):
        save_adapter(huge, tmp_path / "y.safetensors", dtype=torch.float16)
    assert not (tmp_path / "y.safetensors").exists()


def test_conversion(tmp_path):
    tensors = lora_ab("diffusion_model.transformer_blocks.0.attn.to_q", d_in=4, d_out=4)
    tensors |= {"diffusion_model.transformer_blocks.0.attn.to_q.diff_b": torch.arange(4.0)}
    adapter = kept(write_file(tmp_path / "q.safetensors", tensors))
    converted = convert_adapter(adapter, "bare", family="qwen-image")
    assert list(converted.differences.infos) == ["transformer_blocks.0.attn.to_q.bias"]
    (new,) = converted
    assert new == "transformer_blocks.0.attn.to_q"
    norm = {"diffusion_model.transformer_blocks.0.attn.norm_q.w_norm": torch.ones(2)}
    adapter = kept(write_file(tmp_path / "norm.safetensors", tensors | norm))
    with pytest.raises(UnsupportedAdapterError, match=r"also adds to .*norm_q\.weight'.*differences='drop'"):
        convert_adapter(adapter, "bare", family="qwen-image")


def test_baked(two, tmp_path):
    rng = torch.Generator().manual_seed(0)
    shapes = {"q.weight": (3, 5)} | {name: (size,) for name, size in ADDED.items()}
    base = {P + name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    fit = check_fit(base, two[0])
    assert fit.fits
    assert set(fit.parameters) == {P + name for name in ADDED}
    expected = {name: base[P + name].double() + 0.5 * vectors(0)[name] - 2 * vectors(1)[name] for name in ADDED}
    file = tmp_path / "base.safetensors"
    save_file(base, file)
    for given, output in ((base, None), (str(file), tmp_path / "baked.safetensors")):
        baked = bake(given, list(two), output, strengths=[0.5, -2.0])
        assert set(baked.changed) == {P + name for name in shapes}
        result = dict(baked) if output is None else load_file(output)
        for name in ADDED:
            torch.testing.assert_close(result[P + name].double(), expected[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            result[f"{P}q.weight"].double(),
            base[f"{P}q.weight"].double() + 0.5 * two[0][f"{P}q"].delta() - 2 * two[1][f"{P}q"].delta(),
            rtol=1e-5,
            atol=1e-6,
        )
    with pytest.raises(IncompatibleAdaptersError, match=r"norm\.bias"):
        bake({name: t for name, t in base.items() if not name.endswith("norm.bias")}, two[0])
    with pytest.raises(IncompatibleAdaptersError, match=r"norm\.bias.*is \(5,\), and .* has the shape \(6,\)"):
        bake(base | {f"{P}norm.bias": torch.zeros(6)}, two[0])


def test_where_they_would_be_lost(two, refused):
    model = torch.nn.Sequential(torch.nn.Linear(5, 3))
    says = "applied does not take into account; bake it"
    with pytest.raises(UnsupportedAdapterError, match=says), applied(model, two[0]):
        pass


def test_command_line(tmp_path):
    paths = [str(write_file(tmp_path / f"{i}.safetensors", contents(i))) for i in range(2)]
    out, run = str(tmp_path / "out.safetensors"), CliRunner().invoke
    merge = ["merge", *paths, "-o", out, "-m", "svd", "-k", "2"]
    matched = run(main, [*merge, "--differences", "keep"])
    assert matched.exit_code == 2
    assert "pass --scale 1" in matched.stderr
    merge += ["--scale", "1"]
    refused = run(main, merge)
    assert refused.exit_code == 2
    assert "--differences keep" in refused.stderr
    done = run(main, [*merge, "--differences", "keep", "--save-recipe", str(tmp_path / "recipe.yaml")])
    assert done.exit_code == 0, done.output
    assert_added(kept(out), {name: (vectors(0)[name] + vectors(1)[name]) / 2 for name in ADDED})
    verify = ["verify", out, "--sources", *paths, "--differences"]
    done = run(main, [*verify, "keep"])
    assert done.exit_code == 0, done.output
    changed = load_file(out)
    changed[f"{P}q.diff_b"] += 1
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    save_file(changed, out, metadata)
    done = run(main, [*verify, "keep"])
    assert done.exit_code == 1
    assert "q.bias' is not what its sources give" in done.output
    done = run(main, ["merge", "--recipe", str(tmp_path / "recipe.yaml"), "--overwrite"])
    assert done.exit_code == 0, done.output
    assert_added(kept(out), {name: (vectors(0)[name] + vectors(1)[name]) / 2 for name in ADDED})
    done = run(main, ["diff", *paths, "--differences", "keep"])
    assert done.exit_code == 2
    assert "lorakit diff does not take into account" in done.stderr
    half = str(tmp_path / "half.safetensors")
    done = run(main, ["convert", paths[0], "-o", half, "--dtype", "float16", "--differences", "keep"])
    assert done.exit_code == 0, done.output
    assert_added(kept(half), {name: v.half() for name, v in vectors(0).items()})
    done = run(main, ["prune", *paths, "-o", str(tmp_path / "pruned"), "-m", "svd", "-k", "1", "--differences", "keep"])
    assert done.exit_code == 0, done.output


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def test_peft_bias(write_peft, tmp_path):
    bias = {"base_model.model.enc.0.q.lora_B.bias": torch.arange(3.0)}
    path = write_peft(pair() | bias, lora_bias=True)
    with pytest.raises(UnsupportedAdapterError, match=r"lora_bias is set.*differences='keep'.*differences='drop'"):
        load_adapter(path)
    adapter = kept(path)
    assert list(adapter.differences.infos) == ["enc.0.q.bias"]
    torch.testing.assert_close(adapter.differences.read("enc.0.q.bias"), 2 * torch.arange(3.0))  # alpha / r is 2
    with pytest.warns(UserWarning, match="left out"):
        assert load_adapter(path, differences="drop").differences is None
    again = kept(save_adapter(adapter, tmp_path / "out"))
    torch.testing.assert_close(again.differences.read("enc.0.q.bias"), 2 * torch.arange(3.0))
    for name, changes, error, says in (
        ("alone", {"base_model.model.k.lora_B.bias": torch.ones(3)}, CorruptFileError, "no factors"),
        ("long", {"base_model.model.enc.0.q.lora_B.bias": torch.ones(4)}, CorruptFileError, "each of 3 outputs"),
    ):
        with pytest.raises(error, match=says):
            kept(write_peft(pair() | changes, folder=name, lora_bias=True))
    norm = adapter.rename_modules(lambda m: m)
    with pytest.raises(UnsupportedAdapterError, match="lora_bias"):
        kept(write_peft(pair() | bias, folder="unsaid"))  # PEFT would leave it out without a word
    assert norm.differences is not None


@pytest.mark.interop
def test_peft_writes_and_reads_it(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], lora_bias=True, init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B.default.bias" in name:
            torch.nn.init.normal_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes the biases for shards of factors
        model.save_pretrained(tmp_path / "x")
    merged = model.merge_and_unload().state_dict()
    adapter = kept(tmp_path / "x")
    baked = bake(state, adapter)
    for name, tensor in merged.items():
        torch.testing.assert_close(baked[name], tensor, rtol=1e-6, atol=1e-6)
    # and PEFT reads what is written
    path = save_adapter(ConcatMerger(strengths=[1.0]).fit([adapter]).merged_, tmp_path / "out")
    fresh = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    fresh.load_state_dict(state)
    theirs = peft.PeftModel.from_pretrained(fresh, path).merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.interop
def test_lycoris_writes_it(tmp_path):
    pytest.importorskip("lycoris")
    from lycoris.modules.full import FullModule
    from lycoris.modules.norms import NormModule

    torch.manual_seed(0)
    linear, conv, norm = torch.nn.Linear(5, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.LayerNorm(5)
    state = {
        f"lora_unet_{name}.{key}".removeprefix("lora_unet_"): tensor.clone()
        for name, layer in {"l": linear, "c": conv, "n": norm}.items()
        for key, tensor in layer.state_dict().items()
    }
    tensors, expected = {}, dict(state)
    for name, module in {
        "l": FullModule("lora_unet_l", linear),
        "c": FullModule("lora_unet_c", conv),
        "n": NormModule("lora_unet_n", norm),
    }.items():
        if name != "n":
            module.apply_to()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        norms = {key: tensor for key, tensor in module.state_dict().items() if "norm" in key}
        named = module.custom_state_dict() if name != "n" else norms
        tensors |= {f"lora_unet_{name}.{key}": tensor.detach().clone() for key, tensor in named.items()}
        if name == "n":
            weight, bias = module.get_merged_weight(1.0)
        else:
            weight, bias = module.make_weight()
        expected |= {f"{name}.weight": weight.detach(), f"{name}.bias": bias.detach()}
    adapter = kept(write_file(tmp_path / "x.safetensors", tensors))
    assert adapter.provenance.stored_as == ("Full",)
    assert {m: info.kind.name for m, info in adapter.infos.items()} == {"lora_unet_l": "linear", "lora_unet_c": "conv"}
    baked = bake(state, adapter)
    for name, tensor in expected.items():
        torch.testing.assert_close(baked[name], tensor, rtol=1e-6, atol=1e-6)


def test_whole_differences_are_updates(tmp_path):
    """Of matrices and kernels: modules of full rank, for every method."""
    rng = torch.Generator().manual_seed(0)
    diffs = {"lora_unet_a": torch.randn(4, 6, generator=rng), "lora_unet_b": torch.randn(5, 2, 3, 3, generator=rng)}
    path = write_file(tmp_path / "full.safetensors", {f"{m}.diff": d for m, d in diffs.items()})
    adapter = load_adapter(path)
    assert adapter.differences is None
    assert {m: info.rank for m, info in adapter.infos.items()} == {"lora_unet_a": 4, "lora_unet_b": 5}
    for module, diff in diffs.items():
        torch.testing.assert_close(adapter[module].delta(), diff.flatten(1))
    again = load_adapter(save_adapter(adapter, tmp_path / "plain.safetensors"))
    assert again.provenance.stored_as == ("LoRA",)
    torch.testing.assert_close(again["lora_unet_b"].delta(), diffs["lora_unet_b"].flatten(1), rtol=1e-5, atol=1e-5)
    cut = SVDMerger(k=2).fit([adapter]).merged_
    s = torch.linalg.svdvals(diffs["lora_unet_a"].double())
    error = (cut["lora_unet_a"].delta().double() - diffs["lora_unet_a"]).norm()
    np.testing.assert_allclose(error.item(), s[2:].norm().item(), rtol=1e-5)
    both = {"lora_unet_a.diff": diffs["lora_unet_a"], "lora_unet_a.lora_down.weight": torch.ones(1, 6),
            "lora_unet_a.lora_up.weight": torch.ones(4, 1)}  # fmt: skip
    with pytest.raises(CorruptFileError, match="expected one kind"):
        load_adapter(write_file(tmp_path / "both.safetensors", both))
    with pytest.raises(CorruptFileError, match=r"expected \(out, in\)"):
        load_adapter(write_file(tmp_path / "deep.safetensors", {"lora_unet_a.diff": torch.ones(1, 1, 1, 1, 1, 1)}))


def test_in_memory():
    from lorakit import LoraFactors
    from lorakit.adapters import Provenance
    from lorakit.differences import MemoryDifferences

    given = Adapter(
        {"q": LoraFactors(torch.ones(1, 2), torch.ones(3, 1))},
        provenance=Provenance(differences=MemoryDifferences({"q.bias": torch.ones(3)})),
    )
    (pruned,) = SVDPruner(k=1).fit_transform([given])
    assert torch.equal(pruned.differences.read("q.bias"), torch.ones(3))
