"""Distilling adapters that have no classes: what they change in a model's outputs is matched."""

import numpy as np
import pytest
import torch
from tiny_heads import encode, toy_inputs, toy_model
from torch import nn

from lorakit import Adapter, AdapterSet, DistillMerger, LoraFactors, TSVMerger, applied, collect_targets
from lorakit.distillation.nearness import Changes
from lorakit.distillation.targets import untouched_outputs
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 5), dtype=torch.float64, random_state=0))


def merger(**options):
    defaults = {
        "k": 6,
        "model": toy_model(),
        "inputs": toy_inputs(200),
        "forwards": encode,
        "match": "changes",
        "epochs": 15,
        "learning_rate": 0.02,
        "random_state": 0,
    }
    return DistillMerger(**defaults | options)


def outputs(adapter, inputs):
    with torch.no_grad(), applied(toy_model(), adapter) as model:
        return encode(model, inputs).numpy()


def counted(adapter, X, inputs):
    """The loss by its formula, dense, in float64."""
    with torch.no_grad():
        base = encode(toy_model(), inputs).numpy()
    found = []
    for teacher in X:
        d = outputs(teacher, inputs) - base
        c = d.T @ d / len(d)
        e = (base if adapter is None else outputs(adapter, inputs)) - outputs(teacher, inputs)
        found.append(np.einsum("ni,ij,nj->n", e, c, e) / np.einsum("ni,ij,nj->n", d, c, d).mean())
    return np.array(found)


def test_the_loss_is_the_formula(X):
    inputs = toy_inputs(40)
    targets = collect_targets(toy_model(), X, inputs, encode, dtype="float64")
    untouched = untouched_outputs(toy_model(), X.names, inputs, encode, batch_size=7)
    teachers = Changes(targets, X.names, untouched)
    start = TSVMerger(k=4, scale="match").fit(X).merged_
    rows = np.array([5, 0, 39])
    expected = counted(start, X, inputs)
    change = counted(None, X, inputs)
    for i, name in enumerate(X.names):
        student = torch.from_numpy(outputs(start, inputs)[rows])
        np.testing.assert_allclose(teachers.loss(name, rows, student), expected[i, rows], rtol=1e-9)
        assert teachers.agreeing(name, rows, student).tolist() == (expected[i, rows] <= change[i, rows] / 4).tolist()
        base = torch.from_numpy(untouched[name])
        assert float(teachers.loss(name, np.arange(40), base).mean()) == pytest.approx(1, rel=1e-9)
        same = torch.from_numpy(targets[name])
        assert float(teachers.loss(name, np.arange(40), same).max()) == 0
        assert teachers.agreeing(name, np.arange(40), same).all()


def test_the_merge_comes_nearer_to_what_every_adapter_changes(X):
    fitted = merger().fit(X)
    fresh = toy_inputs(300, seed=9)
    start = TSVMerger(k=6, scale="match").fit(X).merged_
    before, after = counted(start, X, fresh).mean(axis=1), counted(fitted.merged_, X, fresh).mean(axis=1)
    assert after.mean() < 0.8 * before.mean()
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert set(fitted.temperatures_.values()) == {1.0}


def test_updates_on_outputs_of_their_own_are_all_kept():
    """No error of one is a change of the other: the sum satisfies both."""
    rng = np.random.RandomState(0)
    model = nn.ModuleDict({"layer": nn.Linear(10, 8, bias=False, dtype=torch.float64)})
    adapters = []
    for i in range(2):
        b = np.zeros((8, 2))
        b[4 * i : 4 * i + 4] = rng.standard_normal((4, 2))
        adapters.append(Adapter({"layer": LoraFactors(rng.standard_normal((2, 10)), b)}, name=f"t{i}"))
    inputs = torch.randn(256, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = DistillMerger(
        k=4, model=model, inputs=inputs, forwards=lambda m, x: m["layer"](x), match="changes", epochs=200,
        learning_rate=0.05, random_state=0,
    ).fit(adapters)  # fmt: skip
    assert fitted.loss_curve_[-1] < 1e-5
    assert fitted.agreement_curve_[-1] == 1
    assert fitted.agreement_curve_[0] < 1
    both = adapters[0]["layer"].delta() + adapters[1]["layer"].delta()
    start = TSVMerger(k=4, scale="match").fit(adapters).merged_["layer"].delta()
    # the weakest directions of a change weigh least, and come last
    assert torch.linalg.norm(fitted.merged_["layer"].delta() - both) < 0.5 * torch.linalg.norm(start - both)


def test_one_adapter_is_kept_and_one_that_changes_nothing_asks_for_nothing(X):
    fitted = merger(k=5).fit([X[1]])
    assert fitted.agreement_curve_ == [1.0]
    assert relative_error(fitted.merged_, X[1]) < 1e-6
    idle = Adapter({m: LoraFactors(f.A, 0 * f.B) for m, f in X[0].items()}, name="idle")
    both = merger(k=5, epochs=2, start=TSVMerger()).fit([X[1], idle])
    assert np.isfinite(both.loss_curve_).all()


def test_a_checkpoint_is_of_one_match(X, tmp_path):
    merger(epochs=1, checkpoint=tmp_path / "state").fit(X)
    with pytest.raises(ValueError, match="of a merge of other adapters, inputs or parameters"):
        merger(epochs=1, checkpoint=tmp_path / "state", match="classes").fit(X)
    with pytest.raises(ValueError, match="The 'match' parameter of DistillMerger must be a str among"):
        merger(match="hidden").fit(X)
