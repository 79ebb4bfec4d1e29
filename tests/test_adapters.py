"""LoraFactors and Adapter."""

import pickle

import joblib
import numpy as np
import pytest
import torch

from lorakit import Adapter, LoraFactors
from lorakit.adapters import ModuleKind
from lorakit.factors import promoted_dtype
from lorakit.testing import make_adapters

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def factors(dtype=torch.float32, rank=2):
    generator = torch.Generator().manual_seed(0)
    return LoraFactors(
        torch.randn(rank, 5, generator=generator).to(dtype), torch.randn(3, rank, generator=generator).to(dtype)
    )


class TestLoraFactors:
    def test_shape(self):
        f = factors()
        assert (f.rank, f.d_in, f.d_out, f.dtype) == (2, 5, 3, torch.float32)
        assert torch.equal(f.delta(), f.B @ f.A)
        a, b = f
        assert a is f.A
        assert b is f.B

    @pytest.mark.parametrize(
        ("a", "b"), [((2, 5), (3, 3)), ((2,), (3, 2)), ((2, 5, 1), (3, 2)), ((2, 5), (2, 3))], ids=str
    )
    def test_wrong_shapes(self, a, b):
        with pytest.raises(ValueError, match=r"A must be \(r, d_in\)"):
            LoraFactors(torch.zeros(a), torch.zeros(b))

    def test_wrong_dtypes(self):
        with pytest.raises(TypeError, match="floating-point"):
            LoraFactors(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))
        with pytest.raises(TypeError, match="one floating-point"):
            LoraFactors(torch.zeros(2, 5), torch.zeros(3, 2, dtype=torch.float64))

    def test_numpy_is_copied(self):
        a = np.ones((2, 5))
        f = LoraFactors(a, np.ones((3, 2)))
        a[:] = 7
        assert f.A.max() == 1
        assert f.dtype == torch.float64

    @pytest.mark.parametrize("factor", [2.0, 0.25, -3.0, 0.0])
    def test_scaled(self, factor):
        torch.testing.assert_close(factors().scaled(factor).delta(), factor * factors().delta())

    def test_frozen(self):
        with pytest.raises(AttributeError):
            factors().A = torch.zeros(2, 5)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_pickle(self, dtype):
        f = factors(dtype)
        back = pickle.loads(pickle.dumps(f))
        assert back.dtype == dtype
        assert torch.equal(back.A, f.A)
        assert torch.equal(back.B, f.B)

    def test_pickled_slice_leaves_its_storage(self):
        big = torch.zeros(100_000, 5)
        assert len(pickle.dumps(LoraFactors(big[:2], torch.zeros(3, 2)))) < 1000

    def test_zero_rank_is_a_zero_update(self):
        f = LoraFactors(torch.zeros(0, 5), torch.zeros(3, 0))
        assert torch.equal(f.delta(), torch.zeros(3, 5))


class TestAdapter:
    def test_mapping(self):
        adapter = Adapter({"a": factors(), "b": factors(rank=4)}, name="mine")
        assert list(adapter) == ["a", "b"]
        assert len(adapter) == 2
        assert adapter["b"].rank == 4
        assert "c" not in adapter
        with pytest.raises(KeyError):
            adapter["c"]
        assert adapter.ranks == (2, 4)
        assert adapter.n_parameters == 2 * 8 + 4 * 8
        assert repr(adapter) == "Adapter('mine', modules=2, rank=2/4, dtype=float32)"

    def test_read_only(self):
        with pytest.raises(TypeError):
            Adapter({"a": factors()})["a"] = factors()

    def test_wrong_values(self):
        with pytest.raises(TypeError, match="'a' must be LoraFactors"):
            Adapter({"a": (torch.zeros(2, 5), torch.zeros(3, 2))})

    def test_the_dict_given_may_change(self):
        modules = {"a": factors()}
        adapter = Adapter(modules)
        modules["b"] = factors()
        assert list(adapter) == ["a"]

    def test_layouts(self):
        adapter = Adapter({"a": factors(), "b": factors()}, kinds={"a": ModuleKind("conv", (1, 1))})
        assert adapter.infos["a"].kind == ModuleKind("conv", (1, 1))
        assert adapter.infos["b"].kind == ModuleKind()

    def test_layouts_that_cannot_be(self):
        with pytest.raises(ValueError, match="'b' that the adapter lacks"):
            Adapter({"a": factors()}, kinds={"b": ModuleKind("conv", (1, 1))})
        with pytest.raises(ValueError, match="5 is no multiple of the kernel"):
            Adapter({"a": factors()}, kinds={"a": ModuleKind("conv", (2, 2))})

    def test_renaming(self):
        adapter = Adapter({"x.a": factors(), "x.b": factors(rank=4)}, name="old")
        assert adapter.renamed("new").name == "new"
        assert list(adapter.rename_modules(lambda m: m.removeprefix("x."))) == ["a", "b"]
        assert adapter.rename_modules(str.upper)["X.B"].rank == 4
        with pytest.raises(ValueError, match="one name"):
            adapter.rename_modules(lambda m: "same")

    def test_select(self):
        adapter = Adapter({"a": factors(torch.bfloat16), "b": factors(torch.bfloat16, rank=4)}, name="mine")
        part = adapter.select(["b", "nowhere"])
        assert list(part) == ["b"]
        assert (part.name, part.dtype, part.ranks) == ("mine", torch.bfloat16, (4,))
        assert part["b"] is adapter["b"]

    def test_pickle(self):
        adapter = make_adapters(random_state=0)[0]
        back = pickle.loads(pickle.dumps(adapter))
        assert back.name == adapter.name
        assert all(torch.equal(back[m].A, adapter[m].A) for m in adapter)
        assert back.provenance == adapter.provenance

    def test_hash_follows_the_content(self):
        """What ``Pipeline(memory=...)`` looks results up by."""
        first, second = (make_adapters(random_state=0)[0] for _ in range(2))
        assert joblib.hash(first) == joblib.hash(second)
        assert joblib.hash(first) != joblib.hash(make_adapters(random_state=1)[0])

    def test_equality_is_identity(self):
        first, second = (make_adapters(random_state=0)[0] for _ in range(2))
        assert first == first
        assert first != second
        assert len({first, second}) == 2


def test_promoted_dtype():
    assert promoted_dtype([]) == torch.float32
    assert promoted_dtype([torch.bfloat16, torch.bfloat16]) == torch.bfloat16
    assert promoted_dtype([torch.bfloat16, torch.float16]) == torch.float32
    assert promoted_dtype([torch.float16, torch.float64]) == torch.float64
