"""Ranks chosen from singular values."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lorakit import (
    Adapter,
    ConcatMerger,
    LegoMerger,
    LoraFactors,
    RankBudget,
    RankRule,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    load_adapter,
    save_adapter,
)
from lorakit._ranks import choose_ranks
from lorakit.cli import main
from lorakit.testing import adapter_sets, make_adapters

SPECTRA = {"a": np.array([4.0, 3.0, 0.0]), "b": np.array([2.0, 1.9, 1.8])}
LIMITS = {"a": 3, "b": 3}
COSTS = {"a": 100, "b": 400}


@pytest.mark.parametrize(("share", "ranks"), [(0.5, (1, 2)), (0.64, (1, 2)), (0.65, (2, 2)), (0.99, (2, 3))])
def test_share_of_energy(share, ranks):
    assert choose_ranks(share, SPECTRA, LIMITS, COSTS) == dict(zip("ab", ranks, strict=True))


def test_effective_rank():
    flat = {"a": np.ones(4), "b": np.array([1.0, 0, 0]), "c": np.zeros(3), "d": np.array([1.0, 0.5])}
    assert choose_ranks("auto", flat, dict.fromkeys(flat, 9), COSTS) == {"a": 4, "b": 1, "c": 1, "d": 2}


def test_limits_hold():
    assert choose_ranks(0.99, SPECTRA, {"a": 1, "b": 2}, COSTS) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [
        (RankBudget(1), (1, 1)),
        (RankBudget(1.5), (2, 1)),
        (RankBudget(2), (2, 2)),
        (RankBudget(2.5), (2, 3)),
        (RankBudget(3), (3, 3)),
        (RankBudget(9), (3, 3)),
        (RankBudget(3, max_rank=2), (2, 2)),
    ],
    ids=str,
)
def test_budget_goes_where_singular_values_are_large(budget, ranks):
    assert choose_ranks(budget, SPECTRA, LIMITS, COSTS) == dict(zip("ab", ranks, strict=True))


def test_order_of_modules_does_not_matter():
    equal = {name: np.ones(3) for name in "cab"}
    chosen = choose_ranks(RankBudget(4 / 3), equal, dict.fromkeys(equal, 3), dict.fromkeys(equal, 9))
    assert chosen == choose_ranks(
        RankBudget(4 / 3), dict(sorted(equal.items())), dict.fromkeys(equal, 3), dict.fromkeys(equal, 9)
    )


@pytest.mark.parametrize("options", [{"mean": 0.5}, {"mean": 4, "max_rank": 0}, {"mean": float("nan")}])
def test_impossible_budgets(options):
    with pytest.raises(ValueError, match="1 or more"):
        RankBudget(**options)


@given(X=adapter_sets(missing_modules=False), share=st.floats(0.1, 0.95))
def test_merge_keeps_the_share_with_the_least_rank(X, share):
    merger = SVDMerger(k=share).fit(X)
    for module, factors in merger.merged_.items():
        energy = merger.singular_values_[module] ** 2
        kept = energy.cumsum() / energy.sum()
        assert kept[factors.rank - 1] >= share - 1e-9
        assert factors.rank == 1 or kept[factors.rank - 2] < share


@given(X=adapter_sets(missing_modules=False), mean=st.floats(1, 4))
def test_budget_is_optimal_over_the_model(X, mean):
    """No other split of the same total rank, at least one a module, leaves a smaller error."""
    merger = SVDMerger(k=RankBudget(mean)).fit(X)
    ranks = {module: factors.rank for module, factors in merger.merged_.items()}
    total = min(int(mean * 2), sum(len(s) for s in merger.singular_values_.values()))
    assert sum(ranks.values()) == total
    tail = {m: np.append((s**2)[::-1].cumsum()[::-1], 0) for m, s in merger.singular_values_.items()}
    first, second = tail.values()
    best = min(first[r] + second[total - r] for r in range(1, total) if r < len(first) and 1 <= total - r < len(second))
    assert sum(tail[m][r] for m, r in ranks.items()) == pytest.approx(best)


@pytest.mark.parametrize(
    "k", [0.7, "auto", RankBudget(3), RankRule(sv_ratio=2), RankRule(sv_fro=0.8), RankRule(sv_cumulative=0.7)], ids=str
)
def test_other_estimators_take_them_too(k):
    X = make_adapters(ranks=(4, 6), dtype=torch.float64, random_state=0)
    expected = {module: f.rank for module, f in SVDMerger(k=k).fit(X).merged_.items()}
    lego = LegoMerger(k=k, random_state=0).fit(X).merged_
    assert {module: f.rank for module, f in lego.items()} == expected
    for before, after in zip(X, SVDPruner(k=k).fit_transform(X), strict=True):
        assert all(1 <= after[m].rank <= before[m].rank for m in before)


@pytest.mark.parametrize("k", [0, 1.5, 0.0, 1.0, "most", -0.1])
def test_other_values_are_refused(k):
    with pytest.raises(ValueError, match="'k' parameter"):
        SVDMerger(k=k).fit(make_adapters(random_state=0))


@pytest.mark.parametrize(
    ("n_bytes", "ranks"),
    [
        # 640 of headers and 500 for one rank each; then 3 / 10 (a), 1.9 / 20 and 1.8 / 20 (b) at 100, 400 and 400
        (1140, (1, 1)),
        (1239, (1, 1)),
        (1240, (2, 1)),
        (1640, (2, 2)),
        (1740, (2, 2)),  # a has nothing left
        (2040, (2, 3)),
    ],
)
def test_a_size_is_spent_where_it_gives_most(n_bytes, ranks):
    limits = {"a": 2, "b": 3}
    assert choose_ranks(RankBudget(size=4096 + n_bytes), SPECTRA, limits, COSTS) == dict(zip("ab", ranks, strict=True))


def test_sizes_and_their_units():
    assert [RankBudget(size=s).n_bytes for s in (9, "9", "1.5 kB", "50MiB")] == [9, 9, 1500, 50 * 2**20]
    assert repr(RankBudget(size="50MiB")) == "RankBudget(mean=None, max_rank=None, size='50MiB')"
    for wrong in ({}, {"mean": 4, "size": 9}, {"size": "much"}, {"size": "50 mib"}, {"size": 0}, {"mean": 0.5}):
        with pytest.raises(ValueError, match=r"a budget of ranks needs|a size is"):
            RankBudget(**wrong)
    with pytest.raises(ValueError, match=r"too small: rank 1 in each of 2 modules takes 5236 bytes"):
        choose_ranks(RankBudget(size=4096 + 1139), SPECTRA, LIMITS, COSTS)


def test_a_file_of_a_size_has_that_size(tmp_path):
    adapters = make_adapters(2, n_modules=6, ranks=(8, 16), random_state=0)
    merger = SVDMerger(k=RankBudget(size="14kB")).fit(adapters)
    save_adapter(merger.merged_, tmp_path / "out", layout="compact")
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert 9_000 < size <= 14_000
    (pruned,) = SVDPruner(k=RankBudget(size="14kB")).fit_transform([adapters[1]])
    save_adapter(pruned, tmp_path / "pruned", layout="compact")
    assert (tmp_path / "pruned" / "adapter_model.safetensors").stat().st_size <= 14_000


TIES = np.array([8.0, 4.0, 4.0, 4.0, 2.0, 2.0, 1.0, 0.0])  # energy 121, sum 25


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ({"sv_ratio": 1}, 1),
        ({"sv_ratio": 1.9}, 1),
        ({"sv_ratio": 2}, 4),  # 4 is not below 8 / 2
        ({"sv_ratio": 2.1}, 4),
        ({"sv_ratio": 4}, 6),
        ({"sv_ratio": 8}, 7),
        ({"sv_ratio": 1e9}, 7),  # 0 is below any limit
        ({"sv_ratio": 4, "max_rank": 5}, 5),
        ({"sv_fro": (64 / 121) ** 0.5}, 1),
        ({"sv_fro": (65 / 121) ** 0.5}, 2),
        ({"sv_fro": (80 / 121) ** 0.5}, 2),
        ({"sv_fro": (112 / 121) ** 0.5}, 4),
        ({"sv_fro": 0.9999}, 7),
        ({"sv_fro": 0.9999, "max_rank": 3}, 3),
        ({"sv_cumulative": 8 / 25}, 1),
        ({"sv_cumulative": 0.33}, 2),
        ({"sv_cumulative": 16 / 25}, 3),
        ({"sv_cumulative": 20 / 25}, 4),
        ({"sv_cumulative": 24 / 25}, 6),
        ({"sv_cumulative": 0.99}, 7),
    ],
    ids=str,
)
def test_rules_on_a_spectrum_with_ties(rule, rank):
    assert choose_ranks(RankRule(**rule), {"a": TIES}, {"a": 8}, {"a": 1}) == {"a": rank}
    assert choose_ranks(RankRule(**rule), {"a": TIES / 3}, {"a": 8}, {"a": 1}) == {"a": rank}  # of any size
    assert choose_ranks(RankRule(**rule), {"a": TIES}, {"a": 2}, {"a": 1}) == {"a": min(rank, 2)}
    assert choose_ranks(RankRule(**rule), {"a": np.zeros(4)}, {"a": 4}, {"a": 1}) == {"a": 1}


SPECTRUM = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 7.0]), min_size=1, max_size=9).map(
    lambda values: np.array(sorted(values, reverse=True))
)


@given(s=SPECTRUM, amount=st.floats(0.05, 0.95), ratio=st.floats(1, 40))
def test_rules_are_their_definitions(s, amount, ratio):
    """The smallest rank for which the sentence holds, tried one after the other."""
    says = {
        "sv_ratio": lambda r: r == len(s) or s[r] < s[0] / ratio * (1 - 1e-12),
        "sv_fro": lambda r: np.sqrt((s[:r] ** 2).sum()) >= amount * np.sqrt((s**2).sum()) * (1 - 1e-12),
        "sv_cumulative": lambda r: s[:r].sum() >= amount * s.sum() * (1 - 1e-12),
    }
    for name, holds in says.items():
        rule = RankRule(**{name: ratio if name == "sv_ratio" else amount})
        wanted = next(r for r in range(1, len(s) + 1) if holds(r)) if s.any() else 1
        assert choose_ranks(rule, {"a": s}, {"a": len(s)}, {"a": 1}) == {"a": wanted}


def with_spectrum(s, seed=0):
    """An adapter of one module whose update has these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, len(s), generator=generator, dtype=torch.float64))[0] for n in (20, 30))
    return Adapter({"m": LoraFactors((torch.tensor(s)[:, None] * v.mT), u)}, name="x")


@pytest.mark.parametrize(("rule", "rank"), [({"sv_ratio": 2.5}, 4), ({"sv_fro": 0.95}, 4), ({"sv_cumulative": 0.7}, 4)])
def test_rules_of_a_pruner_and_of_a_merger_of_one(rule, rank):
    adapter = with_spectrum(TIES[:7])
    (pruned,) = SVDPruner(k=RankRule(**rule)).fit_transform([adapter])
    assert pruned["m"].rank == rank
    for merger in (ConcatMerger, TiesMerger, SVDMerger):
        assert merger(k=RankRule(**rule)).fit([adapter]).merged_["m"].rank == rank


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "needs one of"),
        ({"sv_fro": 0.5, "sv_ratio": 2}, "needs one of"),
        ({"sv_fro": 0.5, "sv_cumulative": 0.5}, "needs one of"),
        ({"max_rank": 4}, "needs one of"),
        ({"sv_fro": 1.0}, "between 0 and 1"),
        ({"sv_cumulative": 0}, "between 0 and 1"),
        ({"sv_fro": float("nan")}, "between 0 and 1"),
        ({"sv_ratio": 0.9}, "1 or more"),
        ({"sv_ratio": float("inf")}, "finite"),
        ({"sv_ratio": float("nan")}, "finite"),
        ({"sv_ratio": 2, "max_rank": 0}, "max_rank of 1"),
    ],
    ids=str,
)
def test_impossible_rules(rule, message):
    with pytest.raises(ValueError, match=message):
        RankRule(**rule)


@pytest.mark.parametrize("command", ["merge", "prune", "convert"])
def test_the_command_line_takes_rules(command, tmp_path):
    source = save_adapter(with_spectrum(TIES[:7]), tmp_path / "x")
    out = tmp_path / "out"
    for text, rank in (("sv_ratio:2.5", 4), ("sv_fro:0.95", 4), ("sv_cumulative:0.7", 4), ("sv_ratio:9,max:5", 5)):
        options = {"merge": ["--method", "svd"], "prune": [], "convert": []}[command]
        result = CliRunner().invoke(main, [command, str(source), "-o", str(out), "-k", text, "--overwrite", *options])
        assert result.exit_code == 0, result.output
        assert load_adapter(out)["m"].rank == rank
    for wrong in ("sv_fro:1.5", "sv_ratio:", "sv_ratio:2,max:x", "sv_knee:2"):
        result = CliRunner().invoke(main, [command, str(source), "-o", str(tmp_path / "no"), "-k", wrong])
        assert result.exit_code == 2, result.output
        assert wrong in result.output
        assert not (tmp_path / "no").exists()
