"""Stacked experts in PEFT files written by hand: which rows and columns are whose, and what contradicts itself."""

import json
import pickle
from functools import partial

import pytest
import torch
from peft_files import pair, write_directory

from lorakit import Adapter, LegoPruner, LoraFactors, SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind
from lorakit.exceptions import CorruptFileError, IncompatibleAdaptersError, OutputError, UnsupportedAdapterError
from lorakit.files import tensors as _tensors

M = "model.layers.0.mlp.experts"
TARGETS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
E, R = 3, 2


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def stacks(module=M, r=R, experts=E, inner=True, seed=0, dtype=torch.float32):
    """Factors of the outer parameter (5 -> 4), and of the inner one (4 -> 7)."""
    tensors = pair(module, r * experts, 5, 4, seed=seed, dtype=dtype)
    return (
        {**tensors, **pair(f"{module}.base_layer", r * experts, 4, 7, seed=seed + 1, dtype=dtype)} if inner else tensors
    )


def update_of(tensors, module, expert, experts=E):
    a, b = (tensors[f"base_model.model.{module}.lora_{slot}.weight"].double() for slot in "AB")
    rank = a.shape[0] // experts
    return b[:, expert::experts] @ a[expert * rank : (expert + 1) * rank]


def test_each_expert_is_a_module(write_peft):
    tensors = {**stacks(), **pair("model.layers.0.q")}
    adapter = load_adapter(write_peft(tensors, target_parameters=TARGETS))
    experts = [f"{name}.{i}" for name in (f"{M}.base_layer", M) for i in range(E)]
    assert list(adapter) == [*experts, "model.layers.0.q"]
    for module in (M, f"{M}.base_layer"):
        for expert in range(E):
            found = adapter[f"{module}.{expert}"]
            assert found.rank == R
            torch.testing.assert_close(
                found.delta().double(), 2 * update_of(tensors, module, expert), rtol=1e-5, atol=1e-5
            )
    layout = ModuleKind("expert", experts=E, parameters=("down_proj", "gate_up_proj"))
    assert adapter.infos[f"{M}.base_layer.1"] == (R, 4, 7, layout)
    assert adapter.provenance.target_parameters == dict.fromkeys(TARGETS, 1)


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_written_as_it_was_read(write_peft, tmp_path, layout):
    tensors = {**stacks(), **pair("model.layers.0.q", r=1)}
    adapter = load_adapter(write_peft(tensors, target_parameters=TARGETS, rank_pattern={"q": 1}))
    path = save_adapter(adapter, tmp_path / "out", layout=layout)
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["target_parameters"] == TARGETS
    assert config["target_modules"] == ["model.layers.0.q"]
    assert config["r"] == config["lora_alpha"] == R
    assert config["rank_pattern"] == ({"model.layers.0.q": 1} if layout == "compact" else {})
    again = load_adapter(path)
    assert dict(again.infos) == {
        m: info._replace(rank=R) if layout == "portable" else info for m, info in adapter.infos.items()
    }
    for module in adapter:
        torch.testing.assert_close(again[module].delta(), adapter[module].delta())
    assert (save_adapter(again, tmp_path / "twice", layout=layout) / "adapter_model.safetensors").read_bytes() == (
        save_adapter(load_adapter(path), tmp_path / "thrice", layout=layout) / "adapter_model.safetensors"
    ).read_bytes()


def test_experts_of_several_ranks_share_the_largest(write_peft, tmp_path):
    adapter = load_adapter(write_peft(stacks(), target_parameters=TARGETS))
    modules = dict(adapter)
    modules[f"{M}.1"] = LoraFactors(modules[f"{M}.1"].A[:1], modules[f"{M}.1"].B[:, :1])
    kinds = {module: info.kind for module, info in adapter.infos.items()}
    mixed = Adapter(modules, kinds=kinds, provenance=adapter.provenance)
    again = load_adapter(save_adapter(mixed, tmp_path / "out", layout="compact"))
    assert again.ranks == (R,)
    for module in modules:
        torch.testing.assert_close(again[module].delta(), modules[module].delta())


def test_merged_and_pruned_expert_by_expert(write_peft, tmp_path):
    given = [stacks(seed=i) for i in (0, 10)]
    paths = [write_peft(tensors, folder=str(i), target_parameters=TARGETS) for i, tensors in enumerate(given)]
    adapters = load_adapters(paths)
    merged = SVDMerger(k=4).fit(adapters).merged_
    again = load_adapter(save_adapter(merged, tmp_path / "merged"))
    for module in (M, f"{M}.base_layer"):
        for expert in range(E):
            mean = sum(2 * update_of(tensors, module, expert) for tensors in given) / 2
            torch.testing.assert_close(again[f"{module}.{expert}"].delta().double(), mean, rtol=1e-4, atol=1e-5)
    pruned = LegoPruner(k=1, random_state=0).fit_transform(adapters)
    assert load_adapter(save_adapter(pruned[0], tmp_path / "pruned")).ranks == (1,)


def test_a_target_without_a_dot_is_no_parameter_of_plain_modules(write_peft):
    """transformers writes them so when it converts an adapter; by their text alone they could be in any module."""
    tensors = {**stacks(), **pair("model.layers.0.q", r=R)}
    adapter = load_adapter(write_peft(tensors, target_parameters=["down_proj", "gate_up_proj"]))
    assert adapter.infos["model.layers.0.q"].kind.name == "linear"
    assert f"{M}.2" in adapter


def test_a_parameter_of_one_expert(write_peft, tmp_path):
    adapter = load_adapter(write_peft(pair("mlp.gate"), target_parameters=["mlp.gate.weight"], target_modules=[]))
    assert adapter.infos["mlp.gate.0"].kind == ModuleKind("expert", experts=1, parameters=("weight",))
    config = json.loads((save_adapter(adapter, tmp_path / "out") / "adapter_config.json").read_text())
    assert (config["target_modules"], config["target_parameters"]) == ([], ["mlp.gate.weight"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_parameters": ...}, UnsupportedAdapterError, r"does not name them in target_parameters.*copy"),
        ({"target_parameters": TARGETS[:1]}, CorruptFileError, "for 2 parameters.* names down_proj"),
        ({"r": 4}, CorruptFileError, "6 rows in A, which is no multiple of the rank 4.*correct r"),
        ({"r": ...}, UnsupportedAdapterError, "without r in adapter_config.json their number is not known"),
        ({"alpha_pattern": {"down_proj": 9}}, UnsupportedAdapterError, "does not say which is which.*from_peft"),
        ({"rank_pattern": {"down_proj": 1}}, UnsupportedAdapterError, "does not say which is which.*from_peft"),
    ],
)  # fmt: skip
def test_refused(write_peft, changes, error, message):
    path = write_peft(stacks(), **{"target_parameters": TARGETS, **changes})
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    assert M in str(caught.value)


def test_without_a_config_stacks_are_not_taken_for_one_module(write_peft):
    for inner in (False, True):
        path = write_peft(stacks(inner=inner), config=False, folder=str(inner))
        with pytest.raises(UnsupportedAdapterError, match="adapts bare parameters"):
            load_adapter(path, assume_alpha=4)


def test_no_more_experts_than_there_can_be(write_peft):
    path = write_peft(pair("mlp.experts", 20_000, 1, 1), r=1, target_parameters=["mlp.experts.w"])
    with pytest.raises(
        CorruptFileError, match=r"mlp\.experts'.*are 20000 by their 20000 rows.*at most 10000.*correct r"
    ):
        load_adapter(path)


def test_inside_another_layer(write_peft):
    with pytest.raises(UnsupportedAdapterError, match=r"attn.base_layer.out_proj' lies inside.*MultiheadAttention"):
        load_adapter(write_peft(pair("attn.base_layer.out_proj")))


def test_other_parameters_at_one_place_are_incompatible(write_peft):
    one = write_peft(stacks(inner=False), folder="one", target_parameters=TARGETS[:1])
    other = write_peft(stacks(inner=False), folder="other", target_parameters=TARGETS[1:])
    with pytest.raises(
        IncompatibleAdaptersError, match=r"one of 3 of down_proj\) in 'one'.*of gate_up_proj\) in 'other'"
    ):
        SVDMerger(k=2).fit(load_adapters([one, other]))


def test_names_that_cannot_be_stacked(write_peft, tmp_path):
    adapter = load_adapter(write_peft(stacks(), target_parameters=TARGETS))
    with pytest.raises(OutputError, match=r"one of 3 experts, expected its name to end in a number.*rename"):
        save_adapter(adapter.rename_modules(lambda module: f"{module}.x"), tmp_path / "out")
    with pytest.raises(OutputError, match="keep all of them or none"):
        save_adapter(adapter.select([m for m in adapter if "base_layer" not in m]), tmp_path / "out")
    with pytest.raises(OutputError, match=r"is an expert.*write it as peft"):
        save_adapter(adapter, tmp_path / "out.safetensors", format="kohya")
    assert not (tmp_path / "out").exists()


def test_non_finite_values_are_those_of_the_expert(write_peft):
    tensors = stacks()
    tensors[f"base_model.model.{M}.lora_B.weight"][0, 1] = torch.nan
    adapter = load_adapter(write_peft(tensors, target_parameters=TARGETS))
    assert torch.isfinite(adapter[f"{M}.0"].delta()).all()
    with pytest.raises(CorruptFileError, match=rf"module '{M}.1'.*1 NaN or infinite values of {4 * R}"):
        adapter[f"{M}.1"]


def test_a_stack_is_read_once_and_a_changed_file_again(write_peft, monkeypatch):
    path = write_peft(stacks(dtype=torch.bfloat16), target_parameters=TARGETS)
    reads = []
    read_tensors = _tensors.read_tensors
    monkeypatch.setattr(
        _tensors, "read_tensors", lambda path, names, opened: reads.append(names) or read_tensors(path, names, opened)
    )
    adapter = load_adapter(path)
    for module in adapter:
        adapter[module]
    assert len(reads) == 2
    again = pickle.loads(pickle.dumps(adapter.select([f"{M}.2"])))
    assert torch.equal(again[f"{M}.2"].B, adapter[f"{M}.2"].B)
    save_adapter(load_adapter(path), path, overwrite=True)
    with pytest.raises(CorruptFileError, match="has changed"):
        adapter[f"{M}.0"]
    assert load_adapter(path)[f"{M}.0"].rank == R
