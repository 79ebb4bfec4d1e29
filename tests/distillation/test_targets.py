"""What the teachers say: as it is by hand, in bounded memory, stopped and gone on."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny_heads import encode, toy_forward, toy_inputs, toy_model

from lorakit import Adapter, AdapterSet, applied, collect_targets
from lorakit.distillation.heads import SharedHeads
from lorakit.distillation.targets import Targets
from lorakit.exceptions import OutputError
from lorakit.testing import make_adapters

NAMES = ("task0", "task1", "task2")


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 5), dtype=torch.float64, random_state=0))


def by_hand(model, adapter, inputs):
    with torch.no_grad(), applied(model, adapter):
        return toy_forward(model, inputs)[adapter.name].numpy()


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-6), ("float16", 2e-3)])
def test_each_adapter_is_asked_with_its_own_head(X, tmp_path, in_folder, dtype, bound):
    model, inputs = toy_model(), toy_inputs()
    folder = tmp_path / "kept" if in_folder else None
    targets = collect_targets(model, X, inputs, toy_forward, batch_size=7, folder=folder, dtype=dtype)
    assert list(targets) == list(NAMES)
    for adapter in X:
        assert targets[adapter.name].dtype == dtype
        np.testing.assert_allclose(targets[adapter.name], by_hand(model, adapter, inputs), rtol=bound, atol=bound)


def test_inputs_of_a_list_are_batched_by_length_and_come_back_in_order(X):
    model, rows = toy_model(), toy_inputs(20)
    lengths = np.random.RandomState(0).randint(1, 9, 20)
    seen = []

    def forward(model, batch):
        seen.append([len(x) for x in batch])
        return toy_forward(model, torch.stack([x[0] for x in batch]))

    inputs = [[x] * int(n) for x, n in zip(rows, lengths, strict=True)]
    targets = collect_targets(model, X[:1], inputs, forward, batch_size=6, dtype="float64")
    assert [n for batch in seen for n in batch] == sorted(lengths.tolist())
    np.testing.assert_allclose(targets["task0"], by_hand(model, X[0], rows), atol=1e-14)


def test_a_mapping_of_arrays_is_sliced(X):
    inputs = toy_inputs()
    given = {"x": inputs, "unused": np.zeros(len(inputs))}

    def forward(model, batch):
        assert len(batch["x"]) == len(batch["unused"]) <= 16
        return toy_forward(model, batch["x"])

    targets = collect_targets(toy_model(), X, given, forward, batch_size=16, dtype="float64")
    np.testing.assert_allclose(targets["task1"], by_hand(toy_model(), X[1], inputs), atol=1e-14)


def test_a_forward_for_each_and_shared_heads_are_the_same(X):
    model, inputs = toy_model(), toy_inputs()
    heads = {name: torch.randn(4, 16, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(NAMES)}
    shared = collect_targets(model, X, inputs, SharedHeads(encode, heads))

    def forward_of(head):
        return lambda model, x: encode(model, x) @ head.T.double()

    each = collect_targets(model, X, inputs, {name: forward_of(head) for name, head in heads.items()})
    for name in NAMES:
        np.testing.assert_array_equal(shared[name], each[name])


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_goes_on(X, tmp_path):
    model, inputs, calls = toy_model(), toy_inputs(), []

    def forward(model, x, fail_at=None):
        calls.append(len(x))
        if len(calls) == fail_at:
            raise Stopped
        return toy_forward(model, x)

    with pytest.raises(Stopped):  # in the fifth of six batches of the second adapter
        collect_targets(
            model, X, inputs, lambda m, x: forward(m, x, fail_at=11), batch_size=10, folder=tmp_path, dtype="float64"
        )
    calls.clear()
    targets = collect_targets(model, X, inputs, forward, batch_size=10, folder=tmp_path, dtype="float64")
    assert len(calls) == 2 + 6
    for adapter in X:
        np.testing.assert_allclose(targets[adapter.name], by_hand(model, adapter, inputs), atol=1e-14)
    calls.clear()
    collect_targets(model, X, inputs, forward, batch_size=10, folder=tmp_path, dtype="float64")
    assert not calls


def test_a_folder_tells_inputs_adapters_and_dtypes_apart(X, tmp_path):
    model, inputs = toy_model(), toy_inputs()
    changed = Adapter({m: f.scaled(2) for m, f in X[0].items()}, name="task0")
    settings = [(X[:1], inputs, "float32"), ([changed], inputs, "float32"), (X[:1], inputs + 1, "float32")]
    settings.append((X[:1], inputs, "float16"))
    for adapters, x, dtype in settings:
        collect_targets(model, adapters, x, toy_forward, folder=tmp_path, dtype=dtype)
    assert len(list(tmp_path.glob("*.npy"))) == 4
    assert not list(tmp_path.glob("*.part"))


def test_pickles_by_path_and_is_shared_by_copies(X, tmp_path):
    inputs = toy_inputs(2000)
    targets = collect_targets(toy_model(), X, inputs, toy_forward, folder=tmp_path)
    data = pickle.dumps(targets)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)["task1"], targets["task1"])
    assert deepcopy(targets) is targets
    assert repr(targets) == "Targets(adapters=3, inputs=2000)"
    in_memory = collect_targets(toy_model(), X, inputs, toy_forward)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(in_memory))["task2"], targets["task2"])


def test_one_batch_is_in_memory_at_a_time(X, tmp_path):
    """A forward never has more than a batch, and a model in training mode is evaluated and put back."""
    model = toy_model().train()
    sizes = set()

    def forward(model, x):
        assert not model.training
        assert not torch.is_grad_enabled()
        sizes.add(len(x))
        return toy_forward(model, x)

    collect_targets(model, X, toy_inputs(100), forward, batch_size=30, folder=tmp_path)
    assert sizes == {30, 10}
    assert model.training


def test_what_is_refused(X, tmp_path):
    model, inputs = toy_model(), toy_inputs()
    with pytest.raises(ValueError, match="forwards has no entry for the adapters \\['task1'\\]"):
        collect_targets(model, X, inputs, {"task0": toy_forward})
    with pytest.raises(ValueError, match=r"two of \['task0', 'task0'\] are the same"):
        collect_targets(model, [X[0], X[0]], inputs, toy_forward)
    with pytest.raises(ValueError, match=r"scores of shape \(32, 1\) of 32 inputs"):
        collect_targets(model, X, inputs, lambda m, x: encode(m, x)[:, :1])
    with pytest.raises(ValueError, match="none for the adapter 'task0'"):
        collect_targets(model, X, inputs, lambda m, x: {"other": encode(m, x)})
    with pytest.raises(ValueError, match="'task0' made a score that is infinite, not a number, or too large"):
        collect_targets(model, X, inputs, lambda m, x: encode(m, x) * 1e6, dtype="float16")
    with pytest.raises(TypeError, match="forwards of 'task0' must be a function"):
        collect_targets(model, X, inputs, dict.fromkeys(NAMES, 3))
    with pytest.raises(TypeError, match="inputs must be a list"):
        collect_targets(model, X, "one text", toy_forward)
    with pytest.raises(ValueError, match="there are no inputs"):
        collect_targets(model, X, [], toy_forward)
    with pytest.raises(ValueError, match="cannot be pickled"):
        collect_targets(model, X, [lambda: 0] * 3, toy_forward, folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be kept there"):
        collect_targets(model, X, inputs, toy_forward, folder=tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="shape"):
        Targets({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))})
    targets = collect_targets(model, X, inputs, toy_forward)
    with pytest.raises(ValueError, match="not the 60 given"):
        targets.checked(NAMES, inputs.flip(0))
    with pytest.raises(ValueError, match="no scores of the adapters \\['law'\\]"):
        targets.checked(["law"], inputs)
