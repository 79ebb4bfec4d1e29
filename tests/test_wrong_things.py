"""What is said where something else was passed than is taken: each message names what to pass."""

from __future__ import annotations

import pytest
import torch

from lorakit import AdapterSet, SVDMerger, SVDPruner, save_adapter
from lorakit.exceptions import ParameterError
from lorakit.testing import make_adapters

X = AdapterSet(make_adapters(random_state=0))


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (SVDMerger(k=2).fit(X), "pass its merged_"),
        (SVDMerger(), "not fitted; fit it, and pass its merged_"),
        (SVDPruner(k=2).fit_transform(X), "AdapterSet of 3; pass one at a time"),
        ([X[0]], "list of 1; pass one at a time"),
        (torch.nn.Linear(2, 2), "lorakit.from_peft"),
        ({"a.lora_A.weight": torch.ones(2, 2)}, "LoraFactors"),
        ("adapters/law", "lorakit.load_adapter"),
    ],
)
def test_saved(given, advice, tmp_path):
    with pytest.raises(TypeError, match=rf"save_adapter takes an Adapter, got .*{advice}"):
        save_adapter(given, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"a.lora_A.weight": torch.ones(2, 2)}, "a state dict; .*from_peft"),
        ({"law": X[0]}, "a mapping; pass list"),
        ([torch.nn.Linear(2, 2)], "Linear; .*from_peft"),
        ([{"a.lora_A.weight": torch.ones(2, 2)}], "dict; .*from_peft"),
        (["adapters/law"], "str; for files, pass their paths to lorakit.load_adapters"),
    ],
)
def test_fitted(given, advice):
    with pytest.raises(TypeError, match=advice):
        SVDMerger().fit(given)


def test_names_that_are_not_there():
    with pytest.raises(KeyError, match=r"no adapter is named 'tas0'; did you mean 'task0'\? The names are"):
        X["tas0"]
    with pytest.raises(KeyError, match=r"no module is named 'layer\.9'; did you mean 'layer\.\d'\?"):
        X[0]["layer.9"]
    assert X[0].get("layer.9") is None
    twice = AdapterSet([X[0], X[0]])
    with pytest.raises(KeyError, match="2 adapters are named 'task0'; take one by its position"):
        twice["task0"]
    weights = {"taks0": 1.0, "task1": 1.0, "task2": 1.0}
    with pytest.raises(ValueError, match=r"\['task0'\], but 'taks0'; did you mean 'task0'\?"):
        SVDMerger(weights=weights).fit(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ParameterError, match=r"device 'cuda' cannot be used: .*leave the device out"):
        SVDMerger(device="cuda").fit(X)


@pytest.mark.parametrize("estimator", [SVDMerger(k=2), SVDPruner(k=2)])
def test_an_iterator_is_no_wrong_thing(estimator):
    adapters = make_adapters(ranks=(4, 8), random_state=0)
    of_iterator = estimator.fit_transform(adapter for adapter in adapters)
    assert [dict(adapter.infos) for adapter in of_iterator] == [
        dict(adapter.infos) for adapter in estimator.fit_transform(adapters)
    ]
