"""The four spaces of the element-wise rules: exact, thin, tiled, and functions of the updates alone."""

import subprocess
import sys
from pathlib import Path

import dense_rules
import numpy as np
import pytest
import torch
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
    TaskArithmeticMerger,
    TiesMerger,
)
from lorakit._execution import one_thread
from lorakit.merging import _elementwise
from lorakit.testing import check_merger, make_adapters

CASES = sorted((Path(__file__).parents[1] / "data").glob("*.safetensors"))
RULES = [
    TiesMerger(density=0.3),
    TiesMerger(density=0.3, convention="official"),
    MagnitudeMerger(density=0.3),
    BreadcrumbsMerger(density=0.3, gamma=0.1),
    DareMerger(random_state=0),
    DareMerger(sign_election=True, random_state=0),
    DellaMerger(random_state=0),
    TaskArithmeticMerger(),
]
LINEAR = [
    MagnitudeMerger(density=1.0),
    BreadcrumbsMerger(density=1.0, gamma=0),
    DareMerger(density=1.0),
    TaskArithmeticMerger(coefficient=1 / 3),
]
SPACES = ["delta", "factors", "core", "knots"]
EVERY_RULE = pytest.mark.parametrize("merger", RULES, ids=str)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():  # of many, most would wait: the matrices are small
        yield


def adapters(space="delta", **options):
    ranks = (4, 4, 4) if space == "factors" else (3, 5, 4)
    defaults = {"ranks": ranks, "d_in": 21, "d_out": 17, "n_modules": 1, "dtype": torch.float64, "random_state": 0}
    return AdapterSet(make_adapters(**defaults | options))


def dense(merger, X, **params):
    """Dense merged updates by module; at full rank unless ``k`` is given."""
    merger = clone(merger).set_params(**params)
    if "k" not in params:
        limits = [merger._rank_limit([i for i in X.infos(m) if i]) for m in X.module_names]
        merger.set_params(k=max(limits))
    return {module: factors.delta() for module, factors in merger.fit(X).merged_.items()}


def distance(x, y):
    return max(float((x[m] - y[m]).norm() / y[m].norm()) for m in y)


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
        *(TiesMerger(space=space, convention="official") for space in ("factors", "core", "knots")),
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


def with_cancelling(X):
    """One update is there with both signs, so that votes of exactly zero occur, and minus is the majority."""
    negative = LoraFactors(X[0]["layer.0"].A.abs(), -X[0]["layer.0"].B.abs())
    plus = LoraFactors(X[1]["layer.0"].A, X[1]["layer.0"].B)
    both = [negative, plus, LoraFactors(plus.A, -plus.B)]
    return AdapterSet(Adapter({"layer.0": f}, name=str(i)) for i, f in enumerate(both))


@EVERY_RULE
@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_tiles_do_not_show(merger, cancelling, kept, monkeypatch):
    X = adapters()
    if cancelling:
        X = with_cancelling(X)
        # only the last rows have votes other than zero; the rest take their sign from them
        first = X[0]["layer.0"]
        first = LoraFactors(first.A, torch.cat([0 * first.B[:12], first.B[12:]]))
        X = AdapterSet([Adapter({"layer.0": first}, name="0"), X[1], X[2]])
    whole = dense(merger, X)
    assert len(_elementwise._tiles(X.factors("layer.0"))) == 1
    if not kept:
        monkeypatch.setattr(_elementwise, "_KEPT", 0)
    for tile in (1, 3 * 21 * 5):  # rows of one adapter at a time: one, five
        monkeypatch.setattr(_elementwise, "_TILE", tile)
        assert len(_elementwise._tiles(X.factors("layer.0"))) == {1: 17, 315: 4}[tile]
        tiled = dense(merger, X)
        torch.testing.assert_close(tiled["layer.0"], whole["layer.0"], rtol=0, atol=1e-10)
        for a, b in zip(tiled.values(), dense(merger, X, n_jobs=2).values(), strict=True):
            assert torch.equal(a, b)


def test_the_majority_is_that_of_the_whole_module():
    """What the test above would not see if cancelling votes were rare: here they decide."""
    X = with_cancelling(adapters())
    official, exact = (dense(TiesMerger(density=1.0, convention=c), X)["layer.0"] for c in ("official", "exact"))
    factors = X.factors("layer.0")
    for mine, is_official in ((official, True), (exact, False)):
        options = {"density": 1.0, "official": is_official}
        expected = dense_rules.merged_in("delta", dense_rules.ties, factors, np.ones(3), **options)
        torch.testing.assert_close(mine, torch.from_numpy(expected), rtol=0, atol=1e-10)
    cancelled = AdapterSet([Adapter({"layer.0": X[0]["layer.0"].scaled(0)}, name="0"), X[1], X[2]])
    assert dense(TiesMerger(density=1.0), cancelled)["layer.0"].norm() > 1  # a zero vote elects plus
    assert dense(TiesMerger(density=1.0, convention="official"), cancelled)["layer.0"].norm() < 1e-12  # no majority


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("space", SPACES)
def test_trimming_over_the_whole_model(space, convention, dtype, monkeypatch):
    """Against a dense concatenation of all that each adapter has; a module that it lacks takes no share."""
    monkeypatch.setattr(_elementwise, "_TILE", 200)
    X = adapters(space, n_modules=3, dtype=dtype)
    size = {"layer.0": 1.0, "layer.1": 3.0, "layer.2": 0.2}  # so that the scope matters
    X = AdapterSet(
        [
            *(
                Adapter({m: f.scaled(size[m] * (i + 1)) for m, f in a.items() if (i, m) != (1, "layer.1")}, name=a.name)
                for i, a in enumerate(X)
            ),
            make_adapters(1, ranks=4, d_in=21, d_out=17, n_modules=3, dtype=dtype, random_state=9)[0],
        ]
    )
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    official = convention == "official"
    density = 0.23
    options = {"space": space, "convention": convention, "density": density, "weights": weights}
    result = dense(TiesMerger(trim_scope="model", **options), X)
    expected = expected_model(X, space, density, official)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert distance(result, expected) < tolerance
    by_module = dense(TiesMerger(**options), X)
    assert distance(by_module, expected) > 0.05


def expected_model(X, space, density, official):
    weights = np.array([1.0, 2.0, 3.0]) / 6
    parts = {}  # by module and half: a tensor of each adapter
    back = {}
    for module in X.module_names:
        pairs = dense_rules.as_pairs(X[:3].factors(module))
        if space == "factors":
            width = max(len(a) for a, _ in pairs)
            full = [(a, b) if len(a) else (np.zeros((width, 21)), np.zeros((17, width))) for a, b in pairs]
            parts[module, "A"], parts[module, "B"] = ([pair[i] for pair in full] for i in (0, 1))
        else:
            parts[module, "W"], back[module] = dense_rules.space_of(space, pairs)
    for i, adapter in enumerate(X[:3]):
        own = [key for key in parts if key[0] in adapter]
        flat = dense_rules.trimmed(np.concatenate([parts[key][i].ravel() for key in own]), density, int(official))
        for key, piece in zip(own, np.split(flat, np.cumsum([parts[key][i].size for key in own])[:-1]), strict=True):
            parts[key][i] = piece.reshape(parts[key][i].shape)
    merged = {key: dense_rules.elected_mean(stack, weights, official) for key, stack in parts.items()}
    if space == "factors":
        out = {m: merged[m, "B"] @ merged[m, "A"] for m in X.module_names}
    else:
        out = {m: back[m](merged[m, "W"]) for m in X.module_names}
    return {m: torch.from_numpy(w) for m, w in out.items()}


def test_the_threshold_of_a_model_is_exact_beyond_all_bits(monkeypatch):
    """Magnitudes that share their leading bits, ties, zeros and subnormal numbers."""
    from lorakit.merging._global_trim import model_thresholds

    for dtype, near in ((torch.float32, 1e-7), (torch.float64, 1e-16)):
        rng = np.random.RandomState(0)
        close = 1 + near * rng.randint(0, 400, 300)
        values = np.concatenate([close, [0.0] * 50, [1e-40] * 50, rng.standard_normal(100)])
        rng.shuffle(values)
        row = torch.from_numpy(values).to(dtype)[None]
        adapter = Adapter({"m": LoraFactors(row, torch.ones(1, 1, dtype=dtype))})
        falling = row.abs().flatten().sort(descending=True).values
        for density in (0.001, 0.3, 0.5, 0.77, 0.95, 1.0):
            for extra in (0, 1):
                X = AdapterSet([adapter])
                blocks = TiesMerger()._blocks
                (found,) = model_thresholds(X, blocks, density, extra=extra, n_jobs=None, device=None)
                keep = min(int(density * 500) + extra, 500)
                assert found == (falling[keep - 1].item() if keep else float("inf"))


def test_nothing_kept_is_a_zero_update():
    X = adapters(d_in=5, d_out=4, ranks=(1, 1))
    for scope in ("module", "model"):
        merged = TiesMerger(density=0.01, trim_scope=scope).fit(X).merged_
        assert merged["layer.0"].delta().abs().max() == 0


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


PEAK = """
import ctypes
import re
from pathlib import Path
import torch
torch.set_num_threads(1)
from lorakit import DareMerger, TiesMerger
from lorakit.testing import make_adapters

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

mergers = [
    TiesMerger(k=8),
    TiesMerger(k=8, trim_scope="model", convention="official"),
    DareMerger(k=8, random_state=0),
]
options = dict(ranks=8, n_modules=1, random_state=0)
small, large = (make_adapters(12, d_in=d, d_out=d, **options) for d in (256, 2048))
for merger in mergers:
    merger.fit(small)  # libraries load, buffers are made
libc = ctypes.CDLL(None)
if hasattr(libc, "malloc_trim"):
    libc.malloc_trim(0)  # what the small ones freed would serve the large ones, and not be counted
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
before = peak()
for merger in mergers:
    merger.fit(large)
    print((peak() - before) / (4 * 2048**2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process's memory from Linux")
def test_memory_is_that_of_two_updates_whatever_their_number():
    """The peak of merging 12 updates of 16 MiB, in updates: at most two, and tiles of 4 MiB and their like."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peaks = [float(line) for line in out.stdout.split()]
    assert len(peaks) == 3
    assert all(0.5 < peak < 4.5 for peak in peaks)
