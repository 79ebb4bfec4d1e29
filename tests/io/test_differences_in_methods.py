"""Differences of biases and norms in methods: added up by those that add updates up, lost nowhere."""

import pickle

import joblib
import pytest
import torch
from difference_files import ADDED, P, assert_added, contents, kept, read, vectors
from safetensors.torch import load_file, save_file
from single_files import lora_ab, write_file
from sklearn.base import clone

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
    load_adapter,
    load_adapters,
)
from lorakit.exceptions import (
    IncompatibleAdaptersError,
    UnsupportedAdapterError,
)
from lorakit.metrics import interference


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


def norm(vector):
    return float(vector.double().norm())


@pytest.mark.parametrize(
    ("merger", "factors", "shares"),
    [
        (ConcatMerger(scale="match"), (0.5, 0.5), (0.5, 0.5)),
        (SVDMerger(k=1, scale="match", scale_target=0.7, weights=[1, 3]), (0.25, 0.75), (0.25, 0.75)),
        (ConcatMerger(scale="match", weights=[1, -3]), (0.25, -0.75), (0.25, 0.75)),
        (SVDMerger(scale="match", strengths=[0.7, -0.2]), (0.7, -0.2), (0.35, 0.1)),
        (TaskArithmeticMerger(scale="match", coefficient=0.3), (0.3, 0.3), (0.5, 0.5)),
    ],
    ids=lambda x: str(x)[:60],
)
def test_each_parameter_has_its_norm_matched(two, merger, factors, shares):
    """As each module has: the mean norm of what the adapters add, in the direction of the sum."""
    merged = merger.fit(two).merged_
    first, second = vectors(0), vectors(1)
    expected = {}
    for name in ADDED:
        total = factors[0] * first[name].double() + factors[1] * second[name].double()
        wanted = merger.scale_target * (shares[0] * norm(first[name]) + shares[1] * norm(second[name]))
        expected[name] = total * (wanted / norm(total))
    assert_added(merged, expected)


@pytest.mark.parametrize("target", [1.0, 0.5])
def test_the_norm_of_the_model_is_that_of_all_parameters(two, target):
    """Modules and other parameters together; all have one factor."""
    merged = ConcatMerger(scale="match", scale_scope="model", scale_target=target).fit(two).merged_
    first, second = vectors(0), vectors(1)
    plain = {name: (first[name].double() + second[name].double()) / 2 for name in ADDED}

    def of_model(updates, added):
        return sum(norm(x) ** 2 for x in [*updates, *added]) ** 0.5

    deltas = [adapter[f"{P}q"].delta().double() for adapter in two]
    sizes = [of_model([delta], added.values()) for delta, added in zip(deltas, (first, second), strict=True)]
    factor = target * sum(sizes) / 2 / of_model([sum(deltas) / 2], plain.values())
    assert_added(merged, {name: factor * vector for name, vector in plain.items()})
    torch.testing.assert_close(merged[f"{P}q"].delta().double(), factor * sum(deltas) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
def test_a_sum_of_zero_has_no_norm_to_match(two):
    opposite = ConcatMerger(scale="match", strengths=[1.0, -1.0]).fit([two[0], two[0]])
    assert_added(opposite.merged_, {name: torch.zeros(size) for name, size in ADDED.items()})


@pytest.mark.parametrize(
    "merger",
    [SVDMerger(k=4), SVDMerger(k=4, scale="match"), SVDMerger(k=4, scale=2.0), TaskArithmeticMerger(k=4)],
    ids=str,
)
def test_as_they_come(two, tmp_path, merger):
    """partial_fit, one adapter at a time, gives what fit gives on all; one of them has no differences."""
    plain = load_adapter(write_file(tmp_path / "plain.safetensors", lora_ab(f"{P}q", seed=3)))
    all_at_once = clone(merger).set_params(weights=[2, 1, 1]).fit([two[0], plain, two[1]]).merged_
    running = clone(merger).partial_fit([two[0]], weights=[2.0], keep=8)
    first = running.running_sum_.differences[f"{P}q.bias"].clone()
    running = running.partial_fit([plain]).partial_fit([two[1]])
    assert not torch.equal(first, running.running_sum_.differences[f"{P}q.bias"])
    assert_added(running.merged_, {name: read(all_at_once)[name] for name in ADDED})
    other = contents(1) | {f"{P}q.diff_b": torch.ones(7)}
    wrong = kept(write_file(tmp_path / "wrong.safetensors", other))
    before = pickle.dumps(running.running_sum_.differences)
    with pytest.raises(IncompatibleAdaptersError, match=r"q\.bias' has \(7,\) numbers in 'wrong', expected \(3,\)"):
        running.partial_fit([wrong])
    assert pickle.dumps(running.running_sum_.differences) == before


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
    [LegoMerger(k=2), AverageMerger(), TiesMerger(), TaskArithmeticMerger(space="factors")],
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
    refused(lambda: interference(two))
    chosen = ModuleSelector(include="*.q").fit_transform(two)
    assert_added(chosen[0], {"q.bias": vectors(0)["q.bias"]})  # the norms are other layers
    renamed = two[0].rename_modules(lambda module: module.replace("blocks.0", "blocks.7"))
    assert set(renamed.differences.infos) == {f"diffusion_model.blocks.7.{name}" for name in ADDED}
    assert two[0].renamed("x").differences is two[0].differences
    assert_added(two[0].astype(torch.float16), vectors(0))
    assert_added(pickle.loads(pickle.dumps(renamed)).rename_modules(lambda m: m.replace("7", "0")), vectors(0))


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
