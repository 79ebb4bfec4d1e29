"""The four spaces of the element-wise rules: exact, thin, and functions of the updates alone."""

from pathlib import Path

import pytest
import torch
from elementwise import EVERY_RULE, RULES, SPACES, adapters, dense, distance
from safetensors.torch import load_file
from sklearn.base import clone
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit import (
    Adapter,
    AdapterSet,
    BreadcrumbsMerger,
    DareMerger,
    DellaMerger,
    LoraFactors,
    MagnitudeMerger,
    SCEMerger,
    TaskArithmeticMerger,
    TiesMerger,
)
from lorakit.merging import _elementwise
from lorakit.testing import check_merger

CASES = sorted((Path(__file__).parents[1] / "data").glob("*.safetensors"))
LINEAR = [
    MagnitudeMerger(density=1.0),
    BreadcrumbsMerger(density=1.0, gamma=0),
    DareMerger(density=1.0),
    TaskArithmeticMerger(coefficient=1 / 3),
]

pytestmark = pytest.mark.usefixtures("one_blas_thread")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_knots_ties_as_its_authors(path):
    tensors = load_file(path)
    t = sum(key.endswith(".A") for key in tensors)
    X = AdapterSet(
        Adapter({"m": LoraFactors(tensors[f"in.{i}.A"], tensors[f"in.{i}.B"])}, name=str(i)) for i in range(t)
    )
    expected = tensors["knots_ties_top20"]
    result = dense(TiesMerger(density=0.2, space="knots", convention="official"), X)["m"]
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    exact = dense(TiesMerger(density=0.2, space="knots"), X)["m"]
    assert (exact - expected).abs().max() > 1e-3  # one entry more makes a difference that can be seen


@pytest.mark.parametrize("merger", LINEAR, ids=str)
def test_linear_rules_agree_in_all_spaces_of_updates(merger):
    X = adapters(n_modules=2)
    mean = {m: sum(f.delta() for f in X.factors(m)) / 3 for m in X.module_names}
    for space in ("delta", "core", "knots"):
        assert distance(dense(merger, X, space=space), mean) < 1e-12


def changed(X):
    """The same updates, factored differently and in another order."""
    generator = torch.Generator().manual_seed(5)

    def mixed(f):
        g = torch.eye(f.rank, dtype=f.dtype) + 0.3 * torch.randn(f.rank, f.rank, generator=generator, dtype=f.dtype)
        g = (-3 * g)[torch.randperm(f.rank, generator=generator)]
        return LoraFactors(g @ f.A, f.B @ torch.linalg.inv(g))

    return AdapterSet(Adapter({m: mixed(f) for m, f in a.items()}, name=a.name) for a in X)[[2, 0, 1]]


@EVERY_RULE
@pytest.mark.parametrize("space", SPACES)
def test_only_the_updates_matter(merger, space):
    """Unless the rule acts on A and B, which it says."""
    X = adapters(space)
    merger = clone(merger).set_params(space=space)
    off = distance(dense(merger, changed(X)), dense(merger, X))
    assert off > 0.1 if space == "factors" else off < 1e-9
    assert bool(merger.invariances) == (space != "factors")
    assert merger.needs_equal_ranks == (space == "factors")


@pytest.mark.parametrize(
    "merger",
    [
        *(TiesMerger(space=space, convention="official") for space in ("factors", "core", "core_factors", "knots")),
        TiesMerger(vote="frequency", disjoint="sum", rescale="l1"),
        BreadcrumbsMerger(trim_scope="row", sign_election=True),
        SCEMerger(space="knots", convention="official"),
        *(DellaMerger(space=space) for space in ("factors", "core", "knots")),
        DareMerger(space="factors", sign_election=True),
        MagnitudeMerger(space="core"),
        BreadcrumbsMerger(space="knots"),
        TaskArithmeticMerger(space="factors"),
    ],
    ids=str,
)
def test_contract(merger):
    """The contract suite has the default space of each."""
    check_merger(merger)


class NoDense(TorchDispatchMode):
    """Fails on any tensor as large as an update."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.numel() >= self.limit:
                raise MemoryError(f"{func} made a tensor of shape {tuple(x.shape)}")
        return out


@EVERY_RULE
def test_small_spaces_form_no_dense_update(merger, monkeypatch):
    X = adapters(d_in=150, d_out=140, dtype=torch.float32)
    spaces = ["core", "knots", *(["delta"] if isinstance(merger, TaskArithmeticMerger) else [])]
    with monkeypatch.context() as patch:
        patch.setattr(LoraFactors, "delta", None)
        for space in spaces:
            with NoDense(150 * 140):
                clone(merger).set_params(space=space).fit(X)
    if "delta" not in spaces:
        with NoDense(150 * 140), pytest.raises(MemoryError, match=r"shape"):  # the guard works
            clone(merger).set_params(space="delta").fit(X)


TRIMS = [
    TiesMerger(),
    TiesMerger(convention="official"),
    TiesMerger(trim_scope="model"),
    MagnitudeMerger(),
    BreadcrumbsMerger(gamma=0.5),
    BreadcrumbsMerger(gamma=0.5, trim_scope="row"),
    SCEMerger(),
]


@pytest.mark.parametrize("merger", TRIMS, ids=str)
@pytest.mark.parametrize("space", [*SPACES, "core_factors"])
def test_every_trim_keeps_an_entry(merger, space):
    """``int(density * n)`` would be zero: in a small space of few ranks, and here in all."""
    X = adapters(d_in=5, d_out=4, ranks=(1, 1))
    merged = clone(merger).set_params(space=space, density=0.001).fit(X).merged_
    assert merged["layer.0"].delta().abs().max() > 0
    if not (merger.get_params().get("trim_scope") == "row" or merger.get_params().get("convention") == "official"):
        matched = clone(merger).set_params(space=space, density=0.001, scale="match").fit(X).merged_
        wanted = sum(float(f.delta().norm()) for f in X.factors("layer.0")) / 2
        assert float(matched["layer.0"].delta().norm()) == pytest.approx(wanted)


@pytest.mark.parametrize("space", ["core", "core_factors", "knots"])
@pytest.mark.parametrize("merger", [TiesMerger(density=0.4), SCEMerger(), MagnitudeMerger(density=0.3)], ids=str)
def test_weight_two_is_an_adapter_listed_twice(merger, space):
    X = adapters()
    twice = AdapterSet([*X, X[1].renamed("again"), X[2].renamed("again 2"), X[2].renamed("again 3")])
    weighted = dense(merger, X, space=space, weights=[1, 2, 3], k=6)
    assert distance(weighted, dense(merger, twice, space=space, k=6)) < 1e-9
    assert distance(weighted, dense(merger, X, space=space, k=6)) > 0.05


@pytest.mark.parametrize("space", ["core", "knots"])
def test_signs_of_bases_do_not_depend_on_the_order(space):
    """Votes that cancel elect plus: where is plus in a basis whose vectors have no sign of their own?"""
    x, y = adapters()[:2]
    minus = Adapter({m: LoraFactors(f.A, -f.B) for m, f in x.items()}, name="minus")
    X = AdapterSet([x, minus, y])
    merged = dense(TiesMerger(density=1.0), X, space=space, k=8)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        assert distance(dense(TiesMerger(density=1.0), X[order], space=space, k=8), merged) < 1e-9
    assert distance(dense(TiesMerger(density=1.0), changed(X), space=space, k=8), merged) < 1e-9


def slow_decay():
    """Adapters whose TIES merge has full rank, and singular values that fall slowly."""
    return adapters(ranks=(24, 24, 24), d_in=280, d_out=320, random_state=1)


def test_randomized_svd_is_nearly_optimal():
    X = slow_decay()
    merged = dense(TiesMerger(density=0.05), X)["layer.0"]
    s = torch.linalg.svdvals(merged)
    assert s[60] > 0.2 * s[0]  # it is slow
    for k in (4, 16):
        cut = [dense(TiesMerger(density=0.05, svd_solver=how), X, k=k)["layer.0"] for how in ("exact", "randomized")]
        exact, randomized = ((x - merged).norm() for x in cut)
        torch.testing.assert_close(exact, s[k:].norm())
        assert exact * (1 + 1e-12) < randomized < 1.03 * exact  # another solver, and no worse to speak of


def test_randomized_svd_is_exact_from_the_rank_on():
    X = slow_decay()
    mean = {"layer.0": sum(f.delta() for f in X.factors("layer.0")) / 3}
    assert distance(dense(MagnitudeMerger(density=1.0, svd_solver="randomized"), X, k=72), mean) < 1e-12


def test_randomized_svd_is_deterministic_and_chosen_where_it_pays(monkeypatch):
    X = slow_decay()

    def fitted(how, k, **params):
        return dense(TiesMerger(svd_solver=how, **params), X, k=k)["layer.0"]

    exact, randomized = fitted("exact", 8), fitted("randomized", 8)
    assert torch.equal(randomized, fitted("randomized", 8, n_jobs=2))
    assert not torch.equal(exact, randomized)
    assert torch.equal(fitted("auto", 8), exact)  # narrow modules: a full SVD is quick
    monkeypatch.setattr(_elementwise, "_LARGE", 256)
    assert torch.equal(fitted("auto", 8), randomized)
    assert torch.equal(fitted("auto", 100), fitted("exact", 100))  # too many columns to gain
    assert torch.equal(fitted("randomized", 270), fitted("exact", 270))  # as many columns as there are
    d = DareMerger(k=8, svd_solver="randomized", random_state=3)
    assert torch.equal(d.fit(X).merged_["layer.0"].A, clone(d).fit(X).merged_["layer.0"].A)


@EVERY_RULE
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("k", [None, 2])
def test_nobody_who_counts_has_the_module(merger, space, k):
    """All adapters that have it weigh zero, or have not trained it: a zero update, of a rank that files can hold."""
    x, y, z = adapters(space, n_modules=2)
    untrained = LoraFactors(y["layer.1"].A, 0 * y["layer.1"].B)
    without = [Adapter({"layer.0": a["layer.0"]}, name=a.name) for a in (y, z)]
    fresh = [Adapter({"layer.0": a["layer.0"], "layer.1": untrained}, name=a.name) for a in (y, z)]
    options = [{"trim_scope": "module"}, {"trim_scope": "model"}] if isinstance(merger, TiesMerger) else [{}]
    for others in (without, fresh):
        if others is fresh and space == "factors":
            continue  # A is there, so B is merged as ever
        for params in options:
            merger = clone(merger).set_params(space=space, weights=[0, 1, 2], k=k, **params)
            merged = merger.fit([x, *others]).merged_
            assert merged["layer.1"].delta().abs().max() == 0
            assert merged["layer.1"].rank >= 1
            assert merged["layer.0"].delta().norm() > 0
            merger.set_params(scale="match").fit([x, *others])


def test_an_adapter_of_weight_zero_is_not_there():
    X = adapters(n_modules=2)
    for merger in RULES:
        for space in ("delta", "core", "knots"):
            with_it = dense(merger, X, space=space, weights=[1, 0, 3], k=4)
            assert distance(with_it, dense(merger, X[[0, 2]], space=space, weights=[1, 3], k=4)) < 1e-12
