"""SmolLM2's code on a random language model of a few thousand numbers, with a task of labels and one of answers."""

import smollm2
import torch
from splits import SPLITS
from tasks import Task

WORDS = ["red", "blue", "cold", "warm", "sea", "sun", "ice", "sky", "fire", "snow"]
PROMPTS = {
    "colour": ("say ", " is", (" red", " blue", " cold")),
    "other": ("say ", " was", (" warm", " sea")),
    "opposite": ("what ", " means", None),
}
ANSWERS = ("", "sea", "sea sun", "ice")
VOCABULARY = ["[pad]", "[unk]", "\n", "say", "what", "is", "was", "means", *WORDS]


class Tokenizer:
    """One token a word, and one for the end of a line."""

    def __call__(self, texts):
        rows = [self._ids(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": rows[0] if isinstance(texts, str) else rows}

    def _ids(self, text):
        words = text.replace("\n", " [line] ").split()
        return [VOCABULARY.index("\n" if word == "[line]" else word) for word in words]

    def decode(self, tokens):
        return " " + " ".join(VOCABULARY[token] for token in tokens)


def model(**options):
    """A Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(vocab_size=len(VOCABULARY), initializer_range=0.5, pad_token_id=0, **sizes, **options)
        return LlamaForCausalLM(config).eval()


class TinyLanguage(smollm2.SmolLM2):
    """SmolLM2 but for the weights and the words; ``tokenized`` is to be in place."""

    name = "tiny language"
    base_model = "made/for-tests"
    n_checked = 20

    def load(self):
        return model()


def tokenized(monkeypatch):
    """Have SmolLM2's code take the words and prompts of this module."""
    monkeypatch.setattr(smollm2, "_tokenizer", Tokenizer)
    monkeypatch.setattr(smollm2, "PROMPTS", PROMPTS)


def language_tasks():
    """The tasks: a text's label, or answer, hangs on its first word."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, (_, _, words) in PROMPTS.items():
        anchors = ANSWERS if words is None else tuple(words)
        first = 1 if words is None else 0  # no text has the answer ''
        splits = {}
        for split in SPLITS:
            firsts = torch.randint(len(anchors) - first, (40,), generator=generator).tolist()
            splits[split] = [
                (f"{WORDS[y]} {WORDS[i % 7]}" if i % 2 else WORDS[y], y + first) for i, y in enumerate(firsts)
            ]
        found[name] = Task(name, anchors, splits, "made", "0", "none", f"key of {name}")
    return found
