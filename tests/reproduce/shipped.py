"""The tasks whose texts ship with the examples, as the experiments have tasks."""

import json
from pathlib import Path

from tasks import Task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("icd10", "langid", "wn_noun", "wn_pos", "deb_section")


def shipped(name: str) -> Task:
    """A task with the texts of the examples, which no adapter of the examples was trained on."""
    found = json.loads((EXAMPLES / "tasks" / f"{name}.json").read_text(encoding="utf-8"))
    texts = [(text, label) for text, label in found["test"]]
    return Task(
        name, tuple(found["anchors"]), {"test": texts}, found["source"], "", found["licence"], f"shipped {name}"
    )
