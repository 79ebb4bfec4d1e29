"""Units averaged and kept: what each way of joining is, and what is said of the numbers."""

import lego_table2
import pytest
import torch
from adapters import joined, norm
from lego_table2 import (
    ALL,
    ALONE,
    AS_IT_IS,
    AS_PUBLISHED,
    AVERAGE,
    BASE,
    CHOSEN,
    CONCAT,
    LEGO_ROOM,
    LEGO_TIGHT,
    PAIRS,
    TUNED,
)

from lorakit import AdapterSet
from lorakit.testing import make_adapters

SHAPE = {"n_modules": 2, "d_in": 12, "d_out": 10}


@pytest.fixture(scope="module")
def shared():
    return make_adapters(1, ranks=4, random_state=0, **SHAPE)[0]


@pytest.fixture(scope="module")
def units():
    return AdapterSet(make_adapters(3, ranks=1, random_state=1, **SHAPE))


def test_the_units_are_averaged_or_kept(shared, units):
    ways = lego_table2.ways(shared, units)
    for module, own in shared.items():
        a, b = (
            torch.stack([half(unit[module]) for unit in units]).mean(dim=0) for half in (lambda f: f.A, lambda f: f.B)
        )
        average, concatenated = (ways[way](AS_IT_IS)[module] for way in (AVERAGE, CONCAT))
        torch.testing.assert_close(average.delta(), own.delta() + b @ a)
        torch.testing.assert_close(concatenated.delta(), own.delta() + sum(unit[module].delta() for unit in units))
        assert (average.rank, concatenated.rank) == (5, 7)


def test_the_norm_is_that_of_the_units_alone(shared, units):
    one = sum(map(norm, units)) / len(units)
    ways = lego_table2.ways(shared, units)
    for way in (AVERAGE, CONCAT):
        part = joined(ways[way](1.5), lego_table2.at_norm(shared, [shared], -1.0), name="without the shared one")
        assert norm(part) == pytest.approx(1.5 * one, rel=1e-3)


def test_lego_keeps_all_units_where_it_has_room(shared, units):
    """The shared units are equal in all adapters and so make clusters of their own."""
    ways = lego_table2.ways(shared, units)
    room, tight = ways[LEGO_ROOM](AS_IT_IS), ways[LEGO_TIGHT](AS_IT_IS)
    for module, factors in ways[CONCAT](AS_IT_IS).items():
        torch.testing.assert_close(room[module].delta(), (5 / 7) ** 0.5 * factors.delta(), rtol=1e-3, atol=1e-3)
        assert tight[module].rank == 5


def test_groups():
    assert lego_table2.groups_of(["a", "b", "c"]) == {
        PAIRS: [("a", "b"), ("a", "c"), ("b", "c")],
        ALL: [("a", "b", "c")],
    }
    assert lego_table2.groups_of(["a", "b"]) == {PAIRS: [("a", "b")]}


def test_a_task_gets_the_mean_over_its_pairs():
    def scores(**by_task):
        return {AVERAGE: {AS_PUBLISHED: by_task}}

    found = lego_table2.mean_of([scores(a=0.5, b=0.1), scores(a=0.7, c=0.3), scores(b=0.2, c=0.5)])
    assert found[AVERAGE][AS_PUBLISHED] == pytest.approx({"a": 0.6, "b": 0.15, "c": 0.4})


def test_the_sentences_are_those_of_the_numbers():
    def seed(average: float, concatenation: float) -> dict:
        both = {
            way: {scale: {"a": score, "b": score} for scale in (AS_PUBLISHED, CHOSEN)}
            for way, score in ((AVERAGE, average), (CONCAT, concatenation))
        }
        return {PAIRS: both}

    single = [{BASE: {"a": 0.2, "b": 0.2}, ALONE: {"a": 0.3, "b": 0.3}, TUNED: {"a": 0.8, "b": 0.8}}] * 2
    text = lego_table2.verdict(PAIRS, [seed(0.4, 0.8), seed(0.6, 0.6)], single)
    assert (
        "As published, pairs: the average loses 37.5 ± 17.7 %, the concatenation 12.5 ± 17.7 % (less in 1 of 2" in text
    )
    assert "they keep 40 % and 80 %." in text
