"""What a record may ask for: it comes in a file that nobody vouches for, and small files can ask for much work."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import Adapter, AdapterSet
from ._rebuild import CannotTell

# A pipeline takes each source once for each of its steps, and hands on no more than it took.
_MOST_WORK = 64  # times the numbers, and the number, of the sources
_MOST_DENSE = 2**28  # entries of a dense update: 1 GB in float32, above the widest layers of 70B models
_MOST_PADDED = 512  # rank to which any file may be padded; the largest that servers take
# Parameters that multiply the work of a method, and the most that a record may set
_MOST_OF = {"n_init": 1_000, "max_iter": 10_000, "n_iter": 10_000, "n_steps": 100_000, "max_steps": 100_000}
_MOST_ITERATIONS = 300_000  # of all starts together: of the largest n_init at the default max_iter
_LARGEST = sys.float_info.max
_MOST_VALUES, _MOST_CHARACTERS = 100_000, 1_000_000  # of all parameters of an estimator


def check_parameters(params: Any) -> None:
    """Refuse parameters of an estimator that would make it run for ever, wherever in its recipe they are.

    Raises
    ------
    CannotTell
        If one is above what a record may set.
    """
    left = [_MOST_VALUES, _MOST_CHARACTERS]
    _check(params, left)
    if min(left) < 0:
        raise CannotTell("its record gives an estimator more values than any estimator needs")


def _check(value: Any, left: list[int]) -> None:
    left[0] -= 1
    if isinstance(value, str):
        left[1] -= len(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name in _MOST_OF and isinstance(item, int | float) and item > _MOST_OF[name]:
                raise CannotTell(f"its record sets {name} to {item}, and at most {_MOST_OF[name]} is done again")
            _check(item, left)
        starts, steps = (value.get(name) for name in ("n_init", "max_iter"))
        if isinstance(starts, int) and isinstance(steps, int) and starts * steps > _MOST_ITERATIONS:
            raise CannotTell(
                f"its record asks for {starts} starts of {steps} iterations, and at most {_MOST_ITERATIONS} iterations "
                "are done again"
            )
    elif isinstance(value, list):
        for item in value:
            _check(item, left)


def check_strengths(strengths: Sequence[float]) -> None:
    """Refuse the strengths of a baked model's record that are no finite numbers.

    Raises
    ------
    CannotTell
        If one is none.
    """
    for strength in strengths:
        if not -_LARGEST <= strength <= _LARGEST:  # NaN is not
            shown = str(strength) if isinstance(strength, float) else "a number that no float holds"
            raise CannotTell(f"its record has the strength {shown}")


def check_dense(estimator: Any, sources: Sequence[Adapter]) -> None:
    """Refuse a method that forms whole updates where thin factors of little memory make enormous ones.

    Raises
    ------
    CannotTell
        If an update of a source has more entries than those of any model, and many times more than its factors.
    """
    inner = getattr(estimator, "merger", None)
    if inner is not None:
        check_dense(inner, sources)
    if getattr(estimator, "space", None) != "delta":
        return
    for adapter in sources:
        for module, info in adapter.infos.items():
            if info.d_in * info.d_out > max(_MOST_DENSE, _MOST_WORK * info.n_parameters):
                raise CannotTell(
                    f"{type(estimator).__name__} forms whole updates, and that of module {module!r} of {adapter.name} "
                    f"would be {info.d_out} x {info.d_in}, from {info.n_parameters} numbers"
                )


def check_padding(form: Mapping[str, Any], made: Adapter) -> None:
    """Refuse to pad an adapter to a rank that makes it many times as large.

    Raises
    ------
    CannotTell
        If the rank is above that of any server, and far above the adapter's.
    """
    rank, most = form["rank"], max((info.rank for info in made.infos.values()), default=0)
    if form["layout"] == "portable" and rank > max(_MOST_PADDED, _MOST_WORK * most):
        raise CannotTell(f"its record says that rank {most} was padded to {rank}")


class Work:
    """What operations may still take in, counted in adapters, in their numbers, and in conversions.

    Parameters
    ----------
    sources : sequence of Adapter
        What the record was made of.
    """

    def __init__(self, sources: Sequence[Adapter]) -> None:
        self.adapters = self.conversions = _MOST_WORK * (1 + len(sources))
        self.numbers = _MOST_WORK * sum(adapter.n_parameters for adapter in sources)

    def convert(self, done: Any) -> None:
        """Count the conversions of one input, as the record has them, before they are done again."""
        self.conversions -= len(done) if isinstance(done, list) else 0
        self._check()

    def spend(self, X: AdapterSet) -> None:
        """Count what goes into an operation.

        Raises
        ------
        CannotTell
            If it is more than the sources could have needed.
        """
        self.adapters -= len(X)
        self.numbers -= sum(adapter.n_parameters for adapter in X)
        self._check()

    def _check(self) -> None:
        if min(self.adapters, self.numbers, self.conversions) < 0:
            raise CannotTell(f"its record asks for more than {_MOST_WORK} times the work that its sources are")
