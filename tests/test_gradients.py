"""Squared gradients of factors against autograd on models with the update written in, one example at a time."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from lorakit import Adapter, LoraFactors, collect_fisher
from lorakit.exceptions import IncompatibleAdaptersError

D, HIDDEN, LABELS, RANK = 6, 5, 3, 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, LABELS)).double().eval()


@pytest.fixture
def adapter():
    generator = torch.Generator().manual_seed(1)

    def factors(d_in, d_out):
        draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((RANK, d_in), (d_out, RANK))]
        return LoraFactors(*draw)

    return Adapter({"0": factors(D, HIDDEN), "2": factors(HIDDEN, LABELS)}, name="task")


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(n, D, generator=generator, dtype=torch.float64), torch.randint(LABELS, (n,), generator=generator))
        for n in (4, 1, 3)
    ]


def loss(model, batch):
    x, y = batch
    return cross_entropy(model(x), y, reduction="none")


def gradients(model, adapter, x, of):
    """Gradients for one example, with the update in the weights of the two layers."""
    flat = [t.clone().requires_grad_() for f in adapter.values() for t in f]
    a0, b0, a2, b2 = flat
    hidden = torch.tanh(linear(x, model[0].weight + b0 @ a0, model[0].bias))
    scores = linear(hidden, model[2].weight + b2 @ a2, model[2].bias)
    return torch.autograd.grad(of(scores), flat)


def test_against_one_example_at_a_time(model, adapter, batches):
    examples = [(x, y) for xs, ys in batches for x, y in zip(xs, ys, strict=True)]
    expected = [0, 0, 0, 0]
    for x, y in examples:
        found = gradients(model, adapter, x, lambda scores, y=y: cross_entropy(scores[None], y[None]))
        expected = [e + g**2 / len(examples) for e, g in zip(expected, found, strict=True)]
    fisher = collect_fisher(model, adapter, batches, loss)
    for found, wanted in zip([x for f in fisher.values() for x in f], expected, strict=True):
        torch.testing.assert_close(found, wanted)
    one_by_one = [(x[None], y[None]) for x, y in examples]
    again = collect_fisher(model, adapter, one_by_one, lambda model, batch: loss(model, batch)[0])
    torch.testing.assert_close(again["0"].A, fisher["0"].A)


def test_exact_information_of_a_classifier(model, adapter, batches):
    """Every label's squared gradient, weighted by its probability, as the docstring says to get it."""

    def every_label(model, batch):
        log_p = log_softmax(model(batch[0]), dim=1)
        return log_p * log_p.exp().detach().sqrt()

    expected, n = 0, sum(len(x) for x, _ in batches)
    for x in torch.cat([x for x, _ in batches]):
        for label in range(LABELS):
            of = lambda scores, label=label: log_softmax(scores, dim=0)[label]  # noqa: E731
            hidden = torch.tanh(linear(x, model[0].weight + adapter["0"].delta(), model[0].bias))
            scores = linear(hidden, model[2].weight + adapter["2"].delta(), model[2].bias)
            p = scores.softmax(dim=0)[label].item()
            expected = expected + p * gradients(model, adapter, x, of)[0] ** 2 / n
    torch.testing.assert_close(collect_fisher(model, adapter, batches, every_label)["0"].A, expected)


def test_model_and_adapter_stay_as_they_are(model, adapter, batches):
    before = [p.clone() for p in model.parameters()]
    factors = [x.clone() for f in adapter.values() for x in f]
    with torch.no_grad():
        collect_fisher(model, adapter, batches, loss)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))
    for x, y in zip([x for f in adapter.values() for x in f], factors, strict=True):
        assert torch.equal(x, y)
        assert not x.requires_grad
    assert not model._forward_hooks


def test_a_model_in_half_precision(model, adapter, batches):
    """The factors are cast to the dtype of the outputs; their gradients come back through the cast."""
    exact = collect_fisher(model, adapter, batches, loss)
    single = Adapter({m: f.to(torch.float32) for m, f in adapter.items()}, name="task")
    rounded = [(x.bfloat16(), y) for x, y in batches]
    found = collect_fisher(
        model.bfloat16(),
        single,
        rounded,
        lambda model, batch: cross_entropy(model(batch[0]).float(), batch[1], reduction="none"),
    )
    for module in exact:
        for x, y in zip(found[module], exact[module], strict=True):
            assert x.dtype == torch.float32
            assert (x.double() - y).norm() < 0.1 * y.norm()


def test_a_module_that_is_never_called_has_no_moments(model, adapter, batches):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = model[0], nn.Linear(D, HIDDEN).double()

        def forward(self, x):
            return self.inner(x)

    skipping = Adapter({"inner": adapter["0"], "other": adapter["0"]}, name="task")
    fisher = collect_fisher(Skips(), skipping, batches, lambda model, batch: model(batch[0]).sum(dim=1))
    assert fisher["inner"].A.max() > 0
    assert fisher["other"].A.abs().max() == 0


def test_what_cannot_be_collected(model, adapter, batches):
    with pytest.raises(ValueError, match="task: no gradient reached any of its 2 modules"):
        collect_fisher(model, adapter, [], loss)
    with pytest.raises(ValueError, match="no gradient reached"):
        collect_fisher(model, adapter, batches, lambda model, batch: loss(model, batch).detach())
    with pytest.raises(ValueError, match=r"shape \(\), \(n,\) or \(n, m\).*shape \(2, 2, 2\)"):
        collect_fisher(model, adapter, batches, lambda model, batch: torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="got float"):
        collect_fisher(model, adapter, batches, lambda model, batch: loss(model, batch).sum().item())
    with pytest.raises(ValueError, match="module '0': second moments"):
        collect_fisher(model, adapter, batches, lambda model, batch: loss(model, batch) * torch.inf)
    with pytest.raises(IncompatibleAdaptersError, match="the model lacks"):
        collect_fisher(model, adapter, batches, loss, prefix="encoder.")
