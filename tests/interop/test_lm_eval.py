"""lm-eval judges a merge that we wrote, on a task of its own format: the same likelihoods as the model has by hand.

lm-eval is not among the extras of the package, as it brings hundreds of megabytes; the test runs where it is
installed: ``pip install lm-eval``, then ``pytest tests/interop/test_lm_eval.py``.
"""

import json

import pytest
import torch

from lorakit import AdapterSet, TSVMerger, applied, save_adapter
from lorakit.adapters import Adapter
from lorakit.factors import LoraFactors

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WORDS = ["[pad]", "[unk]", "[end]", "Definition:", "Part:", "noun", "verb", "small", "rodent", "run", "fast", "go"]
TEXTS = ["small rodent", "run fast", "rodent", "go run fast fast", "small small rodent go", "fast"]
LABELS = [0, 1, 0, 1, 0, 1]
TASK = """
task: parts_of_speech
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "Definition: {{text}}\\nPart:"
doc_to_choice: ["noun", "verb"]
doc_to_target: label
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a random model of Llama's architecture and a tokenizer of a token a word."""
    folder = tmp_path_factory.mktemp("base")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[pad]", unk_token="[unk]", eos_token="[end]"
    )
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), initializer_range=0.4, pad_token_id=0, eos_token_id=2, bos_token_id=2, **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with the task, its texts in a file of JSON lines."""
    folder = tmp_path_factory.mktemp("task")
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, LABELS, strict=True)]
    (folder / "test.jsonl").write_text("\n".join(lines))
    (folder / "task.yaml").write_text(TASK.replace("FILE", str(folder / "test.jsonl")))
    return folder


@pytest.fixture(scope="module")
def merged():
    """A merge of two adapters that differ in rank and modules."""
    generator = torch.Generator().manual_seed(1)
    modules = [f"model.layers.{i}.self_attn.{part}" for i in (0, 1) for part in ("q_proj", "v_proj")]

    def made(name, rank, where):
        pairs = [
            (torch.randn(rank, 16, generator=generator), torch.randn(16, rank, generator=generator)) for _ in where
        ]
        return Adapter({m: LoraFactors(a, b) for m, (a, b) in zip(where, pairs, strict=True)}, name=name)

    return TSVMerger(k=3).fit(AdapterSet([made("a", 2, modules), made("b", 3, modules[:2])])).merged_


def judged(base, task, cache, monkeypatch, **model):
    """What lm-eval finds: its accuracy, and of each text the likelihoods of the choices."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(base), "dtype": "float32", **model},
        tasks=["parts_of_speech"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(task), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"]["parts_of_speech"], key=lambda sample: sample["doc_id"])
    likelihoods = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return found["results"]["parts_of_speech"]["acc,none"], torch.tensor(likelihoods)


@torch.no_grad()
def by_hand(base, adapter):
    """Log-likelihoods of the two words after each prompt."""
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    found = []
    with applied(model, adapter):
        for text in TEXTS:
            ids = [WORDS.index(word) for word in f"Definition: {text} Part:".split()]
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)
            found.append([scores[WORDS.index(word)].item() for word in ("noun", "verb")])
    return torch.tensor(found)


def test_lm_eval_has_the_likelihoods_of_the_merge(base, task, merged, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "merged"
    save_adapter(merged, folder)
    expected = by_hand(base, merged)
    accuracy, found = judged(base, task, tmp_path / "cache", monkeypatch, peft=str(folder))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert accuracy == pytest.approx((expected.argmax(dim=1) == torch.tensor(LABELS)).float().mean().item())
    _, without = judged(base, task, tmp_path / "cache", monkeypatch)
    assert (without - found).abs().max() > 0.05
