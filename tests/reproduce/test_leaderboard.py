"""The leaderboard: who enters, how scales are walked, how differences are judged."""

import leaderboard
import numpy as np
import pytest
import standings
from adapters import norm
from entrants import RANKS, WHOLE, Entrant, data_free, shared
from leaderboard import SCALES, walk

from lorakit import AdapterSet, AverageMerger, SVDMerger, TiesMerger
from lorakit.discovery import all_methods
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def adapters():
    return AdapterSet(make_adapters(5, ranks=8, n_modules=2, d_in=60, d_out=48, random_state=0))


def test_every_method_that_needs_no_data_enters_in_every_space():
    names = {entrant.name for entrant in data_free()}
    assert len(names) == len(data_free())
    for info in all_methods("merger"):
        wanted = {f"{info.method} {space}" for space in info.spaces} or {info.method}
        assert wanted <= names or info.needs_data
    assert {"ctm mean", "dare delta sign election", "iso cts", "lego svd", "PEFT ties_svd"} <= names
    assert "regmean" not in names


def test_ranks_that_are_entered_are_those_of_the_merges(adapters):
    for entrant in data_free():
        ks = entrant.ranks(adapters)
        if entrant.peft:
            continue
        merged = entrant.merge(adapters, ks)
        assert {k: max(merged[k].ranks) for k in ks if k} == {k: k for k in ks if k}, entrant.name
        if WHOLE in ks:
            assert max(merged[WHOLE].ranks) >= 40, entrant.name
    assert Entrant("x", AverageMerger()).ranks(adapters) == (8,)
    assert Entrant("x", TiesMerger(space="factors")).ranks(adapters) == (8,)
    assert Entrant("x", SVDMerger()).ranks(adapters) == (*RANKS, WHOLE)
    assert Entrant("x", peft="svd").ranks(adapters) == RANKS
    assert Entrant("x", peft="ties").ranks(adapters) == (8,)
    assert Entrant("x", SVDMerger()).ranks(adapters[:2]) == (8, WHOLE)  # 16 is whole
    assert Entrant("x", peft="cat").ranks(adapters) == (WHOLE,)


def test_merges_that_differ_by_a_factor_are_measured_once(adapters):
    kept, others = shared(data_free(), adapters)
    assert others == {
        "average": ["task_arithmetic factors"],
        "iso": ["isotropizer"],  # of the mean, by default
        "svc": ["svc_calibrator"],
        "svd": ["concat", "task_arithmetic core", "task_arithmetic delta", "task_arithmetic knots"],
    }
    assert not {entrant.name for entrant in kept} & {name for names in others.values() for name in names}


def test_drawing_methods_get_the_seed(adapters):
    (dare,) = (entrant for entrant in data_free() if entrant.name == "dare delta")
    one, same, other = (norm(dare.merge(adapters, [8], seed)[8]) for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("top", SCALES)
@pytest.mark.parametrize("start", [SCALES[0], 1.25, SCALES[-1]])
def test_a_walk_finds_the_top(top, start):
    asked = []

    def score(scale: float) -> float:
        asked.append(scale)
        return -abs(SCALES.index(scale) - SCALES.index(top))

    assert walk(score, start) == (top, 0)
    assert len(asked) == len(set(asked))


def test_a_walk_on_a_plain_stays():
    assert walk(lambda scale: 0.5, 1.0) == (1.0, 0.5)


def test_scales_are_chosen_on_validation_texts_at_norms_of_the_adapters(adapters, monkeypatch):
    one = np.mean([norm(a) for a in adapters])

    class Judge:
        def __init__(self, split, n):
            assert split == "validation"

        def mean(self, adapter, tasks):
            return -abs(norm(adapter) / one - 1.8)

    monkeypatch.setattr(leaderboard, "load_tasks", lambda tasks, seed: adapters)
    monkeypatch.setattr(leaderboard, "Evaluator", Judge)
    found = leaderboard.choose(Entrant("svd", SVDMerger()), ["a"], 0, 5)
    assert {k: v["scale"] for k, v in found["ranks"].items()} == dict.fromkeys((*RANKS, WHOLE), 1.8)
    assert found["ranks"][WHOLE]["rank"] == 40
    assert found["seconds"] > 0


def right(shares: dict[str, float], n: int = 40) -> dict[str, np.ndarray]:
    """The first so many texts of each task right."""
    return {task: np.arange(n) < share * n for task, share in shares.items()}


def test_means_are_over_tasks_not_texts():
    found = [{"a": np.array([True, False]), "b": np.array([True] * 8)}]
    assert standings.accuracies(found) == [0.75]
    assert standings.normalised(found, [{"a": np.array([True, True]), "b": np.array([True, False])}]) == [1.25]


def test_a_difference_and_its_error():
    rng = np.random.default_rng(0)
    one, other = ([{"a": rng.random(400) < p, "b": rng.random(100) < p} for _ in range(3)] for p in (0.8, 0.7))
    found, error = standings.difference(one, other)
    assert found == pytest.approx(np.mean(standings.accuracies(one)) - np.mean(standings.accuracies(other)))
    variance = (0.8 * 0.2 + 0.7 * 0.3) / 3  # of a text's mean over three seeds that know nothing of each other
    assert error == pytest.approx(np.sqrt(variance / 400 + variance / 100) / 2, rel=0.15)
    assert standings.difference(one, one) == (0, 0)


def test_finalists_and_what_is_said_of_them():
    finals = {
        "svd": {8: [right({"a": 0.9}, 400)], 16: [right({"a": 0.5}, 400)]},
        "tsv": {8: [right({"a": 0.5}, 400)], 16: [right({"a": 0.505}, 400)]},
    }
    assert standings.best(finals, 8, 1) == ["svd"]
    assert standings.best(finals, 32, 1) == []
    table = standings.final_table(finals, [right({"a": 1.0}, 400)])
    assert "At k = 8 svd is first, ahead of all others." in table.note
    assert "At k = 16 tsv is first, not told apart from it: svd." in table.note
    aliases = standings.final_table({"svd": finals["svd"], "PEFT svd": finals["svd"]}, [right({"a": 1.0}, 400)])
    assert "At k = 8 svd is first, not told apart from it: PEFT svd." in aliases.note
    assert [row[:2] for row in table.rows] == [["k = 8", "svd"], ["", "tsv"], ["k = 16", "tsv"], ["", "svd"]]
    assert table.rows[1][-1].startswith("-40.0 ± ")


def test_the_leaderboard_is_sorted_by_rank_16():
    results = {
        "average": {8: [right({"a": 0.9})]},
        "svd": {8: [right({"a": 0.3})], 16: [right({"a": 0.5})]},
        "tsv": {8: [right({"a": 0.2})], 16: [right({"a": 0.6})]},
    }
    walks = {name: {"seconds": 1.0, "ranks": {k: {} for k in of}} for name, of in results.items()}
    table = standings.heats_table(results, walks, {"own adapters": [right({"a": 1.0})]}, {"svd": ["concat"]})
    assert [row[0] for row in table.rows] == ["tsv", "svd", "average", "own adapters"]
    assert table.note == "svd stands also for concat."


def test_a_whole_run(monkeypatch, capsys):
    """Everything but the base model and PEFT, which stand-ins measure."""
    by_seed = {s: AdapterSet(make_adapters(3, ranks=8, n_modules=1, d_in=40, d_out=40, random_state=s)) for s in (0, 1)}
    names = list(by_seed[0].names)
    seen = {"validation": set(), "test": set()}

    class Judge:
        def __init__(self, split, n):
            self.split, self.n = split, n

        def labels(self, task):
            return np.zeros(self.n, dtype=int)

        def scores_by_task(self, adapter, rows):
            seen[self.split] |= {int(row) for wanted in rows.values() for row in wanted}
            rng = np.random.default_rng(int(1000 * (norm(adapter) if adapter else 0)))
            return {task: rng.random((len(wanted), 2)) for task, wanted in rows.items()}

        def mean(self, adapter, tasks):
            return 1 / (1 + norm(adapter))

    monkeypatch.setattr(leaderboard, "load_tasks", lambda tasks, seed: by_seed[seed])
    monkeypatch.setattr(leaderboard, "Evaluator", Judge)
    monkeypatch.setattr(leaderboard, "data_free", lambda: [e for e in data_free() if not e.peft])
    monkeypatch.setattr(Entrant, "merge", stand_in(Entrant.merge))
    monkeypatch.setattr(leaderboard, "parse", lambda options: options.parse_args([]))
    monkeypatch.setattr(leaderboard, "N_TEST", 60)
    options = {"seeds": [0, 1], "tasks": names}
    parser = leaderboard.parser
    monkeypatch.setattr(leaderboard, "parser", lambda about: with_defaults(parser(about), options))
    leaderboard.main()
    printed = capsys.readouterr().out
    assert "svd stands also for concat, task_arithmetic core" in printed
    assert "At k = 8 " in printed
    assert "At k = 32" not in printed  # three adapters of rank 8 have no such cut
    assert "whole rank" in printed
    assert seen == {"validation": set(), "test": set(range(60))}


def stand_in(merge):
    """RegMean without texts: the mean."""
    svd = Entrant("svd", SVDMerger())
    return lambda self, adapters, ks, seed=0: merge(svd if self.n_texts else self, adapters, ks, seed)


def with_defaults(parser, values):
    parser.set_defaults(**values)
    return parser
