"""Work in several processes is the work of one, in its order."""

import operator

import pytest
from processes import Processes


@pytest.mark.parametrize("n", [1, 2])
def test_results_come_in_order(n):
    with Processes(n) as processes:
        assert list(processes.map(operator.sub, [(5, 1), (3, 2)])) == [4, 1]
        assert list(processes.map(operator.neg, [(5,)])) == [-5]


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_is_raised(n):
    with pytest.raises(ZeroDivisionError), Processes(n) as processes:
        list(processes.map(operator.truediv, [(1, 0), (1, 1)]))
