#!/usr/bin/env python
"""Compare what every merge method gives on the example adapters with what it gave before a change.

    python tests/benchmarks/same_results.py FOLDER            # in the checkout before the change: stores the results
    python tests/benchmarks/same_results.py FOLDER --against  # after it: compares with what is stored

Fails where an update differs by more than 1e-6 of its norm and is farther from the same merge in float64 than before,
or an entry of the closing table of ``lorakit merge`` differs by more than 1e-6 (1e-4 in bfloat16, where it holds an
estimate of what rounding adds). Each method runs at full rank and cut to rank 8, with ``scale='match'``, and rules with
spaces in each of them. The adapters are some of ``examples/adapters``, in float32 and in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import single_thread
from sklearn.base import clone

from lorakit import AdapterSet, load_adapter, load_adapters, save_adapter
from lorakit.discovery import all_estimators, all_methods
from lorakit.metrics import compare_to_each, relative_error

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters"
EQUAL, ANY = ("langid", "icd10", "wn_pos"), ("langid_r16", "icd10", "wn_noun_r4", "deb_section")
TOLERANCE = 1e-6
TABLE = {torch.float32: 1e-6, torch.bfloat16: 1e-4}


def cases() -> Iterator[tuple[str, Any, tuple[str, ...], torch.dtype]]:
    """Name, merger, adapters and dtype of everything that is compared."""
    for info in all_methods("merger"):
        if info.needs_data:
            continue
        cls = all_estimators("merger")[info.method]
        fixed = {"random_state": 0} if "random_state" in info.parameters else {}
        for space in info.spaces or (None,):
            options = fixed | ({"space": space} if space else {})
            equal = cls(**options).needs_equal_ranks
            for k in (None, 8):
                for dtype in (torch.float32, torch.bfloat16) if k else (torch.float32,):
                    name = "-".join(filter(None, (info.method, space, f"k{k}", str(dtype).removeprefix("torch."))))
                    yield name, cls(k=k, scale="match", **options), EQUAL if equal else ANY, dtype


def merged_and_compared(merger: Any, X: AdapterSet) -> tuple[Any, list[Any]]:
    """Merge and compare, as the command line does in the checkout that this runs in."""
    if hasattr(merger, "fit_compare"):
        compared = merger.fit_compare(X)
        return merger.merged_, compared
    merged = merger.fit(X).merged_
    return merged, compare_to_each(merged, X)


def main() -> int:
    """Store, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", action="store_true")
    parser.add_argument("--only", default="", help="a part of the names of the cases")
    options = parser.parse_args()
    worst, failed = 0.0, []
    for name, merger, names, dtype in cases():
        if options.only not in name:
            continue
        X = AdapterSet(a.astype(dtype) for a in load_adapters([ADAPTERS / n for n in names]))
        with single_thread():
            merged, compared = merged_and_compared(merger, X)
        table = [[c.cosine, c.relative_error, c.norm_ratio] for c in compared]
        path = options.folder / name
        if not options.against:
            save_adapter(merged, path, dtype=torch.float32, overwrite=True)
            (options.folder / f"{name}.json").write_text(json.dumps(table))
            continue
        before = json.loads((options.folder / f"{name}.json").read_text())
        update = relative_error(merged.astype(torch.float32), load_adapter(path))
        entries = max(abs(a - b) for old, new in zip(before, table, strict=True) for a, b in zip(old, new, strict=True))
        note = ""
        if update > TOLERANCE:
            exact = clone(merger).fit(AdapterSet(a.astype(torch.float64) for a in X)).merged_
            new, old = (relative_error(x.astype(torch.float64), exact) for x in (merged, load_adapter(path)))
            note = f", from float64 {new:.2e}, before {old:.2e}"
        fine = (update <= TOLERANCE or new <= 1.05 * old) and entries <= TABLE[dtype]
        worst = max(worst, update)
        if not fine:
            failed.append(name)
        print(f"{name}: update {update:.1e}, table {entries:.1e}{note}{'' if fine else '  DIFFERS'}")
    if options.against:
        print(f"largest difference of an update: {worst:.1e}; {len(failed)} of the cases differ: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
