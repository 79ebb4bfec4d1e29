"""How far each method is from the formula that it follows: writes the table of ``docs/results/agreement.rst``.

    python tests/agreement.py                                        # prints it
    python tests/agreement.py --page docs/results/agreement.rst

Every method is run on random adapters and on the real ones of ``examples/adapters``, all in float64. Its update is
compared with the formula restated in dense algebra (``tests/published``), with PEFT's functions where PEFT is
installed, and with stored outputs of the authors' code (``tests/data``).
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from benchmarks.measuring import Table, publish, single_thread
from published.cases import (
    ENTRYWISE,
    EVERY_SPACE,
    SPECTRAL,
    expected_entrywise,
    expected_spectral,
    on_factors,
    over_the_model,
    whole,
)
from published.spaces import draws_of
from safetensors.torch import load_file
from sklearn.base import clone
from torch import Tensor

from lorakit import (
    Adapter,
    AdapterSet,
    DareMerger,
    IsoMerger,
    LoraFactors,
    MagnitudeMerger,
    SVDMerger,
    TiesMerger,
    TSVMerger,
    load_adapters,
)
from lorakit.base import BaseMerger
from lorakit.testing import make_adapters

TESTS = Path(__file__).resolve().parent
REAL = ("icd10", "langid", "wn_noun", "wn_pos", "deb_section")  # rank 8 each
MODULES = ("encoder.layer.0.attention.self.query", "encoder.layer.3.attention.output.dense")
IN_EVERY_SPACE = ("ties", "ties official", "dare", "della", "sce")  # the others in 'delta' alone


class Row(NamedTuple):
    """What a merger was compared with, and its largest relative difference on a set of adapters."""

    merger: str
    source: str
    difference: float


def random_set() -> AdapterSet:
    """Three random adapters of one rank."""
    return AdapterSet(
        make_adapters(ranks=(8, 8, 8), d_in=30, d_out=40, n_modules=2, dtype=torch.float64, random_state=0)
    )


def real_set(modules: Sequence[str] = MODULES) -> AdapterSet:
    """Two modules of five trained adapters."""
    X = load_adapters([TESTS.parent / "examples" / "adapters" / name for name in REAL])
    return AdapterSet(Adapter({m: a[m].to(torch.float64) for m in modules}, name=a.name) for a in X)


def shown(merger: BaseMerger) -> str:
    """Show a merger's parameters, but not the data and the seed that the comparison sets."""
    hidden = {name: None for name in ("random_state", "grams", "fisher") if name in merger.get_params()}
    text = " ".join(str(clone(merger).set_params(**hidden)).split())
    return re.sub(r"(grams|fisher)=None(, )?", "", text)


def difference(merger: BaseMerger, expected: dict[str, Tensor]) -> float:
    """Largest norm of a difference over the norm of what was expected, over the modules."""
    return max(float((merger.merged_[m].delta() - w).norm() / w.norm()) for m, w in expected.items())


def with_formulas(X: AdapterSet) -> Iterator[Row]:
    """Every method beside its published formula."""
    weights = np.ones(len(X))
    for source, merger, fitted, expected in (*on_factors(X), *over_the_model(X)):
        yield Row(shown(merger), source, difference(fitted, expected))
    for name, case in ENTRYWISE.items():
        for space in EVERY_SPACE if name in IN_EVERY_SPACE else ("delta",):
            merger = clone(case.merger).set_params(space=space)
            expected = {m: expected_entrywise(case, X, m, space, weights) for m in X.module_names}
            yield Row(shown(merger), f"formula in {space!r}", difference(whole(merger, X).fit(X), expected))
    for merger, rule, options in SPECTRAL:
        expected = {m: expected_spectral(merger, rule, options, X, m, weights) for m in X.module_names}
        yield Row(shown(merger), "formula on dense updates", difference(clone(merger).fit(X), expected))


def with_peft(X: AdapterSet) -> Iterator[Row]:
    """The functions on updates that PEFT has; nothing if it is not installed."""
    try:
        from peft.utils import merge_utils
    except ImportError:
        return
    n = len(X)
    ones, shares = torch.ones(n, dtype=torch.float64), torch.full((n,), 1 / n, dtype=torch.float64)
    dense = {m: [f.delta() for f in X.factors(m)] for m in X.module_names}
    cases: list[tuple[str, BaseMerger, Callable[[list[Tensor]], Tensor]]] = [
        ("ties", TiesMerger(), lambda w: merge_utils.ties(w, ones, 0.2)),
        ("ties, 'frequency'", TiesMerger(vote="frequency"), lambda w: merge_utils.ties(w, ones, 0.2, "frequency")),
        ("magnitude_prune", MagnitudeMerger(), lambda w: merge_utils.magnitude_prune(w, shares, 0.5)),
        ("dare_linear", DareMerger(random_state=0), lambda w: merge_utils.dare_linear(w, shares, 0.5)),
        ("dare_ties", DareMerger(sign_election=True, random_state=0), lambda w: merge_utils.dare_ties(w, ones, 0.5)),
    ]
    for name, merger, function in cases:
        expected = {}
        for module, updates in dense.items():
            draws = draws_of(merger, X, module, "delta") if isinstance(merger, DareMerger) else []
            with drawing(draws):
                expected[module] = function(updates)
        yield Row(shown(merger), f"PEFT's {name}", difference(whole(merger, X).fit(X), expected))


@contextmanager
def drawing(uniforms: Sequence[np.ndarray[Any, Any]]) -> Iterator[None]:
    """Let ``torch.bernoulli`` keep what lorakit keeps: PEFT draws from the one generator that torch has."""
    left = iter(uniforms)

    def bernoulli(probabilities: Tensor) -> Tensor:
        return (torch.from_numpy(next(left)) < probabilities).to(probabilities)

    with mock.patch.object(torch, "bernoulli", bernoulli):
        yield


STORED: dict[str, tuple[BaseMerger, str]] = {
    "svd8_mean": (SVDMerger(k=8), "stored: SVD of the mean"),
    "ties_exact_density0.2": (TiesMerger(), "stored: PEFT's ties"),
    "ties_official_density0.2": (TiesMerger(convention="official"), "stored: TIES, the authors' code"),
    "knots_ties_top20": (TiesMerger(space="knots", convention="official"), "stored: KnOTS, the authors' code"),
    "core_tsv": (TSVMerger(), "stored: Core Space's TSV"),
    "core_iso_c_sum": (IsoMerger(), "stored: Core Space's Iso-C"),
}


def with_stored_outputs() -> Iterator[Row]:
    """Outputs of official code that ship with the tests, on random adapters."""
    found: dict[str, list[float]] = {key: [] for key in STORED}
    for path in sorted((TESTS / "data").glob("*.safetensors")):
        tensors = load_file(path)
        n = sum(key.endswith(".A") for key in tensors)
        X = AdapterSet(
            Adapter({"m": LoraFactors(tensors[f"in.{i}.A"], tensors[f"in.{i}.B"])}, name=str(i)) for i in range(n)
        )
        for key, (merger, _) in STORED.items():
            if key in tensors:  # official code refuses some of these adapters
                fitted = clone(merger).fit(X) if merger.get_params()["k"] else whole(merger, X).fit(X)
                found[key].append(difference(fitted, {"m": tensors[key]}))
    for key, (merger, source) in STORED.items():
        yield Row(shown(merger), source, max(found[key]))


def table(on_random: Sequence[Row], on_real: Sequence[Row]) -> Table:
    """One row for each merger and what it is compared with."""
    real = {(row.merger, row.source): row.difference for row in on_real}
    rows = []
    for row in on_random:
        other = real.get((row.merger, row.source))
        rows.append((f"``{row.merger}``", row.source, f"{row.difference:.0e}", "" if other is None else f"{other:.0e}"))
    return Table("agreement", ("merger", "compared with", "random", "real"), rows)


def main() -> None:
    """Compare, print, and write the page."""
    parser = ArgumentParser(description="How far each method is from the formula that it follows.")
    parser.add_argument("--page", type=Path, help="page of the documentation to write the table into")
    options = parser.parse_args()
    with single_thread():
        random, real = (list(with_formulas(X)) + list(with_peft(X)) for X in (random_set(), real_set()))
        publish([table([*random, *with_stored_outputs()], real)], options.page)


if __name__ == "__main__":
    main()
