"""Changes of factors that leave every update as it is, and what they do to a merge.

Run as a script it prints the table of the documentation::

    python tests/gauges.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.base import clone

from lorakit import AdapterSet
from lorakit.base import GAUGES, BaseMerger
from lorakit.discovery import all_estimators, all_methods
from lorakit.metrics import relative_error
from lorakit.testing import changes, make_adapters
from lorakit.testing.changes import CHANGES, Change


def changed(X: AdapterSet, change: Change, seed: int = 7) -> AdapterSet:
    """X with ``change`` applied to every module of every adapter."""
    return changes.changed(X, change, torch.Generator().manual_seed(seed))


def variants() -> Iterator[BaseMerger]:
    """Every merger that needs adapters only, in every space, and with every way of comparing units."""
    for info in all_methods("merger"):
        if info.needs_data:
            continue
        cls = all_estimators("merger")[info.method]
        merger = cls()
        params = merger.get_params()
        fixed = {"random_state": 0} if "random_state" in params else {}
        spaces = ("factors", "delta", "core", "core_factors", "knots")
        grid = [("space", [space for space in spaces if space in info.spaces]), ("align", (None, "balance", "svd"))]
        names = [
            (name, values) for name, values in grid if name in params and len(cls._parameter_constraints[name]) > 0
        ]
        for name, values in names:
            for value in values:
                variant = clone(merger).set_params(**fixed)
                try:
                    yield variant.set_params(**{name: value})
                except ValueError:
                    continue
        if not names:
            yield merger.set_params(**fixed)
        if "metric" in params:
            for metric in ("cosine", "sign_invariant"):
                yield clone(merger).set_params(metric=metric, **fixed)


def measured_changes(merger: BaseMerger) -> dict[str, float]:
    """Relative change of the merged update under each change of factors, over all modules."""
    ranks = (5, 5, 5) if merger.needs_equal_ranks else (3, 5, 4)
    X = AdapterSet(make_adapters(ranks=ranks, dtype=torch.float64, random_state=0))
    before = clone(merger).set_params(k=4).fit(X).merged_
    return {
        gauge: relative_error(clone(merger).set_params(k=4).fit(changed(X, change)).merged_, before)
        for gauge, change in CHANGES.items()
    }


def label(merger: BaseMerger) -> str:
    shown = [f"{n}={v!r}" for n in ("space", "align", "metric") if (v := merger.get_params().get(n)) is not None]
    return f"{type(merger).__name__}({', '.join(shown)})"


def table() -> str:
    """Return the table as reStructuredText."""
    rows = [("estimator", *GAUGES)]
    for merger in variants():
        found = measured_changes(merger)
        rows.append((f"``{label(merger)}``", *("0" if v < 1e-6 else f"{v:.0%}" for v in found.values())))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


if __name__ == "__main__":
    print(table())
