"""
A language model: which merges hold on Llama's architecture
===========================================================

Eight adapters of SmolLM2-135M-Instruct, of ranks 8 and 16 and on different modules, two of them of tasks whose answers
are generated, and two tasks without an adapter; every seed has adapters of its own::

    python examples/reproduce/smollm2.py --seeds 0 1         # trains the adapters, 25 minutes a seed
    python examples/reproduce/language_model.py              # measures, an hour a seed
    python examples/reproduce/language_model.py --measured   # reports what is kept in measured/

One measurement is a method at a rank. What it found is kept as JSON (``language_model/`` in the cache), so that a run
that was stopped goes on where it was, and with ``--keep`` in a file beside this script too. At rank 16 a merge is
judged as published, with each module at the adapters' mean norm (``scale="match"``), and at the norm that validation
texts choose; at the other ranks only the last. Some are then judged on other texts. Methods of the spaces 'delta' and
'knots', which hold a matrix of the size of the base weight, are left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from adapters import mean_norm, norm
from entrants import WHOLE, Entrant, data_free
from language_bench import FRESH, Bench, K, Units, matched
from language_runs import options_of, parsed, run
from measured import marks
from peft_merges import peft_merge
from prompts import TRAINED, PromptRecipe, trained_merge
from report import Report
from standings import right_of, right_of_own
from tables_language import tables

from lorakit.metrics import cosine_similarity

CHOSEN = "chosen"
PLAN: tuple[tuple[str, int, str], ...] = (  # methods, ranks and what is measured, in the order of measuring
    *((name, K, "untuned") for name in ("tsv", "svd", "lego", "iso", "ctm", "PEFT ties_svd", "distilled")),
    *((name, K, CHOSEN) for name in ("tsv", "svd", "lego", "iso", "ctm", "PEFT ties_svd")),
    ("distilled from 1", K, "untuned"),
    (FINAL := "final", K, ""),
    *((name, k, CHOSEN) for k in (8, WHOLE) for name in ("tsv", "svd")),
    *((name, K, "untuned") for name in ("ties core", "lego svd", "ctm iso", "PEFT dare_linear_svd")),
    *((name, K, "untuned") for name in ("sce core", "breadcrumbs core", "magnitude core", "svc", "wudi", "iso cts")),
    *((name, K, "untuned") for name in ("dare core", "della core", "PEFT magnitude_prune_svd", "PEFT dare_ties_svd")),
    *((name, k, CHOSEN) for k in (32, 8) for name in ("tsv", "svd", "lego")),
    *(("iso", k, CHOSEN) for k in (WHOLE, 8, 32)),
    *((name, K, CHOSEN) for name in ("ties core", "lego svd", "ctm iso", "PEFT dare_linear_svd")),
)
METHODS = tuple(dict.fromkeys(name for name, _, _ in PLAN if name != FINAL))
UNEQUAL = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # PEFT's that work on A and B
FINALISTS = ("tsv", "svd", "distilled", "lego", "iso", "PEFT ties_svd")


def main() -> None:
    """Measure what is wanted and not measured yet, and report."""
    options = parsed(options_of("Merges of adapters of a language model.", METHODS))
    found = run("language_model", options, partial(units, methods=options.methods))
    numbers = {str(seed): of for seed, of in found.by_seed.items()}
    report = Report("language_model", options, numbers=numbers)
    report.tables += [replace(table, machine=found.machine) for table in tables(found)]
    report.publish()


def units(bench: Bench, methods: Iterable[str]) -> Units:
    """Yield each measurement: its name, the function, what it depends on; the most wanted first."""
    entrants = {entrant.name: replace(entrant, backbone=bench.backbone) for entrant in data_free()}
    yield "references", bench.references, ()
    largest = sum(max(adapter.ranks) for adapter in bench.adapters)
    for name, k, how in dict.fromkeys(PLAN):
        if name == FINAL:
            yield from finals(bench, entrants, methods)
            yield "PEFT alike", partial(peft_alike, bench), ()
        elif name not in methods or k > largest:
            continue
        elif name in TRAINED:
            yield name, partial(distilled, bench, TRAINED[name]), (repr(TRAINED[name]),)
        else:
            entrant = entrants[name]
            settings = (repr(entrant.merger), entrant.peft)
            make = bench.chosen if how == CHOSEN else bench.untuned
            yield f"{name}, {k}, {how}", partial(make, entrant, k), settings


def finals(bench: Bench, entrants: Mapping[str, Entrant], methods: Iterable[str]) -> Units:
    """Yield some methods on texts that nobody has looked at."""
    yield "final, own adapters", partial(own_final, bench), (FRESH,)
    for name in (name for name in FINALISTS if name in methods):
        entrant = entrants.get(name)
        settings = (FRESH, repr(entrant.merger), entrant.peft) if entrant else (FRESH, repr(TRAINED["distilled"]))
        yield f"final, {name}", partial(final, bench, entrant, TRAINED["distilled"]), settings


def distilled(bench: Bench, recipe: PromptRecipe) -> dict[str, Any]:
    """Train a merge on all heads; its norm is what training makes it."""
    merged, about = trained_merge(recipe, bench.adapters, bench.backbone)
    right = marks(right_of(merged, [*bench.tasks, *bench.unseen], bench.test))
    return {"rank": max(merged.ranks), "norm": norm(merged) / mean_norm(bench.adapters), "matched": right} | about


def final(bench: Bench, entrant: Entrant | None, recipe: PromptRecipe) -> dict[str, Any]:
    """Judge a merge at rank 16, matched, on other test texts; no entrant stands for the merge that is trained."""
    if entrant is None:
        merged = trained_merge(recipe, bench.adapters, bench.backbone)[0]
    else:
        merged = matched(bench.merge(entrant, K)[0], bench.adapters)
    return {"matched": marks(right_of(merged, bench.tasks, bench.fresh, bench.test.n))}


def own_final(bench: Bench) -> dict[str, Any]:
    """Judge the tasks' own adapters on these texts."""
    return {"own": marks(right_of_own(bench.adapters, bench.fresh, bench.test.n))}


def peft_alike(bench: Bench) -> dict[str, Any]:
    """Which of PEFT's merges are the mean, and which refuse these adapters, with what they say."""
    entrants = {entrant.name: entrant for entrant in data_free()}
    mean = entrants["svd"].merge(bench.adapters, [WHOLE])[WHOLE]
    cat = peft_merge(bench.adapters, "cat", backbone=bench.backbone)
    refused = {}
    for kind in UNEQUAL:
        options = {} if kind == "linear" else {"density": 0.5}
        try:
            peft_merge(bench.adapters, kind, backbone=bench.backbone, **options)
        except ValueError as error:
            refused[kind] = str(error)
    return {"cosine": float(cosine_similarity(cat, mean)), "refused": refused}


if __name__ == "__main__":
    main()
