"""What collect_grams gathers is what the modules saw, no more and no less."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lorakit import Adapter, LoraFactors, RegMeanMerger, applied, collect_grams
from lorakit.activations import Gram, Grams
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedAdapterError


def factors(d_in, d_out, r=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(r, d_in, generator=generator), torch.randn(d_out, r, generator=generator))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


@pytest.fixture
def adapter():
    return Adapter({"0": factors(6, 5), "2": factors(5, 4, seed=1)}, name="mine")


def moment(rows):
    rows = rows.detach().double()
    return (rows.T @ rows / len(rows)).numpy()


@pytest.mark.parametrize("apply", [True, False])
def test_grams_of_every_module(model, adapter, apply):
    batches = [torch.randn(7, 6), torch.randn(2, 3, 6)]
    grams = collect_grams(model, adapter, batches, apply=apply)
    x = torch.cat([batch.reshape(-1, 6) for batch in batches])
    if apply:
        with applied(model, Adapter({"0": adapter["0"]})):
            hidden = model[:2](x)
    else:
        hidden = model[:2](x)
    np.testing.assert_allclose(grams["0"].matrix(), moment(x), rtol=1e-6)
    np.testing.assert_allclose(grams["2"].matrix(), moment(hidden), rtol=1e-5, atol=1e-6)
    assert (grams["0"].count, grams["2"].count) == (13, 13)
    assert grams["0"].dense.dtype == np.float64
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model)


def test_sums_are_made_in_the_dtype_that_is_asked_for(model, adapter):
    batches = [torch.randn(7, 6).to(torch.bfloat16)]
    model = model.to(torch.bfloat16)
    single = collect_grams(model, adapter, batches, dtype=torch.float32)["0"].matrix()
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, moment(batches[0]), rtol=1e-5, atol=1e-6)


def test_exceptions_leave_no_hook(model, adapter):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        collect_grams(model, adapter, [torch.randn(2, 7)])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model)


class Encoder(nn.Module):
    """Token embeddings, a layer on tokens, one on the mean of the tokens: where padding does and does not count."""

    def __init__(self):
        super().__init__()
        self.embed, self.token, self.pooled = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.token(self.embed(input_ids))
        return self.pooled(input=hidden.mean(dim=1))


IDS = torch.tensor([[1, 2, 2, 0], [3, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    adapter = Adapter(
        {"embed": factors(9, 6), "token": factors(6, 5), "pooled": factors(5, 4)},
        kinds={"embed": ModuleKind("embedding")},
        name="text",
    )
    return Encoder(), adapter


@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("mask", ["auto", "attention_mask", lambda batch: batch["input_ids"] != 0])
def test_padding_does_not_count(encoder, mask, rank):
    model, adapter = encoder
    grams = collect_grams(
        model, adapter, [{"input_ids": IDS, "attention_mask": MASK}], mask=mask, rank=rank, apply=False
    )
    assert [grams[m].count for m in ("embed", "token", "pooled")] == [4, 4, 2]
    np.testing.assert_array_equal(np.diag(grams["embed"].matrix()), [0, 0.25, 0.5, 0.25, 0, 0, 0, 0, 0])
    assert grams["embed"].dense is None
    tokens = model.embed(torch.tensor([1, 2, 2, 3]))
    np.testing.assert_allclose(grams["token"].matrix(), moment(tokens), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        grams["pooled"].matrix(), moment(model.token(model.embed(IDS)).mean(dim=1)), rtol=1e-5, atol=1e-8
    )


def test_without_a_mask_all_positions_count(encoder):
    model, adapter = encoder
    batch = {"input_ids": IDS, "attention_mask": MASK}
    assert collect_grams(model, adapter, [batch], mask=None)["token"].count == 8
    assert collect_grams(model, adapter, [{"input_ids": IDS}])["token"].count == 8
    assert collect_grams(model, adapter, [(IDS, MASK)])["token"].count == 8  # no key to find a mask by
    own = collect_grams(model, adapter, [batch], forward=lambda model, batch: model(batch["input_ids"][:1]), mask=None)
    assert own["token"].count == 4
    with pytest.raises(KeyError, match="elsewhere"):
        collect_grams(model, adapter, [batch], mask="elsewhere")


def test_a_mask_of_another_shape_is_refused(encoder):
    model, adapter = encoder
    with pytest.raises(ValueError, match=r"'embed': a mask of shape \(4, 2\) does not fit inputs at \(2, 4\)"):
        collect_grams(model, adapter, [{"input_ids": IDS, "attention_mask": MASK.T}])


CONVS = {
    "conv1d": (nn.Conv1d, (3,), {"stride": 2, "padding": 1}),
    "conv2d": (nn.Conv2d, (3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": 2}),
    "conv2d same, reflected": (nn.Conv2d, (3, 3), {"padding": "same", "padding_mode": "reflect"}),
    "conv3d": (nn.Conv3d, (1, 2, 3), {"padding": 1}),
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("batched", [True, False])
def test_patches_of_a_convolution(case, batched):
    """The rows behind the Gram times the flattened kernel are the convolution: checked by its mean square output."""
    torch.manual_seed(0)
    kind, kernel, options = CONVS[case]
    module = kind(3, 4, kernel, bias=False, **options).double()
    x = torch.randn(*((2,) if batched else ()), 3, *(7 for _ in kernel), dtype=torch.float64)
    weight = module.weight.flatten(start_dim=1).detach()
    adapter = Adapter({"0": factors(weight.shape[1], 4)}, kinds={"0": ModuleKind("conv", kernel)})
    gram = collect_grams(nn.Sequential(module), adapter, [x], apply=False)["0"]
    out = module(x).movedim(1 if batched else 0, -1).reshape(-1, 4)
    assert gram.count == len(out)
    np.testing.assert_allclose(weight.numpy() @ gram.matrix() @ weight.numpy().T, moment(out), rtol=1e-10)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_thin_factor_keeps_the_largest_directions_and_the_whole_diagonal(rank):
    torch.manual_seed(0)
    sizes = 0.5 ** torch.arange(16.0)
    basis = torch.linalg.qr(torch.randn(16, 16)).Q
    batches = [torch.randn(300, 16) * sizes @ basis for _ in range(4)]
    model, adapter = nn.Sequential(nn.Linear(16, 2)), Adapter({"0": factors(16, 2)})
    thin = collect_grams(model, adapter, batches, rank=rank)["0"]
    exact = moment(torch.cat(batches))
    assert thin.factor.shape == (rank, 16)
    assert thin.dense is None
    np.testing.assert_allclose(np.diag(thin.matrix()), np.diag(exact), rtol=1e-10)
    values, vectors = np.linalg.eigh(exact)
    best = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T
    np.testing.assert_allclose(thin.factor.T @ thin.factor, best, atol=1e-3 * values[-1])
    if rank == 16:
        np.testing.assert_allclose(thin.matrix(), exact, rtol=1e-8, atol=1e-10)


def test_thin_factors_merge_almost_as_whole_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 4)).double()
    adapters = [Adapter({"0": factors(32, 4, seed=i).to(torch.float64)}, name=str(i)) for i in range(2)]
    mixing = [torch.randn(32, 32).double() * 0.7 ** torch.arange(32.0).double()[:, None] for _ in adapters]
    data = [torch.randn(200, 32).double() @ m for m in mixing]

    def merged(rank):
        grams = {a.name: collect_grams(model, a, [x], rank=rank) for a, x in zip(adapters, data, strict=True)}
        return RegMeanMerger(k=4, grams=grams).fit(adapters).merged_["0"].delta()

    whole = merged(None)
    mean = (adapters[0]["0"].delta() + adapters[1]["0"].delta()) / 2
    far = (mean - whole).norm()
    assert (merged(12) - whole).norm() < 0.2 * far
    assert (merged(32) - whole).norm() < 1e-6 * far


def test_names_and_shapes_are_checked(model, adapter):
    outer = nn.ModuleDict({"enc": model})
    grams = collect_grams(
        outer, adapter, [torch.randn(2, 6)], prefix="enc.", forward=lambda model, batch: model["enc"](batch)
    )
    assert list(grams) == ["0", "2"]
    for apply in (True, False):
        with pytest.raises(IncompatibleAdaptersError, match=r"pass prefix='enc\.'"):
            collect_grams(outer, adapter, [], apply=apply)
        with pytest.raises(IncompatibleAdaptersError, match="linear of d_in 7"):
            collect_grams(model, Adapter({"0": factors(7, 5)}), [], apply=apply)
    with pytest.raises(UnsupportedAdapterError, match="is a Tanh"):
        collect_grams(model, Adapter({"1": factors(5, 5)}), [])


def test_nothing_to_collect_is_an_error(model, adapter):
    with pytest.raises(ValueError, match="mine: no input reached any of its 2 modules"):
        collect_grams(model, adapter, [])
    model[0].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="'2': an input was infinite"):
        collect_grams(model, adapter, [torch.ones(2, 6)])
    with pytest.raises(ValueError, match="rank must be at least 1"):
        collect_grams(model, adapter, [torch.ones(2, 6)], rank=0)


def test_a_module_that_was_never_called_has_a_gram_of_zero(model, adapter):
    grams = collect_grams(model, adapter, [torch.ones(2, 6)], forward=lambda model, batch: model[0](batch))
    assert grams["2"].count == 0
    assert not grams["2"].matrix().any()


def test_grams_are_frozen_small_and_pickle(model, adapter):
    grams = collect_grams(model, adapter, [torch.randn(5, 6)], rank=2)
    again = pickle.loads(pickle.dumps(grams))
    np.testing.assert_array_equal(again["0"].matrix(), grams["0"].matrix())
    assert grams.nbytes == 8 * (6 + 2 * 6 + 5 + 2 * 5)
    assert copy.deepcopy(grams) is grams
    with pytest.raises(ValueError, match="read-only"):
        grams["0"].factor[0, 0] = 1
    with pytest.raises(AttributeError):
        grams["0"].factor = None
    assert repr(grams) == "Grams(modules=2, inputs=5, MB=0.0)"


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"dense": np.ones((2, 3))},
        {"diagonal": np.ones(3)},
        {"factor": np.ones((2, 3))},
        {"diagonal": np.ones(3), "factor": np.ones((2, 4))},
        {"diagonal": np.ones(3), "factor": np.ones(3)},
        {"dense": np.eye(3), "diagonal": np.ones(3), "factor": np.ones((2, 3))},
    ],
)
def test_a_gram_has_one_of_two_forms(arrays):
    with pytest.raises(ValueError, match=r"dense, \(d_in, d_in\), or diagonal"):
        Gram(1, **arrays)


def test_arrays_stand_for_dense_grams():
    grams = Grams({"m": np.eye(3)})
    assert grams["m"].d_in == 3
    assert dict(grams).keys() == {"m"}
