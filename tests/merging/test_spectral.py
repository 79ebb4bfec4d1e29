"""TSV, Iso, SVC, CtM and WUDI against dense float64 algebra written out plainly, and what they promise."""

from pathlib import Path

import pytest
import torch
from gauges import CHANGES, changed
from published.cases import SPECTRAL, expected_spectral
from published.spectral import iso_cts, svd
from safetensors.torch import load_file
from sklearn.base import clone

from lorakit import (
    Adapter,
    AdapterSet,
    CtMMerger,
    IsoMerger,
    LoraFactors,
    SVCMerger,
    TiesMerger,
    TSVMerger,
    WUDIMerger,
    load_adapters,
)
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters

ROOT = Path(__file__).parents[2]
MERGERS = [
    TSVMerger(),
    IsoMerger(),
    IsoMerger(variant="cts", common_share=0.5),
    SVCMerger(),
    SVCMerger(alpha=0.3),
    CtMMerger(),
    CtMMerger(rule="mean"),
    CtMMerger(rule="iso"),
    CtMMerger(beta=0.5),
    CtMMerger(rule="dare_ties", random_state=0),
    WUDIMerger(),
    WUDIMerger(ridge=0.0),
]
each_merger = pytest.mark.parametrize("merger", MERGERS, ids=str)


def random_set(**options):
    return AdapterSet(
        make_adapters(**{"ranks": (3, 5, 4), "n_modules": 1, "dtype": torch.float64, "random_state": 3} | options)
    )


def nearly_dependent_set(distance=1e-2):
    """Three adapters, of which two differ by little."""
    x, y = random_set(ranks=(4, 3))
    noise = random_set(ranks=(4,), random_state=4)[0]
    near = {m: LoraFactors(f.A + distance * noise[m].A, f.B + distance * noise[m].B) for m, f in x.items()}
    return AdapterSet([x, y, Adapter(near, name="near")])


SETS = {
    "random": random_set(),
    "nearly dependent": nearly_dependent_set(),
    "more ranks than width": random_set(ranks=(8, 7, 8)),
}
each_set = pytest.mark.parametrize("X", SETS.values(), ids=SETS)
WEIGHTS = (1, 2, 4)  # equal ones are those of the official results


@pytest.mark.parametrize(("merger", "reference", "options"), SPECTRAL, ids=lambda x: str(x) if "(" in str(x) else "")
@each_set
def test_dense_reference(merger, reference, options, X):
    merged = clone(merger).set_params(weights=WEIGHTS).fit(X).merged_
    # what two near adapters have outside the directions that they share is small, and nearly opposite
    tolerance = 1e-5 if reference is iso_cts and X is SETS["nearly dependent"] else 1e-7
    for module in X.module_names:
        expected = expected_spectral(merger, reference, options, X, module, WEIGHTS)
        assert (merged[module].delta() - expected).norm() < tolerance * expected.norm()


CASES = sorted((ROOT / "tests" / "data").glob("*.safetensors"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("merger", "key"), [(TSVMerger(), "core_tsv"), (IsoMerger(), "core_iso_c_sum")], ids=str)
def test_official_results(merger, key, path):
    tensors = load_file(path)
    if key not in tensors:
        assert path.stem == "case1"  # mixed ranks, which the official code refuses
        return
    n = sum(name.endswith(".A") for name in tensors)
    adapters = [Adapter({"m": LoraFactors(tensors[f"in.{i}.A"], tensors[f"in.{i}.B"])}, name=str(i)) for i in range(n)]
    result = merger.fit(adapters).merged_["m"].delta()
    torch.testing.assert_close(result, tensors[key], rtol=1e-9, atol=1e-9)


@each_merger
@each_set
def test_neither_factors_nor_order_matter(merger, X):
    merger = clone(merger).set_params(k=4)
    merged = merger.fit(X).merged_
    for change in CHANGES.values():
        assert relative_error(clone(merger).fit(changed(X, change)).merged_, merged) < 1e-6
    assert relative_error(clone(merger).fit(X[[2, 0, 1]]).merged_, merged) < 1e-6


@each_merger
def test_units_that_add_nothing_add_nothing(merger):
    """Updates of lower rank than their factors: a unit in two halves, one of zeros, two that cancel."""
    X = random_set()

    def padded(f):
        a, b = f.A[:1], f.B[:, :1]
        return LoraFactors(torch.cat([f.A, a, a, 0 * a]), torch.cat([f.B, b, -b, b], dim=1))

    wide = AdapterSet(Adapter({m: padded(f) for m, f in a.items()}, name=a.name) for a in X)
    merged = clone(merger).set_params(k=4).fit(X).merged_
    assert relative_error(clone(merger).set_params(k=4).fit(wide).merged_, merged) < 1e-6


@each_merger
def test_a_missing_module_is_a_zero_update(merger):
    X = random_set(n_modules=2)
    zero = X[0]["layer.1"]
    zero = LoraFactors(zero.A, 0 * zero.B)
    there = Adapter({"layer.0": X[0]["layer.0"], "layer.1": zero}, name="task0")
    lacking = Adapter({"layer.0": X[0]["layer.0"]}, name="task0")
    merger = clone(merger).set_params(k=4)
    merged = clone(merger).fit([lacking, X[1], X[2]]).merged_
    assert relative_error(merged, merger.fit([there, X[1], X[2]]).merged_) < 1e-6


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
@each_merger
def test_updates_that_are_all_zero_merge_to_zero(merger):
    X = AdapterSet(Adapter({m: f.scaled(0) for m, f in a.items()}, name=a.name) for a in random_set())
    merged = clone(merger).fit(X).merged_
    assert all(f.delta().shape == (16, 24) and f.delta().abs().max() == 0 for f in merged.values())


@pytest.mark.parametrize(
    "merger", [TSVMerger(), SVCMerger(), WUDIMerger(ridge=0.0), CtMMerger(density=1.0), CtMMerger(rule="mean")], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_copies_of_an_adapter_merge_to_it(merger, dtype):
    """No direction of round-off gets in, though the copies' directions depend on one another."""
    (adapter,) = random_set(ranks=(4,), dtype=dtype)
    X = [
        adapter,
        changed(AdapterSet([adapter]), lambda f, _: (2 * f.A, f.B / 2))[0].renamed("b"),
        adapter.renamed("c"),
    ]
    merged = merger.fit(X).merged_
    assert relative_error(merged, adapter) < 1e-5
    assert merged.ranks == (4,)


def test_copies_of_an_adapter_are_isotropic_at_its_mean_singular_value():
    (adapter,) = random_set(ranks=(4,))
    for variant in ("c", "cts"):
        merged = IsoMerger(variant=variant).fit([adapter, adapter.renamed("b")]).merged_["layer.0"]
        mean = torch.linalg.svdvals(adapter["layer.0"].delta())[:4].mean()
        torch.testing.assert_close(torch.linalg.svdvals(merged.delta())[:4], mean.expand(4))
        assert merged.rank == 4


@pytest.mark.parametrize("merger", [TSVMerger(), SVCMerger(), WUDIMerger(ridge=0.0)], ids=str)
def test_adapters_that_do_not_overlap_merge_to_their_sum(merger):
    q_in, q_out = (
        torch.linalg.qr(f.T if f.shape[0] < f.shape[1] else f).Q for f in random_set(ranks=(8,))[0]["layer.0"]
    )
    mixed = random_set(ranks=(3, 5), d_in=3, d_out=5)
    x = LoraFactors(mixed[0]["layer.0"].A @ q_in[:, :3].T, q_out[:, :3])
    y = LoraFactors(mixed[1]["layer.0"].B.T @ q_in[:, 3:].T, q_out[:, 3:])
    merged = merger.fit([Adapter({"m": x}, name="x"), Adapter({"m": y}, name="y")]).merged_["m"]
    torch.testing.assert_close(merged.delta(), x.delta() + y.delta())


@pytest.mark.parametrize("merger", [TSVMerger(), SVCMerger(alpha=0.1), WUDIMerger()], ids=str)
def test_the_cut_is_the_best_approximation(merger):
    X = random_set()
    whole = clone(merger).fit(X)
    for k in (1, 4, 9):
        cut = clone(merger).set_params(k=k).fit(X).merged_
        for module in X.module_names:
            s = torch.from_numpy(whole.singular_values_[module])
            torch.testing.assert_close(s, torch.linalg.svdvals(whole.merged_[module].delta())[: len(s)])
            error = (cut[module].delta() - whole.merged_[module].delta()).norm()
            torch.testing.assert_close(error, s[k:].norm())


def test_iso_is_cut_after_it_was_made_isotropic():
    """To the leading directions of the sum, at the mean over all."""
    X = random_set()
    total = sum(f.delta() for f in X.factors("layer.0"))
    u, s, v = svd(total, 12)
    for k in (1, 5):
        merged = IsoMerger(k=k).fit(X).merged_["layer.0"].delta()
        torch.testing.assert_close(merged, s.mean() * u[:, :k] @ v[:, :k].T)


def test_iso_with_only_common_directions_is_iso_c():
    X = random_set()
    merged = IsoMerger(variant="cts", common_share=1.0).fit(X).merged_
    assert relative_error(merged, IsoMerger().fit(X).merged_) < 1e-7


def test_svc_only_shrinks_at_alpha_one():
    X = random_set(ranks=(3, 3, 3))
    sums = torch.linalg.svdvals(sum(f.delta() for f in X.factors("layer.0")))[:9]
    assert (torch.from_numpy(SVCMerger().fit(X).singular_values_["layer.0"]) <= sums + 1e-9).all()
    assert (torch.from_numpy(SVCMerger(alpha=0.01).fit(X).singular_values_["layer.0"]) > sums).any()


def test_ctm_at_full_rank_is_the_rule_in_the_core_space():
    X = random_set()
    whole = CtMMerger(k=12, rule="mean").fit(X).merged_
    mean = sum(f.delta() for f in X.factors("layer.0")) / 3
    torch.testing.assert_close(whole["layer.0"].delta(), mean)
    iso_c = IsoMerger().fit(X).merged_
    assert relative_error(CtMMerger(k=12, rule="iso").fit(X).merged_, iso_c) < 1e-7
    every = CtMMerger(k=12, density=1.0).fit(X).merged_
    assert 0.01 < relative_error(every, TiesMerger(k=12, density=1.0, space="core").fit(X).merged_) < 2  # other bases


def test_ctm_takes_the_largest_rank_by_default():
    assert CtMMerger().fit(random_set()).merged_.ranks == (5,)


def test_wudi_weighs_adapters_alike_whatever_their_size():
    """What an adapter does to its own inputs is kept as well when another grows a hundredfold."""
    X = nearly_dependent_set()
    big = Adapter({m: f.scaled(100) for m, f in X[1].items()}, name="big")
    merged = WUDIMerger(ridge=1e-12).fit([X[0], big]).merged_["layer.0"].delta()
    own = X[0]["layer.0"].delta()
    assert ((merged - own) @ own.T).norm() < 1e-3 * (own @ own.T).norm()


@pytest.mark.parametrize(
    ("merger", "name"),
    [
        (IsoMerger(variant="both"), "variant"),
        (IsoMerger(common_share=1.5), "common_share"),
        (SVCMerger(alpha=0.0), "alpha"),
        (CtMMerger(rule="sum"), "rule"),
        (CtMMerger(density=0.0), "density"),
        (CtMMerger(beta=1.5), "beta"),
        (CtMMerger(dare_density=0.0), "dare_density"),
        (CtMMerger(max_iter=0), "max_iter"),
        (CtMMerger(tol=-1.0), "tol"),
        (WUDIMerger(ridge=-1.0), "ridge"),
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(merger, name):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        merger.fit(random_set())


@pytest.fixture(scope="module")
def real_set():
    names = ("icd10", "langid_r16", "wn_noun_r4", "wn_pos", "deb_section")
    X = load_adapters([ROOT / "examples" / "adapters" / name for name in names])
    modules = ("encoder.layer.0.attention.self.query", "encoder.layer.5.output.dense")
    return AdapterSet(Adapter({m: adapter[m] for m in modules}, name=adapter.name) for adapter in X)


@each_merger
def test_real_adapters_of_mixed_ranks(merger, real_set):
    X = real_set
    for k in (4, 8, 16):
        merged = clone(merger).set_params(k=k).fit(X).merged_
        assert merged.ranks == (k,)
        for module, factors in merged.items():
            size = sum(f.delta().norm() for f in X.factors(module)) / len(X)
            assert 0.1 < factors.delta().norm() / size < 10


def test_ctm_draws_anew_for_another_seed():
    X, merger = random_set(), CtMMerger(k=5, rule="dare_ties")
    first, second, again = (clone(merger).set_params(random_state=seed).fit(X).merged_ for seed in (1, 2, 1))
    assert relative_error(second, first) > 0.01
    assert relative_error(again, first) == 0


def test_ctm_learns_its_bases_on_updates_of_one_norm():
    """By default; with ``beta=1`` an adapter a hundred times larger takes them all."""
    X = random_set(ranks=(4, 4))
    big = AdapterSet([X[0], Adapter({m: f.scaled(100) for m, f in X[1].items()}, name="big")])

    def small_update_kept(beta, X):
        merged = CtMMerger(k=4, rule="mean", beta=beta).fit(X).merged_["layer.0"].delta()
        basis = torch.linalg.svd(merged).U[:, :4]
        own = X[0]["layer.0"].delta()
        return float((basis.T @ own).norm() / own.norm())

    assert small_update_kept(0.0, big) == pytest.approx(small_update_kept(0.0, X), rel=0.2)
    assert small_update_kept(1.0, big) < 0.8 * small_update_kept(0.0, big)


@pytest.mark.parametrize("rule", ["ties", "dare_ties"])
@pytest.mark.parametrize("k", [1, 2])
def test_ctm_keeps_an_entry_at_the_lowest_ranks(rule, k):
    """``int(.2 k^2)`` is zero there. DARE may drop that entry, of one adapter, but of all three it is seldom."""
    for seed in range(3):
        merged = CtMMerger(k=k, rule=rule, random_state=seed).fit(random_set()).merged_["layer.0"]
        assert merged.delta().norm() > 0
