"""An applied adapter adds exactly its update, and leaves nothing behind."""

import pytest
import torch
from torch import nn

from lorakit import Adapter, LoraFactors, applied
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedAdapterError


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight = nf, nn.Parameter(torch.randn(nx, nf))

    def forward(self, x):
        return x @ self.weight


def random_factors(d_in, d_out, r=2):
    return LoraFactors(torch.randn(r, d_in), torch.randn(d_out, r))


def conv_case(kind, kernel, **options):
    module = kind(3, 4, kernel, **options)
    size = (2, 3, *(9 for _ in kernel))
    return module, torch.randn(size), random_factors(module.weight[0].numel(), 4), ModuleKind("conv", tuple(kernel))


CASES = {
    "linear": lambda: (nn.Linear(5, 4), torch.randn(2, 3, 5), random_factors(5, 4), ModuleKind()),
    "Conv1D": lambda: (Conv1D(4, 5), torch.randn(2, 3, 5), random_factors(5, 4), ModuleKind()),
    "embedding": lambda: (nn.Embedding(7, 4), torch.tensor([[0, 6, 2]]), random_factors(7, 4), ModuleKind("embedding")),
    "conv1d": lambda: conv_case(nn.Conv1d, (3,), stride=2, padding=1),
    "conv2d": lambda: conv_case(nn.Conv2d, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2),
    "conv2d same": lambda: conv_case(nn.Conv2d, (3, 3), padding="same", padding_mode="reflect"),
    "conv3d": lambda: conv_case(nn.Conv3d, (1, 2, 3), padding=1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_as_adding_to_the_weight(case, dtype):
    torch.manual_seed(0)
    module, x, factors, layout = CASES[case]()
    model = nn.Sequential(module).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    adapter = Adapter({"0": factors}, kinds={"0": layout})
    weight = module.weight.detach().clone()
    with applied(model, adapter) as same, torch.no_grad():
        assert same is model
        found = model(x)
    assert torch.equal(module.weight, weight)
    assert not module._forward_hooks
    delta = factors.to(dtype).delta()
    transposed = case in ("Conv1D", "embedding")
    with torch.no_grad():
        module.weight += (delta.T if transposed else delta).reshape(weight.shape)
        torch.testing.assert_close(found, model(x))
    assert found.dtype == dtype


@pytest.fixture
def model():
    torch.manual_seed(0)
    inner = nn.ModuleDict({"q": nn.Linear(5, 4), "k": nn.Linear(5, 4)})
    return nn.ModuleDict({"enc": inner, "head": nn.Linear(4, 2)})


def test_nested_blocks_add_up_and_exceptions_undo(model):
    one, two = (Adapter({"enc.q": random_factors(5, 4)}) for _ in range(2))
    x, q = torch.randn(3, 5), model["enc"]["q"]
    before = q(x)
    with applied(model, one):
        with applied(model, two):
            both = q(x)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), applied(model, two):
            q(x.T)
        first = q(x)
    torch.testing.assert_close(first, before + x @ one["enc.q"].delta().T)
    torch.testing.assert_close(both, first + x @ two["enc.q"].delta().T)
    assert torch.equal(q(x), before)


def test_half_precision_model_and_keyword_input(model):
    model.to(torch.bfloat16)
    adapter = Adapter({"enc.q": random_factors(5, 4)})
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    with applied(model, adapter):
        assert model["enc"]["q"](input=x).dtype == torch.bfloat16


def test_gradients_reach_the_input(model):
    x = torch.randn(3, 5, requires_grad=True)
    with applied(model, Adapter({"enc.q": random_factors(5, 4)})):
        model["enc"]["q"](x).sum().backward()
    assert x.grad is not None


def test_scaled_embedding():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, x):
            return super().forward(x) * self.embed_scale

    model = nn.Sequential(Scaled(7, 4))
    factors = random_factors(7, 4)
    x = torch.tensor([1, 5])
    with applied(model, Adapter({"0": factors}, kinds={"0": ModuleKind("embedding")})):
        found = model(x)
    torch.testing.assert_close(found, model(x) + 3 * factors.delta().T[x])


def test_prefix(model):
    factors = random_factors(5, 4)
    x = torch.randn(3, 5)
    with applied(model, Adapter({"q": factors}), prefix="enc."):
        found = model["enc"]["q"](x)
    torch.testing.assert_close(found, model["enc"]["q"](x) + x @ factors.delta().T)


@pytest.mark.parametrize(
    ("name", "prefix", "hint"),
    [
        ("q", "", r"lacks 1 of 1 adapted modules, first 'q'; it has 'enc.q': pass prefix='enc.'"),
        ("bert.enc.q", "", r"it has 'enc.q': apply it to the model that contains this one.*'bert.'"),
        ("enc.q", "bert.", r"first 'bert.enc.q'; it has 'enc.q': pass no prefix"),
        ("enc.qq", "", r"it has 'enc.q'.*is this the base model"),
        ("zzz", "", r"it has 'enc'.*is this the base model"),
    ],
)
def test_missing_modules_get_a_hint(model, name, prefix, hint):
    adapter = Adapter({name: random_factors(5, 4)}, name="mine")
    with (
        pytest.raises(IncompatibleAdaptersError, match=f"mine: the model .*{hint}"),
        applied(model, adapter, prefix=prefix),
    ):
        pass


@pytest.mark.parametrize(
    ("module", "factors", "layout", "error", "message"),
    [
        (
            nn.Linear(5, 4),
            (6, 4),
            ModuleKind(),
            IncompatibleAdaptersError,
            r"linear of d_in 6, d_out 4, the model's Linear",
        ),
        (
            nn.Embedding(5, 4),
            (5, 4),
            ModuleKind(),
            IncompatibleAdaptersError,
            r"the model's Embedding is embedding of d_in",
        ),
        (
            nn.Conv2d(1, 4, 3),
            (9, 4),
            ModuleKind("conv", (9, 1)),
            IncompatibleAdaptersError,
            r"kernel \(9, 1\).*\(3, 3\)",
        ),
        (
            nn.Conv2d(2, 4, 3, groups=2),
            (9, 4),
            ModuleKind("conv", (3, 3)),
            UnsupportedAdapterError,
            "2 groups, expected 1",
        ),
        (
            nn.LayerNorm(5),
            (5, 4),
            ModuleKind(),
            UnsupportedAdapterError,
            "is a LayerNorm in the model, expected a linear",
        ),
    ],
)
def test_what_does_not_fit(module, factors, layout, error, message):
    adapter = Adapter({"0": random_factors(*factors)}, name="mine", kinds={"0": layout})
    with pytest.raises(error, match=f"mine: module '0'.*{message}"), applied(nn.Sequential(module), adapter):
        pass
    assert not module._forward_hooks


def test_attention_projections_that_are_never_called_are_refused():
    adapter = Adapter({"out_proj": random_factors(4, 4)})
    with (
        pytest.raises(UnsupportedAdapterError, match="MultiheadAttention"),
        applied(nn.MultiheadAttention(4, 1), adapter),
    ):
        pass


def test_nothing_is_hooked_if_a_module_cannot_be_read(model):
    class Failing(dict):
        infos = Adapter({"enc.q": random_factors(5, 4), "enc.k": random_factors(5, 4)}).infos
        dtype = torch.float32

        def read(self, module):
            if module == "enc.k":
                raise OSError("gone")
            return random_factors(5, 4)

    adapter = Adapter.from_reader(Failing(), name="mine", provenance=Adapter({}).provenance)
    with pytest.raises(OSError, match="gone"), applied(model, adapter):
        pass
    assert not model["enc"]["q"]._forward_hooks


def test_a_detour_through_half_precision_rounds_nothing_for_good():
    model = nn.Sequential(nn.Linear(6, 5))
    torch.manual_seed(0)
    adapter = Adapter({"0": LoraFactors(torch.randn(2, 6), torch.randn(5, 2))})
    x = torch.randn(3, 6)
    with applied(model, adapter):
        before = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_the_factors(dtype):
    """Also where factors are cast to the dtype of the output, and in one call after another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, dtype=dtype)).requires_grad_(False)
    factors = random_factors(5, 4)
    for half in factors:
        half.requires_grad_()
    x = torch.randn(3, 5, dtype=dtype)
    with applied(model, Adapter({"0": factors})):
        for times in (1, 2):
            model(x).square().sum().backward()
            by_hand = [half.detach().to(dtype).requires_grad_() for half in factors]
            (model[0].forward(x) + x @ by_hand[0].T @ by_hand[1].T).square().sum().backward()
            for half, expected in zip(factors, by_hand, strict=True):
                torch.testing.assert_close(half.grad, times * expected.grad.float(), rtol=1e-5, atol=1e-5)
    assert factors.A.grad.norm() > 1
