"""Answers of a causal language model for the scorer: decoding as one would by hand, batches that change nothing."""

import sys
from pathlib import Path

import pytest
import torch

from lorakit import MultiTaskScorer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from causal import ByLength, Generated  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
WORDS = ["[pad]", "[unk]", "say", ":", ".", "one", "two", "three", "four", "five", "six"]
TEXTS = ["one", "two three four five", "six five", "four one two", "three"]
PROMPT = "say {text} :"


@pytest.fixture(scope="module")
def tokenizer():
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[pad]", unk_token="[unk]")


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(2)
    config = transformers.LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.6, **sizes)
    config.eos_token_id = None
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def by_hand(model, text, n):
    """Greedy decoding of one prompt without padding and without a cache; special tokens are not read."""
    ids = [WORDS.index(word) for word in PROMPT.replace("{text}", text).split()]
    made = []
    for _ in range(n):
        made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return " ".join(WORDS[i] for i in made if i > 1)


def test_answers_are_those_of_each_prompt_alone(model, tokenizer):
    found = Generated(tokenizer, PROMPT, max_new_tokens=4, end="never")(model, TEXTS)
    assert found == [by_hand(model, text, 4) for text in TEXTS]
    assert len(set(found)) > 1


def test_an_answer_ends_where_it_should(model, tokenizer):
    whole = Generated(tokenizer, PROMPT, max_new_tokens=6, end="never")(model, TEXTS)
    end = next(answer.split()[1] for answer in whole if len(set(answer.split())) > 1)
    found = Generated(tokenizer, PROMPT, max_new_tokens=6, end=end)(model, TEXTS)
    assert found == [answer.partition(end)[0].strip() for answer in whole]
    assert found != whole


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_batches_by_length_change_nothing(model, tokenizer, size):
    generated = Generated(tokenizer, PROMPT, max_new_tokens=3)
    assert ByLength(generated, size)(model, TEXTS) == generated(model, TEXTS)
    seen = []

    def lengths(model, texts):
        seen.append([len(text) for text in texts])
        return torch.tensor([[len(text), text.count("o")] for text in texts], dtype=torch.float32)

    assert torch.equal(ByLength(lengths, size)(model, TEXTS), lengths(model, TEXTS))
    assert [n for batch in seen[:-1] for n in batch] == sorted(map(len, TEXTS))
    assert max(map(len, seen[:-1])) <= size


def test_the_scorer_counts_exact_answers(model, tokenizer):
    generated = Generated(tokenizer, PROMPT, max_new_tokens=3)
    answers = generated(model, TEXTS)
    wrong = [*answers[:3], "nothing", answers[4] + " more"]
    tasks = {"right": (TEXTS, answers), "some": (TEXTS, wrong)}
    scorer = MultiTaskScorer(model, tasks, ByLength(generated, 2))
    assert scorer.evaluate(None) == {"right": 1.0, "some": 0.6}
