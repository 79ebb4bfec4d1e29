"""Gradients of a distilled merge against those of PEFT's own training of the same factors on the same batch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lorakit import Adapter, AdapterSet, LoraFactors, TSVMerger, applied, collect_targets, load_adapter
from lorakit.distillation._split import Inputs
from lorakit.distillation._training import Course, Training
from lorakit.distillation.heads import Heads, SharedHeads
from lorakit.distillation.nearness import Teachers

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")]

TARGETS = ["query", "value", "dense", "word_embeddings"]
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False).double().eval()


def wrapped(seed, rank=3):
    """PEFT's model, with factors that are both random."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS)
    model = peft.get_peft_model(bert(), config, autocast_adapter_dtype=False).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return model


def encode(model, ids):
    return model(input_ids=ids).last_hidden_state.mean(dim=1)


def test_gradients_are_those_of_peft(tmp_path):
    heads = {f"t{i}": torch.randn(4, 16, generator=torch.Generator().manual_seed(i)).double() for i in range(3)}
    ids = torch.randint(0, 40, (10, 6), generator=torch.Generator().manual_seed(0))
    forward = SharedHeads(encode, heads)
    adapters = []
    for i, name in enumerate(heads):
        wrapped(i + 1).save_pretrained(tmp_path / name)
        adapter = load_adapter(tmp_path / name)
        kinds = {module: info.kind for module, info in adapter.infos.items()}
        adapters.append(Adapter(dict(adapter), name=name, kinds=kinds))
    base = bert()
    targets = collect_targets(base, AdapterSet(adapters), ids, forward, dtype="float64")
    student = wrapped(9)
    student.save_pretrained(tmp_path / "student")
    start = load_adapter(tmp_path / "student")

    weights = torch.rand(10, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    rows = np.arange(10)
    training = Training(
        base,
        start,
        Heads(forward, list(heads)),
        list(heads),
        Teachers(targets, list(heads)),
        Inputs(ids, None, rows, rows, weights),
        Course(1, 1e-3, 10, 0.5, None, 0, ""),
    )
    with applied(base, training.student):
        loss = training.gradients(rows)

    theirs = 0.0
    encoded = encode(student.base_model.model, ids)
    for i, (name, head) in enumerate(heads.items()):
        p = F.softmax(torch.from_numpy(targets[name]), dim=1)
        q = F.softmax(encoded @ head.T / 0.5, dim=1)
        theirs = theirs + (weights[:, i] * (p * (p / q).log()).sum(1)).mean() / 3
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-10)

    compared = 0
    for module, factors in training.student.items():
        own_a, own_b = _halves(student, module, start)
        assert own_b.grad.norm() > 0
        # lora_alpha / r is folded into the factors, split evenly: products of a gradient and the other factor are free
        # of how it is split
        torch.testing.assert_close(factors.B.grad @ factors.A, own_b.grad @ own_a, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(factors.B @ factors.A.grad, own_b @ own_a.grad, rtol=1e-8, atol=1e-12)
        compared += 1
    assert compared == 2 * 5 + 1


def _halves(model, module, adapter):
    """PEFT's own A and B of a module."""
    layer = model.base_model.model.get_submodule(module)
    if adapter.infos[module].kind.name == "embedding":
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def test_it_trains_as_peft_does(tmp_path):
    """Ten steps of AdamW on PEFT's layers and on the bare factors lead to the same updates."""
    ids = torch.randint(0, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    head = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).double()
    wrapped(1).save_pretrained(tmp_path / "t")
    teacher = load_adapter(tmp_path / "t").renamed("t")
    base, forward = bert(), SharedHeads(encode, {"t": head})
    targets = collect_targets(base, [teacher], ids, forward, dtype="float64")
    start = TSVMerger(k=2, scale=0.5).fit([teacher]).merged_
    rows = np.arange(8)
    inputs = Inputs(ids, None, rows, rows, torch.ones(8, 1).double())
    training = Training(
        base,
        start,
        Heads(forward, ["t"]),
        ["t"],
        Teachers(targets, ["t"]),
        inputs,
        Course(10, 1e-2, 8, 1.0, None, 0, ""),
    )
    training.measure_start()
    while not training.done:
        training.run_epoch(lambda done, total: None)

    config = peft.LoraConfig(r=2, lora_alpha=2, lora_dropout=0.0, target_modules=TARGETS)
    model = peft.get_peft_model(bert(), config, autocast_adapter_dtype=False).double().eval()
    parameters = []
    with torch.no_grad():
        for module, factors in start.items():
            a, b = _halves(model, module, start)
            a.copy_(factors.A)
            b.copy_(factors.B)
            parameters += [a, b]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(10):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 1.0) * (1 - step / 10)
        q = F.log_softmax(encode(model.base_model.model, ids) @ head.T, dim=1)
        loss = F.kl_div(q, F.log_softmax(torch.from_numpy(targets["t"]), dim=1), log_target=True, reduction="batchmean")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    for (module, factors), (a, b) in zip(
        training.student.items(), zip(parameters[::2], parameters[1::2], strict=True), strict=True
    ):
        torch.testing.assert_close(factors.B @ factors.A, b @ a, rtol=1e-7, atol=1e-9, msg=module)
    assert isinstance(training.result()[module], LoraFactors)
