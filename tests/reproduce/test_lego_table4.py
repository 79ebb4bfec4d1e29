"""Retrieval of adapters for mixed texts: who gets which merge, at which norm, and what is said of it."""

from types import SimpleNamespace

import lego_table4
import numpy as np
import pytest
from adapters import at_norm, norm
from lego_table4 import AS_IT_IS, AS_PUBLISHED, CASES, CHOSEN, LEGO, METHODS, SELECTION, TOP, WITH_OWN, WITHOUT_OWN
from tasks import TRAINED

from lorakit import AdapterSet
from lorakit.testing import make_adapters

TASKS = ["icd10", "langid", "movie", "amazon", "tweets"]
N = 4


class Axes:
    """Embeds a text, the name of a task and a number, near the axis of its task, and a little nearer to later ones."""

    def encode(self, texts):
        found = np.zeros((len(texts), len(TASKS)))
        for row, text in enumerate(texts):
            task, i = text.split()
            found[row] = 0.1 * np.roll(np.arange(len(TASKS)), int(i))
            found[row, TASKS.index(task)] = 5
        return found


class Fake:
    """An evaluator whose answers are right if the norm of the adapter is at least 1.5 times that of one."""

    seen: list = []

    def __init__(self, split, n):
        self.split, self.n = split, n

    def labels(self, task):
        return np.zeros(self.n, int)

    def texts(self, task):
        return [f"{task} {i}" for i in range(self.n)]

    def scores_by_task(self, adapter, rows):
        Fake.seen.append(norm(adapter))
        good = norm(adapter) > Fake.enough
        return {task: np.tile([float(good), float(not good)], (len(some), 1)) for task, some in rows.items()}


@pytest.fixture
def pool(monkeypatch):
    adapters = AdapterSet(
        at_norm(a, [a], 1 / norm(a)).renamed(task)
        for a, task in zip(
            make_adapters(len(TASKS), ranks=2, n_modules=1, d_in=12, d_out=12, random_state=0), TASKS, strict=True
        )
    )
    Fake.seen, Fake.enough = [], 0.0
    examples = {task: SimpleNamespace(splits={"train": [(f"{task} 0", 0)]}) for task in TASKS}
    monkeypatch.setattr(lego_table4, "Evaluator", Fake)
    monkeypatch.setattr(lego_table4, "load_tasks", lambda tasks, seed: adapters)
    monkeypatch.setattr(lego_table4, "load_task", examples.__getitem__)
    monkeypatch.setattr(lego_table4, "embeddings", Axes)
    return adapters


@pytest.mark.parametrize("case", CASES)
def test_every_text_is_answered_once_by_a_merge_of_what_it_retrieves(pool, case):
    retriever = lego_table4.retriever_of(pool, METHODS[LEGO])
    answered = []
    for merged, members, rows in lego_table4.mixed(retriever, case, TASKS, Fake("test", N)):
        assert len(members) == TOP
        assert max(merged.ranks) == 4
        for task, positions in rows.items():
            answered += [(task, int(i)) for i in positions]
            assert (task in [member.name for member in members]) == (case == WITH_OWN)
    assert sorted(answered) == sorted((task, i) for task in TASKS for i in range(N))


def test_selection_takes_the_first_alone(pool):
    for merged, _, rows in lego_table4.mixed(lego_table4.retriever_of(pool), WITH_OWN, TASKS, Fake("test", N)):
        assert list(rows) == [merged.name]
        assert merged is pool[merged.name]


def test_answers_are_counted_by_task_and_norm(pool):
    Fake.enough = 1.4
    found = lego_table4.measure(LEGO, WITHOUT_OWN, TASKS, 0, "test", N, [AS_IT_IS, 0.5, 3.0])
    assert found[0.5] == dict.fromkeys(TASKS, 0.0)
    assert found[3.0] == dict.fromkeys(TASKS, 1.0)
    sizes = {round(size, 3) for size in Fake.seen}
    assert sizes > {0.5, 3.0}  # and those of the merges as they are


def test_norms_are_chosen_on_validation_texts(pool, monkeypatch):
    Fake.enough = 1.4
    assert lego_table4.choose("ensemble", WITH_OWN, TASKS, 0, N) == 1.5
    asked = []
    monkeypatch.setattr(Fake, "__init__", lambda self, split, n: asked.append(split) or setattr(self, "n", n))
    lego_table4.choose("ensemble", WITH_OWN, TASKS, 0, N)
    assert asked == ["validation"]


def test_what_is_retrieved(pool):
    options = SimpleNamespace(seeds=[0], n_test=N)
    assert lego_table4.retrieved(TASKS, WITH_OWN, options)["first"] == 1
    assert lego_table4.retrieved(TASKS, WITHOUT_OWN, options)["any"] == 0


def test_all_tasks_are_of_one_cluster():
    of_clusters = [task for tasks in lego_table4.CLUSTERS.values() for task in tasks]
    assert sorted(of_clusters) == sorted(TRAINED)
    found = lego_table4.clustered({"movie": 0.2, "amazon": 0.4, "langid": 0.9})
    assert found == pytest.approx({"sentiment": 0.3, "language": 0.9, "all": 0.5})


def results(lego: float) -> lego_table4.Found:
    return {
        (case, scale): {
            what: [{"movie": {LEGO: lego, SELECTION: 0.6 if case == WITH_OWN else 0.5}.get(what, 0.4)}]
            for what in METHODS
        }
        for case in CASES
        for scale in (AS_PUBLISHED, CHOSEN)
    }


def test_the_sentences_are_those_of_the_numbers():
    text = lego_table4.verdict(results(0.55))
    assert "with own adapter: LEGO is number 2 of 6, 5.0 points behind the best other, selection (ahead in 0" in text
    assert (
        "without own adapter: LEGO is number 1 of 6, 5.0 points ahead of the best other, selection (ahead in 1" in text
    )
    assert "selection loses 10.0" in text
    assert "LEGO loses 0.0 points" in text


def test_the_table_says_once_what_holds_for_several_rows():
    options = SimpleNamespace(tasks=["movie"], n_test=N, seeds=[0])
    made = lego_table4.table(results(0.5), {"base model": [{"movie": 0.1}]}, options)
    assert [row[:2] for row in made.rows if row[0]] == [
        [case, scale] for case in CASES for scale in (AS_PUBLISHED, CHOSEN)
    ]
    assert [row[2] for row in made.rows].count(SELECTION) == 2
