"""A backbone of a few hundred numbers, and a task that it can learn."""

import torch
from backbones import padded_scores
from splits import SPLITS
from tasks import Task
from torch import nn
from torch.nn.functional import cross_entropy

WORDS = [f"w{i}" for i in range(12)]


class TinyModel(nn.Module):
    """Mean of random embeddings, then two linear layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 1, 8, padding_idx=0)
        self.dense = nn.Linear(8, 8)
        self.query = nn.Linear(8, 6)

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
        return self.query(torch.tanh(self.dense(x)))


class Tiny:
    """What training and evaluation take for a base model."""

    name = "tiny"
    base_model = "made/for-tests"
    targets = ("dense", "query")
    task_type = "FEATURE_EXTRACTION"
    n_checked = 20
    autocast = True
    loaded = 0

    def load(self):
        Tiny.loaded += 1
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return TinyModel().eval()

    def head(self, base, task):
        return torch.eye(6)[: len(task.anchors)]

    def encode(self, task, texts):
        return [[WORDS.index(word) + 1 for word in text.split()] for text in texts]

    def collate(self, tokens):
        width = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
        return {"input_ids": ids, "attention_mask": (ids > 0).float()}

    def scores(self, model, head, batch):
        return 10 * model(**batch).float() @ head.T

    def scores_of(self, model, head, tokens):
        return padded_scores(self, model, head, tokens)

    def loss(self, model, head, tokens, labels):
        return cross_entropy(self.scores(model, head, self.collate(tokens)).float(), labels)


def tiny_task(name: str = "first", shift: int = 0) -> Task:
    """Which third of the words a text's words are from, of texts of one to four words."""
    generator = torch.Generator().manual_seed(shift)
    splits = {}
    for split in SPLITS:
        items = []
        for i in range(90):
            words = torch.randint(0, 4, (1 + i % 4,), generator=generator)
            items.append((" ".join(WORDS[4 * (i % 3) + int(w)] for w in words), (i + shift) % 3))
        splits[split] = items
    return Task(name, ("a", "b", "c"), splits, "made", "0", "none", f"key of {name}")
