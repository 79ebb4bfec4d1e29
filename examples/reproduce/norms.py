"""
Which norm a merge wants: adapters that began alike, and adapters that began apart
==================================================================================

Adapters that one script trains often begin with the same random A. Their updates then read nearly the same inputs,
which shows in their weights (:func:`lorakit.metrics.subspace_overlap`, side 'in'). Whether the norm that a merge wants
depends on it is measured on the same five tasks, with the adapters of the examples, which began alike, and with those
of the tests, which did not; on test texts of each, and nothing is chosen::

    python examples/reproduce/norms.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from adapters import SHIPPED, at_norm
from backbones import MINILM, by_length
from evaluation import updated
from report import Report, Table, parse, parser, progress
from tasks import Task, load_task

from lorakit import Adapter, AdapterSet, SVDMerger, TSVMerger, load_adapter
from lorakit.metrics import subspace_overlap

EXAMPLES = Path(__file__).resolve().parents[1]
TASKS = ("icd10", "langid", "wn_noun", "wn_pos", "deb_section")
NORMS = (0.7, 1.0, 1.4, 1.8)
MERGERS = {"tsv": TSVMerger(), "svd": SVDMerger()}
RANKS = (8, 16)
POOLS = {"alike": EXAMPLES / "adapters", "apart": SHIPPED}

Right = dict[str, np.ndarray]  # by task: whether each text was classified right


def main() -> None:
    """Merge, scale, measure, report."""
    command = parser("Norms of merges of adapters that began alike, and of adapters that began apart.")
    command.set_defaults(n_test=100)
    command.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS), help="which adapters")
    options = parse(command, TASKS)
    report = Report("norms", options)
    rows = []
    for pool in options.pools:
        adapters = AdapterSet(_read(POOLS[pool] / task) for task in options.tasks)
        judge = Judge({task: texts_of(pool, task, options.n_test) for task in options.tasks})
        overlap = subspace_overlap(adapters, side="in")[np.triu_indices(len(adapters), 1)].mean()
        own = {adapter.name: judge.right(adapter, [adapter.name])[adapter.name] for adapter in adapters}
        for name, merger in MERGERS.items():
            for k in RANKS:
                merged = merger.set_params(k=k).fit(adapters).merged_
                found = {norm: judge.right(at_norm(merged, adapters, norm), options.tasks) for norm in NORMS}
                kept = {norm: _mean([right[t] / own[t].mean() for t in right])[0] for norm, right in found.items()}
                gains = [_mean([(found[1.4][t] * 1.0 - found[1.0][t]) / own[t].mean() for t in own])]
                progress(f"{pool}, {name}, k = {k}: {kept}")
                report.numbers[f"{pool}, {name}, {k}"] = kept
                gained = "{:+.1f} ± {:.1f}".format(*(100 * x for x in gains[0]))
                rows.append([pool, f"{overlap:.2f}", name, str(k), *(f"{x:.3f}" for x in kept.values()), gained])
    caption = (
        f"Accuracy of merges of {len(options.tasks)} adapters of rank 8, divided by that of the task's own adapter, "
        f"mean over tasks, {options.n_test} test texts each; by the norm of the merge, in mean norms of the adapters, "
        "and the gain of 1.4 over 1 in points with its standard error over texts. Overlap: of the subspaces that the "
        "adapters read, mean over pairs."
    )
    titles = ["began", "overlap", "method", "k", *(f"norm {norm:g}" for norm in NORMS), "1.4 over 1"]
    report.tables.append(Table("norms", titles, rows, caption))
    report.publish()


class Judge:
    """Says which texts an adapter gets right.

    Parameters
    ----------
    tasks : mapping of str to Task
        Their first split is judged on.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.base = MINILM.load()
        self.tasks = tasks
        self.heads = {name: MINILM.head(self.base, task) for name, task in tasks.items()}

    @torch.no_grad()
    def right(self, adapter: Adapter | None, names: list[str]) -> Right:
        """Whether each text of some tasks gets its label."""
        found = {}
        with updated(self.base, adapter) as model:
            for name in names:
                texts, labels = zip(*self.tasks[name].splits["test"], strict=True)
                tokens, right = MINILM.encode(self.tasks[name], texts), np.zeros(len(texts), dtype=bool)
                for rows in by_length(tokens, 50):
                    scores = MINILM.scores(model, self.heads[name], MINILM.collate([tokens[i] for i in rows]))
                    right[rows] = scores.argmax(dim=1).numpy() == np.array(labels)[rows]
                found[name] = right
        return found


def texts_of(pool: str, name: str, n: int) -> Task:
    """A task with test texts that its adapter was not trained on."""
    if pool == "apart":
        task = load_task(name)
        return Task(name, task.anchors, {"test": task.splits["test"][:n]}, task.source, "", task.licence, task.key)
    found = json.loads((EXAMPLES / "tasks" / f"{name}.json").read_text(encoding="utf-8"))
    texts = [(text, label) for text, label in found["test"][:n]]
    return Task(name, tuple(found["anchors"]), {"test": texts}, found["source"], "", found["licence"], "")


def _read(folder: Path) -> Adapter:
    found = load_adapter(folder)
    return Adapter({m: f.to(torch.float32) for m, f in found.items()}, name=folder.name, provenance=found.provenance)


def _mean(by_task: list[np.ndarray]) -> tuple[float, float]:
    squares = [values.var(ddof=1) / len(values) for values in by_task]
    return float(np.mean([v.mean() for v in by_task])), float(np.sqrt(np.sum(squares)) / len(by_task))


if __name__ == "__main__":
    main()
