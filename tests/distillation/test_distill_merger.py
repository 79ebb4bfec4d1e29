"""The distilled merge: its gradients, its optimum, and what it leaves alone."""

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from tiny_heads import encode, merger, same_bits, toy_forward, toy_inputs, toy_model
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit import (
    Adapter,
    AdapterSet,
    AgreementScorer,
    AllAdapters,
    DistillMerger,
    IsoMerger,
    LoraFactors,
    SVDPruner,
    TSVMerger,
    applied,
    collect_targets,
    generic_inputs,
    load_adapter,
    save_adapter,
)
from lorakit.adapters import ModuleKind
from lorakit.distillation.loss import distillation_loss
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 5), dtype=torch.float64, random_state=0))


def test_agreement_rises_above_that_of_the_start(X):
    fitted = merger(epochs=20, inputs=toy_inputs(300)).fit(X)
    assert len(fitted.loss_curve_) == 20
    assert len(fitted.agreement_curve_) == 21
    assert fitted.loss_curve_[-1] < 0.3 * fitted.loss_curve_[0]
    fresh = toy_inputs(500, seed=9)
    scorer = AgreementScorer(toy_model(), fresh, toy_forward, collect_targets(toy_model(), X, fresh, toy_forward))
    assert scorer(fitted) > scorer(TSVMerger(k=6, scale="match").fit(X)) + 0.1
    assert set(fitted.temperatures_) == {"task0", "task1", "task2"}
    assert all(t > 0 for t in fitted.temperatures_.values())


def test_a_merge_that_can_satisfy_every_head_does():
    """Two updates on outputs of their own, and heads that see their task's alone: the sum is the optimum."""
    rng = np.random.RandomState(0)
    model = nn.ModuleDict({"layer": nn.Linear(10, 8, bias=False, dtype=torch.float64)})
    adapters = []
    for i in range(2):
        b = np.zeros((8, 2))
        b[4 * i : 4 * i + 4] = rng.standard_normal((4, 2))
        adapters.append(Adapter({"layer": LoraFactors(rng.standard_normal((2, 10)), b)}, name=f"t{i}"))

    def forward(model, x):
        out = model["layer"](x)
        return {"t0": out[:, :4], "t1": out[:, 4:]}

    inputs = torch.randn(256, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = DistillMerger(
        k=4, model=model, inputs=inputs, forwards=forward, temperature=1.0, epochs=300, learning_rate=0.05,
        start=IsoMerger(scale="match"), random_state=0,
    ).fit(adapters)  # fmt: skip
    both = adapters[0]["layer"].delta() + adapters[1]["layer"].delta()
    # what adds the same to all scores of a head changes no distribution: the optimum is the sum up to that
    centre = torch.block_diag(*[torch.eye(4) - 0.25] * 2).double()
    error = torch.linalg.norm(centre @ (fitted.merged_["layer"].delta() - both)) / torch.linalg.norm(centre @ both)
    assert error < 3e-3
    assert fitted.agreement_curve_[-1] == 1
    assert fitted.agreement_curve_[0] < 0.9
    assert fitted.loss_curve_[-1] < 1e-5


def test_one_adapter_is_kept(X):
    for dtype in (torch.float64, torch.float32):
        adapter = Adapter({m: f.to(dtype) for m, f in X[1].items()}, name="task1")
        fitted = merger(k=5, model=toy_model(dtype), inputs=toy_inputs(dtype=dtype)).fit([adapter])
        assert fitted.agreement_curve_ == [1.0]
        assert fitted.loss_curve_ == []
        assert relative_error(fitted.merged_, adapter) < 1e-6


def test_reordered_adapters_give_the_same_result(X):
    straight, turned = merger().fit(X), merger().fit(X[[2, 0, 1]])
    for module, factors in straight.merged_.items():  # densely: relative_error sees half of the digits
        expected = factors.delta()
        assert torch.linalg.norm(turned.merged_[module].delta() - expected) < 1e-9 * torch.linalg.norm(expected)
    np.testing.assert_allclose(turned.loss_curve_, straight.loss_curve_, rtol=1e-9)


def test_gradients_are_those_of_finite_differences(X):
    """Of the whole loss, through two layers, in both factors of both."""
    model, inputs = toy_model(), toy_inputs(12)
    targets = collect_targets(model, X, inputs, toy_forward, dtype="float64")
    start = TSVMerger(k=4, scale="match").fit(X).merged_
    halves = [half.clone().requires_grad_() for factors in start.values() for half in factors]

    def loss(*halves):
        student = Adapter({m: LoraFactors(a, b) for m, a, b in zip(start, halves[::2], halves[1::2], strict=True)})
        for factors, pair in zip(student.values(), zip(halves[::2], halves[1::2], strict=True), strict=True):
            object.__setattr__(factors, "A", pair[0])
            object.__setattr__(factors, "B", pair[1])
        with applied(model, student):
            scores = toy_forward(model, inputs)
        return sum(distillation_loss(scores[n], torch.from_numpy(targets[n]), 0.7).mean() for n in targets)

    assert torch.autograd.gradcheck(loss, halves, eps=1e-6, atol=1e-7)


def test_the_loss_is_the_divergence():
    rng = np.random.RandomState(0)
    s, t = rng.standard_normal((2, 7, 5)) * 3
    p = np.exp(t) / np.exp(t).sum(1, keepdims=True)
    q = np.exp(s / 0.4) / np.exp(s / 0.4).sum(1, keepdims=True)
    found = distillation_loss(torch.from_numpy(s), torch.from_numpy(t), 0.4)
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(1), rtol=1e-12)


class Mixed(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(30, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, ids):
        hidden = torch.tanh(self.conv(self.words(ids).mT))
        return self.out(hidden.mean(dim=2))


def test_embeddings_and_convolutions_are_trained_too():
    rng = np.random.RandomState(0)
    kinds = {"words": ModuleKind("embedding"), "conv": ModuleKind("conv", (3,))}
    shapes = {"words": (30, 6), "conv": (18, 8), "out": (8, 4)}
    adapters = [
        Adapter(
            {
                name: LoraFactors(
                    rng.standard_normal((2, d_in)).astype("f4"), rng.standard_normal((d_out, 2)).astype("f4") / 2
                )
                for name, (d_in, d_out) in shapes.items()
            },
            name=f"t{i}",
            kinds=kinds,
        )
        for i in range(2)
    ]
    inputs = torch.from_numpy(rng.randint(0, 30, (120, 5)))
    model = Mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = DistillMerger(
        k=3, model=model, inputs=inputs, forwards=lambda m, x: m(x), learning_rate=0.02, holdout=0, random_state=0
    ).fit(adapters)
    assert fitted.loss_curve_[-1] < 0.8 * fitted.loss_curve_[0]
    start = TSVMerger(k=3, scale="match").fit(adapters).merged_
    for name in shapes:
        assert fitted.merged_.infos[name].kind == kinds.get(name, ModuleKind())
        for trained, first in zip(fitted.merged_[name], start[name], strict=True):
            assert not torch.allclose(trained, first, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())  # only factors had gradients


def test_no_gradient_of_a_weight_is_formed(X):
    """No product is as large as a weight: the update is applied as two thin ones."""
    made, given = [], merger(epochs=1)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "mm" in func.__name__:
                made.append(tuple(out.shape))
            return out

    with Watch():
        given.fit(X)
    assert (6, 24) in made  # a gradient of A
    assert not {(16, 24), (24, 16)} & set(made)


def test_own_inputs_weigh_more(X):
    """Inputs of one task, whose head alone counts, and no others: that task is learned best."""
    owners = ["task1"] * 60
    for name, weight in (("task1", 1e6), ("task1", 1e-6)):
        fitted = merger(epochs=15, owners=owners, own_weight=weight, holdout=0).fit(X)
        targets = collect_targets(toy_model(), X, toy_inputs(), toy_forward)
        loss = {}
        with torch.no_grad(), applied(toy_model(), fitted.merged_) as model:
            for n, scores in toy_forward(model, toy_inputs()).items():
                if n in targets:
                    loss[n] = float(
                        distillation_loss(scores, torch.from_numpy(targets[n]).double(), fitted.temperatures_[n]).mean()
                    )
        assert (min(loss, key=loss.get) == name) == (weight > 1)


def test_agreement_counts_as_the_loss_does(X):
    """With inputs whose own heads alone count, it is the agreement of these: the merge does not stay what it was."""
    owners = ["task0", "task1", "task2"] * 20
    fitted = merger(epochs=10, owners=owners, own_weight=1e9, inputs=toy_inputs(), holdout=0).fit(X)
    targets = collect_targets(toy_model(), X, toy_inputs(), toy_forward)
    with torch.no_grad(), applied(toy_model(), fitted.merged_) as model:
        scores = toy_forward(model, toy_inputs())
    own = [scores[name][i].argmax() == targets[name][i].argmax() for i, name in enumerate(owners)]
    assert np.mean(own) == pytest.approx(max(fitted.agreement_curve_), abs=1e-6)
    assert max(fitted.agreement_curve_) > fitted.agreement_curve_[0]


def test_one_forward_for_each_head_gives_what_one_for_all_gives(X):
    def forward_of(name):
        return lambda model, x: toy_forward(model, x)[name]

    together = merger().fit(X)
    apart = merger(forwards={name: forward_of(name) for name in X.names}).fit(X)
    assert relative_error(apart.merged_, together.merged_) < 1e-12


def test_in_pipelines_and_grids_and_pickles(X):
    inputs = toy_inputs()
    targets = collect_targets(toy_model(), X, inputs, toy_forward)
    given = merger(inputs=inputs, targets=targets)
    copied = clone(given)
    assert all(getattr(copied, name) is getattr(given, name) for name in ("model", "inputs", "targets", "forwards"))
    assert clone(given.set_params(start=TSVMerger())).start is not given.start
    scorer = AgreementScorer(toy_model(), inputs, toy_forward, targets)
    search = GridSearchCV(given, {"k": [2, 6], "start__scale": [1.0]}, scoring=scorer, cv=AllAdapters()).fit(X)
    assert search.best_params_["k"] == 6
    assert search.best_estimator_.model is given.model
    pipeline = make_pipeline(SVDPruner(k=3), clone(given)).fit(X)
    assert pipeline[-1].merged_.ranks == (6,)
    fitted = pickle.loads(pickle.dumps(clone(given).fit(X)))
    assert same_bits(fitted.merged_, clone(fitted).fit(X).merged_)


def load_toy():
    return toy_model()


def test_a_function_that_loads_the_model_serves(X):
    assert same_bits(merger(model=load_toy).fit(X).merged_, merger().fit(X).merged_)


def test_the_record_names_what_it_cannot_write(X, tmp_path):
    inputs = toy_inputs(3000)
    targets = collect_targets(toy_model(), X, inputs, toy_forward)
    fitted = merger(
        inputs=inputs, targets=targets, epochs=1, batch_size=500, owners=["task0"] * 3000, checkpoint=tmp_path / "state"
    ).fit(X)
    operation = fitted.merged_.provenance.operations[-1]
    assert (
        "model=<ModuleDict>, inputs=<Tensor of 3000>, forwards=<toy_forward>, match='classes', targets=<" in operation
    )
    assert "targets=<Targets of 3>" in operation
    assert "checkpoint=None" in operation
    assert len(operation) < 1000
    path = save_adapter(fitted.merged_, tmp_path / "merged")
    assert len(json.dumps(dict(load_adapter(path).provenance.metadata))) < 5000
    assert len(repr(fitted)) < 1500


def test_the_model_is_left_as_it_was(X):
    model = toy_model().train()
    model["layer"][0].weight.requires_grad_(False)
    before = pickle.dumps(model)
    merger(model=model).fit(X)
    assert pickle.dumps(model) == before
    assert model.training
    with pytest.raises(ValueError, match="lower learning_rate"):
        merger(model=model, learning_rate=1e300).fit(X)
    assert pickle.dumps(model) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_training_works_under_no_grad(X):
    with torch.no_grad():
        assert same_bits(merger().fit(X).merged_, merger().fit(X).merged_)


def test_what_is_refused(X):
    with pytest.raises(ValueError, match=r"needs the base model.*pass model= and forwards=.*TSVMerger"):
        DistillMerger().fit(X)
    assert DistillMerger.needs_data
    with pytest.raises(ValueError, match="'task0' returned scores without gradients"):
        merger(forwards=torch.no_grad()(toy_forward)).fit(X)
    with pytest.raises(ValueError, match="no scores of the adapters"):
        merger(targets=collect_targets(toy_model(), X[:1], toy_inputs(), toy_forward)).fit(X)
    with pytest.raises(ValueError, match=r"two of .* are the same"):
        merger().fit([X[0], X[0]])
    with pytest.raises(ValueError, match="owners must name an adapter, or None, for each of 60 inputs; got 2"):
        merger(owners=["task0", None]).fit(X)
    with pytest.raises(ValueError, match=r"holdout=0.001 of 60 inputs leaves none"):
        merger(holdout=0.001).fit(X)
    with pytest.raises(IncompatibleAdaptersError, match="the model lacks 2 of 2 adapted modules"):
        merger(model=nn.Sequential(nn.Linear(24, 16))).fit(X)
    for bad in ({"epochs": 0}, {"own_weight": 0}, {"holdout": 1.0}, {"start": "tsv"}, {"temperature": 0}):
        with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter"):
            merger(**bad).fit(X)


def test_the_default_inputs_are_the_generic_ones(X):
    seen = []

    def forward(model, texts):
        seen.extend(texts)
        sizes = torch.tensor([[len(t) / 10, t.count("e")] for t in texts], dtype=torch.float64)
        return F.linear(encode(model, sizes.repeat(1, 12) / 5), torch.eye(16).double()[:4])

    merger(inputs=None, forwards=forward, epochs=1).fit(X[:2])
    assert set(seen) == set(generic_inputs())
