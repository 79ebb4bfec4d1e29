"""RegMean++ against a dense restatement, and what it has in common with RegMean."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from lorakit import Adapter, AdapterSet, LoraFactors, RegMeanMerger, RegMeanPlusMerger, applied, collect_grams
from lorakit.metrics import relative_error

WIDTH = 12


class Stack(nn.Module):
    """Two blocks of two linear layers, and one layer after them; the second block is made first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(WIDTH, WIDTH), "down": nn.Linear(WIDTH, WIDTH)}) for _ in range(2)
        )
        self.out = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, x):
        for layer in reversed(self.layers):
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        return self.out(torch.tanh(x))


ORDER = (("layers.1.up", "layers.1.down"), ("layers.0.up", "layers.0.down"), ("out",))


def adapters(n=3):
    rng = np.random.RandomState(0)
    names = [name for block in ORDER for name in block]
    return AdapterSet(
        Adapter(
            {m: LoraFactors(rng.standard_normal((2, WIDTH)), rng.standard_normal((WIDTH, 2))) for m in sorted(names)},
            name=f"t{i}",
        )
        for i in range(n)
    )


def batches(X, n=30):
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)] for name in X.names
    }


def by_hand(X, data, offdiagonal, weights):
    """Block after block: the normal equations in dense float64, on weights and not on factors."""
    merged = {}
    for block in ORDER:
        new = {}
        for module in block:
            total = {}
            for adapter in X:
                seen = []
                twin = Stack()
                for m, delta in merged.items():
                    twin.get_submodule(m).weight.data += delta
                for m in block:
                    twin.get_submodule(m).weight.data += adapter[m].delta()
                twin.get_submodule(module).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                with torch.no_grad():
                    for batch in data[adapter.name]:
                        twin(batch)
                x = torch.cat(seen)
                gram = x.T @ x / len(x)
                total[adapter.name] = offdiagonal * gram + (1 - offdiagonal) * torch.diag(gram.diagonal())
            down = sum(w * total[a.name] for a, w in zip(X, weights, strict=True))
            up = sum(w * a[module].delta() @ total[a.name] for a, w in zip(X, weights, strict=True))
            new[module] = up @ torch.linalg.inv(down)
        merged |= new
    return merged


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_is_the_formula_block_after_block(weights):
    X = adapters()
    data = batches(X)
    fitted = RegMeanPlusMerger(k=6, model=Stack(), batches=data, ridge=0.0, offdiagonal=0.7, weights=weights).fit(X)
    share = np.full(3, 1 / 3) if weights is None else np.array(weights) / np.sum(weights)
    expected = by_hand(X, data, 0.7, share)
    for module, delta in expected.items():
        torch.testing.assert_close(fitted.merged_[module].delta(), delta, rtol=1e-8, atol=1e-10)


def test_blocks_before_are_cut_as_the_result_is():
    X = adapters()
    data = batches(X)
    fitted = RegMeanPlusMerger(k=3, model=Stack(), batches=data).fit(X)
    assert fitted.merged_.ranks == (3,)
    before = Adapter({m: f for m, f in fitted.merged_.items() if m != "out"})
    with applied(model := Stack(), before):
        grams = {a.name: collect_grams(model, Adapter({"out": a["out"]}, name=a.name), data[a.name]) for a in X}
    only = RegMeanMerger(k=3, grams=grams).fit([Adapter({"out": a["out"]}, name=a.name) for a in X]).merged_
    torch.testing.assert_close(fitted.merged_["out"].delta(), only["out"].delta(), rtol=1e-8, atol=1e-10)


def test_one_block_alone_is_regmean():
    X = AdapterSet(Adapter({m: a[m] for m in ORDER[0]}, name=a.name) for a in adapters())
    data = batches(X)
    grams = {a.name: collect_grams(Stack(), a, data[a.name]) for a in X}
    plain = RegMeanMerger(k=4, grams=grams).fit(X).merged_
    assert relative_error(RegMeanPlusMerger(k=4, model=Stack(), batches=data).fit(X).merged_, plain) < 1e-6
    whole = adapters()
    grams = {a.name: collect_grams(Stack(), a, batches(whole)[a.name]) for a in whole}
    plain = RegMeanMerger(k=4, grams=grams).fit(whole).merged_
    assert (
        relative_error(RegMeanPlusMerger(k=4, model=Stack(), batches=batches(whole)).fit(whole).merged_, plain) > 1e-3
    )


def test_the_model_is_left_alone_and_clones_share_it():
    X = adapters()
    model, data = Stack().train(), batches(X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merger = RegMeanPlusMerger(k=4, model=model, batches=data)
    copied = clone(merger)
    assert copied.model is model
    assert copied.batches is data
    fitted = merger.fit(X)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert relative_error(pickle.loads(pickle.dumps(fitted)).merged_, fitted.merged_) == 0
    operation = fitted.merged_.provenance.operations[-1]
    assert "model=<Stack>, batches=<dict of 3>" in operation
    assert relative_error(clone(merger).fit(X[[2, 0, 1]]).merged_, fitted.merged_) < 1e-6


def test_weight_zero_and_twice():
    X = adapters()
    data = batches(X)
    left_out = RegMeanPlusMerger(k=4, model=Stack(), batches=data, weights=[1, 1, 0]).fit(X).merged_
    assert relative_error(RegMeanPlusMerger(k=4, model=Stack(), batches=data).fit(X[:2]).merged_, left_out) < 1e-6
    twice = RegMeanPlusMerger(k=4, model=Stack(), batches=data).fit([X[0], X[1], X[1]]).merged_
    double = RegMeanPlusMerger(k=4, model=Stack(), batches=data, weights=[1, 2]).fit(X[:2]).merged_
    assert relative_error(double, twice) < 1e-6


def test_modules_that_an_adapter_lacks():
    X = adapters()
    lacking = AdapterSet([X[0], Adapter({m: f for m, f in X[1].items() if m != "out"}, name="t1")])
    fitted = RegMeanPlusMerger(k=4, model=Stack(), batches=batches(X), ridge=0.0).fit(lacking)
    torch.testing.assert_close(fitted.merged_["out"].delta(), X[0]["out"].delta(), rtol=1e-8, atol=1e-10)


def test_what_is_missing_is_named():
    X = adapters()
    with pytest.raises(ValueError, match="pass model= and batches="):
        RegMeanPlusMerger().fit(X)
    with pytest.raises(ValueError, match=r"batches has no entry for the adapters \['t2'\]"):
        RegMeanPlusMerger(model=Stack(), batches=batches(X[:2])).fit(X)
    other = X[1].renamed("t0")
    with pytest.raises(ValueError, match="heads belong to adapters by name"):
        RegMeanPlusMerger(model=Stack(), batches=batches(X)).fit([X[0], other])
