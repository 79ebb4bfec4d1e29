"""
The two papers' tables on a language model
==========================================

LEGO's tables 1, 5, 6 and 7 and its pruning, the SVD paper's tables 1, 2 and 3 and its figure 1, on the adapters of
``language_model.py``: of two ranks and on different modules, so that every merge of all is one of mixed ranks. What
the two papers compare on one rank is compared on pairs and on the four adapters of a rank::

    python examples/reproduce/language_papers.py              # half an hour a seed, with the adapters trained
    python examples/reproduce/language_papers.py --measured   # reports what is kept in measured/

A merge is judged as published, and with each module at the adapters' mean norm (``scale="match"``): nothing is chosen
on any text. LEGO's table 3, with tasks left out, is in the main table of ``language_model.py``. What is merged, pruned
and measured is what the scripts of the encoder have, named as there.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from adapters import at_norm, permuted
from language_bench import Bench, K, Units
from language_runs import options_of, parsed, run
from lego_pruning import METHODS as PRUNERS
from lego_pruning import prune
from lego_table3 import merge as merge_of_table3
from lego_table5 import mergeable
from measured import marks
from report import Report
from standings import right_of
from svd_figure1 import lines
from svd_table2 import cut, cut_errors
from tables_papers import tables

from lorakit import AdapterSet, AverageMerger, ConcatMerger, LegoMerger, SVDMerger, TSVMerger
from lorakit.base import BaseMerger
from lorakit.metrics import relative_error

PARTS = (2, 4)  # into which pruning cuts: a half and a quarter of the ranks are left
RANKS = (8, 16, 32)  # of merges of all
NUMBERS = (2, 4, 6, 8)  # of adapters
ORDER = ("wn_pos", "icd10", "adverb", "wn_noun", "wn_rel", "deb_section", "tweets", "adj_noun")  # the ranks in turn
LINES = (("tweets", "wn_pos"), ("wn_pos", "wn_rel"), ("wn_noun", "icd10"), ("icd10", "deb_section"))  # of one rank
ALPHAS = 5


def main() -> None:
    """Measure what is not measured yet, and report."""
    command = options_of("Tables of the two papers on adapters of a language model.")
    command.add_argument(
        "--only", nargs="+", metavar="NAME", help="measurements whose names begin so, such as 'pruned'"
    )
    options = parsed(command)
    found = run("language_papers", options, partial(wanted, options.only))
    numbers = {str(seed): of for seed, of in found.by_seed.items()}
    report = Report("language_papers", options, numbers=numbers)
    report.tables += [replace(table, machine=found.machine) for table in tables(found)]
    report.publish()


def wanted(only: Sequence[str] | None, bench: Bench) -> Units:
    """Yield some of the measurements, and the references, which every table needs."""
    for name, make, settings in units(bench):
        if only is None or name.startswith(("references", *only)):
            yield name, make, settings


def units(bench: Bench) -> Units:
    """Yield each measurement: its name, the function, what it depends on."""
    yield "references", bench.references, ()
    yield "distances", partial(distances, bench), (PARTS, RANKS)
    pairs = [list(names) for names in pairs_of(bench)]
    by_rank = groups(bench.adapters)
    for part in PARTS:
        yield f"pruned, 1/{part}", partial(pruned, bench, part), ()
    for names in pairs:
        yield f"pair, {', '.join(names)}", partial(of_pair, bench, names), (names,)
    yield "all", partial(of_all, bench, RANKS), (RANKS,)
    yield "cut", partial(cut_of_all, bench, RANKS), (RANKS,)
    yield "mixed ranks", partial(mixed, bench), ()
    for name in bench.tasks:
        yield f"permuted, {name}", partial(of_permuted, bench, name), ()
    for what, names in by_rank.items():
        yield f"direct, {what}", partial(direct, bench, names), (names,)
    for names in first_of(bench.tasks):
        yield f"number, {len(names)}", partial(number, bench, names), (names,)
    for pair in LINES:
        if set(pair) <= set(bench.tasks):
            yield f"line, {', '.join(pair)}", partial(line, bench, pair), (ALPHAS,)
    for what, names in by_rank.items():
        yield f"errors, {what}", partial(errors, bench, names), (names,)


def groups(adapters: AdapterSet) -> dict[str, list[str]]:
    """Adapters of one rank."""
    by_rank: dict[str, list[str]] = {}
    for adapter in adapters:
        by_rank.setdefault(f"rank {max(adapter.ranks)}", []).append(adapter.name)
    return {what: names for what, names in by_rank.items() if len(names) > 1}


def pairs_of(bench: Bench) -> list[tuple[str, str]]:
    """Neighbours among the adapters of a rank."""
    return [pair for names in groups(bench.adapters).values() for pair in zip(names[0::2], names[1::2], strict=False)]


def first_of(tasks: Sequence[str]) -> list[list[str]]:
    """The first tasks of ORDER, as many as NUMBERS says."""
    there = [task for task in ORDER if task in tasks]
    return [there[:n] for n in NUMBERS if n <= len(there)]


def of_permuted(bench: Bench, name: str) -> dict[str, Any]:
    """LEGO's table 1: merge an adapter with a copy whose units are in another order."""
    rng = np.random.RandomState([bench.seed, zlib.crc32(name.encode())])
    pair = AdapterSet([bench.adapters[name], permuted(bench.adapters[name], rng)])
    k = max(pair[0].ranks)
    mergers: dict[str, BaseMerger] = {
        "average": AverageMerger(),
        "svd": SVDMerger(k),
        "lego": LegoMerger(k, random_state=0),
    }
    found = {"original": bench.adapters[name]}
    found |= {what: merger.fit(pair).merged_ for what, merger in mergers.items()}
    return {what: marks(right_of(adapter, [name], bench.test)) for what, adapter in found.items()}


def direct(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The SVD paper's table 1: merge adapters of one rank on A and B, and on the updates, cut and whole."""
    adapters = bench.some(names)
    (rank,) = {max(adapter.ranks) for adapter in adapters}
    mergers: dict[str, BaseMerger] = {"direct": AverageMerger(), "cut": SVDMerger(rank), "whole": ConcatMerger()}
    return _flat({what: bench.both(merger.fit(adapters).merged_, adapters, names) for what, merger in mergers.items()})


def pruned(bench: Bench, part: int) -> dict[str, Any]:
    """LEGO's figure 6: leave a part of each adapter's rank, and judge it on its own task."""
    found: dict[str, Any] = {what: {} for what in PRUNERS}
    distances: dict[str, dict[str, float]] = {what: {} for what in PRUNERS}
    for adapter in bench.adapters:
        for what in PRUNERS:
            left = prune(adapter, what, max(1, max(adapter.ranks) // part), bench.seed)
            found[what] |= marks(right_of(left, [adapter.name], bench.test))
            distances[what][adapter.name] = relative_error(left, adapter)
    return found | {"errors": distances}


def distances(bench: Bench) -> dict[str, Any]:
    """Relative errors that need no model: of pruned adapters, of cuts of the exact mean, and of direct merges."""
    pruners = {
        f"1/{part}": {
            what: [relative_error(prune(a, what, max(1, max(a.ranks) // part), bench.seed), a) for a in bench.adapters]
            for what in PRUNERS
        }
        for part in PARTS
    }
    exact = ConcatMerger().fit(bench.adapters).merged_
    found = {"all": {f"cut to {k}": relative_error(cut(exact, k), exact) for k in _possible(bench, RANKS)}}
    for what, names in groups(bench.adapters).items():
        adapters = bench.some(names)
        mean, rank = ConcatMerger().fit(adapters).merged_, max(adapters[0].ranks)
        found[f"{len(names)} of {what}"] = {
            f"cut to {rank}": relative_error(cut(mean, rank), mean),
            f"cut to {2 * rank}": relative_error(cut(mean, 2 * rank), mean),
            "direct merge": relative_error(AverageMerger().fit(adapters).merged_, mean),
        }
    return {"pruned": pruners, "merged": found}


def of_pair(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The SVD paper's tables 2 and 3 on two adapters of a rank: LEGO and SVD at their rank, and nothing cut."""
    adapters = bench.some(names)
    rank = max(adapters[0].ranks)
    merged = {f"SVD, {k}": SVDMerger(k).fit(adapters).merged_ for k in (rank, 2 * rank)}
    merged |= {f"LEGO, {k}": LegoMerger(k, random_state=bench.seed).fit(adapters).merged_ for k in (rank, 2 * rank)}
    found = _flat({what: bench.both(adapter, adapters, names) for what, adapter in merged.items()})
    exact = at_norm(merged[f"SVD, {2 * rank}"], adapters, 1.0)
    kept = {"exact": exact, "cut": cut(exact, rank)}
    return found | {what: marks(right_of(adapter, names, bench.test)) for what, adapter in kept.items()}


def of_all(bench: Bench, ranks: Sequence[int]) -> dict[str, Any]:
    """The SVD paper's table 3 on all adapters."""
    found = {}
    for k in _possible(bench, ranks):
        for what, merger in (("SVD", SVDMerger(k)), ("LEGO", LegoMerger(k, random_state=bench.seed))):
            merged = merger.fit(bench.adapters).merged_
            found[f"{what}, {k}"] = bench.both(merged, bench.adapters, bench.tasks)
    return _flat(found)


def cut_of_all(bench: Bench, ranks: Sequence[int]) -> dict[str, Any]:
    """The SVD paper's table 2 on all adapters: the exact mean at their norm, and cut, at the exact mean's factor."""
    exact = at_norm(ConcatMerger().fit(bench.adapters).merged_, bench.adapters, 1.0)
    kept = {"exact": exact} | {str(k): cut(exact, k) for k in _possible(bench, ranks)}
    found: dict[str, Any] = {what: marks(right_of(merged, bench.tasks, bench.test)) for what, merged in kept.items()}
    return found | {"errors": {what: relative_error(merged, exact) for what, merged in kept.items()}}


def errors(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The SVD paper's equation 7: how far cuts, and the direct merge, are from the exact merge."""
    return {"errors": cut_errors(bench.some(names))}


def mixed(bench: Bench) -> dict[str, Any]:
    """LEGO's table 5: merge all, whose ranks differ, by what does not refuse them; also on the tasks left out."""
    tasks = [*bench.tasks, *bench.unseen]
    able = mergeable(bench.adapters)
    found = {what: bench.both(merge_of_table3(what, bench.adapters), bench.adapters, tasks) for what in able}
    return _flat(found) | {"able": able}


def number(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """LEGO's tables 6 and 7: merge more and more adapters, at rank 16."""
    adapters = bench.some(names)
    merge: dict[str, Callable[[int], BaseMerger]] = {
        "LEGO": partial(LegoMerger, random_state=bench.seed),
        "SVD": SVDMerger,
        "TSV": TSVMerger,
    }
    merged = {what: of(K).fit(adapters).merged_ for what, of in merge.items()}
    return _flat({what: bench.both(adapter, adapters, names) for what, adapter in merged.items()})


def line(bench: Bench, pair: tuple[str, str]) -> dict[str, Any]:
    """The SVD paper's figure 1: the loss between two adapters, through the updates and through A and B."""
    y, x = (bench.adapters[name] for name in pair)
    found = lines(x, y, pair, bench.test, ALPHAS)
    return {space: {"alphas": of.alphas.tolist(), "losses": of.losses.tolist()} for space, of in found.items()}


def _possible(bench: Bench, ranks: Sequence[int]) -> list[int]:
    return [k for k in ranks if k <= sum(max(adapter.ranks) for adapter in bench.adapters)]


def _flat(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{what}, {how}": right for what, of in found.items() for how, right in of.items()}


if __name__ == "__main__":
    main()
