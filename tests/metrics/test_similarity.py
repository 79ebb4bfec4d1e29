"""Cosines, subspace overlap and principal angles against dense float64 algebra."""

import numpy as np
import pytest
import torch
from dense_updates import dense, dense_vectors
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from lorakit import Adapter, AdapterSet, LoraFactors, load_adapters
from lorakit.metrics import cosine_matrix, cosine_similarity, principal_angles, subspace_overlap
from lorakit.testing import adapter_sets, gauges, make_adapters

CONTENTS = ("random", "zero", "duplicate_msus", "identical_adapters", "rank_deficient", "huge", "tiny")
SIDES = st.sampled_from(["out", "in"])


def dense_basis(adapter, module, X, side):
    u, s, vh = np.linalg.svd(dense(adapter, module, X).numpy(), full_matrices=False)
    rank = int((s > 1e-10 * s[0]).sum())
    return (u if side == "out" else vh.T)[:, :rank]


@given(adapter_sets(content=CONTENTS))
def test_cosines_against_dense(X):
    flat = dense_vectors(X)
    norms = flat.norm(dim=1, keepdim=True)
    flat = flat / torch.where(norms > 0, norms, 1)
    found = cosine_matrix(X)
    assert np.allclose(found, (flat @ flat.T).numpy(), atol=1e-9)
    assert np.array_equal(found, found.T)


def test_one_cosine_of_the_matrix():
    X = make_adapters(ranks=(4, 8, 2), random_state=0)
    found = cosine_matrix(X, n_jobs=2)
    assert found[0, 2] == pytest.approx(cosine_similarity(X[0], X[2]), abs=1e-12)


@given(adapter_sets(min_adapters=2, content=CONTENTS), SIDES)
def test_overlaps_and_angles_against_dense(X, side):
    overlaps = np.zeros((len(X), len(X)))
    shared = np.zeros((len(X), len(X)))
    for module in X.module_names:
        bases = [dense_basis(a, module, X, side) if module in a else None for a in X]
        for i, u in enumerate(bases):
            for j, v in enumerate(bases):
                if u is None or v is None:
                    continue
                shared[i, j] += 1
                smaller = min(u.shape[1], v.shape[1])
                cosines = np.linalg.svd(u.T @ v, compute_uv=False) if smaller else np.empty(0)
                overlaps[i, j] += np.square(cosines).sum() / max(smaller, 1)
        if bases[0] is not None and bases[1] is not None:
            angles = principal_angles(X[0], X[1], side=side)[module]
            some = min(b.shape[1] for b in bases[:2])
            expected = np.sort(subspace_angles(*bases[:2])) if some else np.empty(0)
            assert angles.shape == expected.shape
            assert angles == pytest.approx(expected, abs=1e-7)
    with np.errstate(invalid="ignore"):
        assert subspace_overlap(X, side=side) == pytest.approx(overlaps / shared, abs=1e-9, nan_ok=True)


@given(adapter_sets(min_adapters=2, missing_modules=False), gauges(), SIDES)
def test_only_the_updates_count(X, gauge, side):
    assert subspace_overlap(gauge(X), side=side) == pytest.approx(subspace_overlap(X, side=side), abs=1e-8)


def test_sides_and_small_angles():
    eye = torch.eye(6, dtype=torch.float64)
    turn = 1e-9
    x = Adapter({"m": LoraFactors(eye[:2], eye[:, :2])}, name="x")
    tilted = eye[:, :2] + turn * eye[:, 2:4]
    y = Adapter({"m": LoraFactors(eye[2:4], tilted)}, name="y")
    assert principal_angles(x, y)["m"] == pytest.approx([turn, turn], rel=1e-5)
    assert principal_angles(x, y, side="in")["m"] == pytest.approx([np.pi / 2] * 2)
    assert subspace_overlap([x, y]) == pytest.approx(np.ones((2, 2)))
    assert subspace_overlap([x, y], side="in") == pytest.approx(np.eye(2))


def test_a_subspace_in_another_overlaps_wholly():
    x, y = make_adapters(ranks=(2, 6), random_state=0)
    part = Adapter({m: LoraFactors(f.A[:2], f.B[:, :2]) for m, f in y.items()}, name="part")
    assert subspace_overlap([part, y])[0, 1] == pytest.approx(1)
    assert subspace_overlap([x, y])[0, 1] < 0.9


def test_round_off_is_no_direction():
    """In float32, units that depend on one another leave singular values of round-off, which span nothing."""
    (adapter,) = make_adapters(1, ranks=2, random_state=0)
    doubled = Adapter(
        {m: LoraFactors(torch.cat([f.A, f.A / 3]), torch.cat([f.B, f.B / 7], dim=1)) for m, f in adapter.items()},
        name="doubled",
    )
    assert [len(angles) for angles in principal_angles(doubled, doubled.renamed("b")).values()] == [2, 2]


def test_adapters_that_share_no_module():
    x, y, z = make_adapters(3, ranks=2, n_modules=2, random_state=0)
    X = AdapterSet([x, y.select(["layer.0"]), z.select(["layer.1"])])
    found = subspace_overlap(X)
    assert np.isnan(found[1, 2])
    assert not np.isnan(found[0]).any()
    assert list(principal_angles(X[0], X[1])) == ["layer.0"]


def test_the_same_task_twice(real_adapter_paths):
    X = load_adapters([real_adapter_paths[name] for name in ("langid", "langid_r16", "icd10", "wn_noun")])
    for matrix in (cosine_matrix(X), subspace_overlap(X)):
        assert matrix.diagonal() == pytest.approx(np.ones(4))
        assert matrix[0, 1] > max(matrix[0, 2], matrix[0, 3])
    # what they read is another matter: A stays near its random start, which those of one rank had in common
    assert subspace_overlap(X, side="in")[0, 2:].min() > 0.7
    assert subspace_overlap(X, side="in")[0, 1] < 0.1


def test_unknown_side():
    with pytest.raises(ValueError, match="'left'"):
        subspace_overlap(make_adapters(2), side="left")
    with pytest.raises(ValueError, match="'left'"):
        principal_angles(*make_adapters(2), side="left")
