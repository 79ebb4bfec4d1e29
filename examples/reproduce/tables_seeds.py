"""
Seeds beside one another, of which one has means alone
======================================================

The first run of seed 0 kept no marks of texts, only the means in its tables
(``measured/language_model-means-seed0.json``). They stand beside the seeds that have marks, until it is measured again.
"""

from pathlib import Path
from typing import Any

import measured
from cache import read_json
from language_runs import Run
from measured import right_in
from report import Table, mean_spread
from standings import accuracies
from tables_language import FIRST, compared, having, joined, points

EARLIER = 0  # the seed of that run


def seeds_table(run: Run, folder: Path | None = None) -> Table:
    """One row a method at rank 16 that both have: the mean accuracy in each seed, and the spread over them."""
    titles = ["method"]
    means = read_json((folder or measured.FOLDER) / f"language_model-means-seed{EARLIER}.json")
    if means is None or EARLIER in run.by_seed or not run.by_seed:
        return Table("language-model-seeds", titles, [])
    found = {seed: joined(of) for seed, of in run.by_seed.items()}
    titles += [f"{what}, seed {seed}" for what in ("published", "match") for seed in (EARLIER, *found)]
    titles += ["match, both", *(f"points, seed {seed}" for seed in (EARLIER, *found))]
    rows = [row for name, of in means["methods"].items() if (row := _row(name, of, found))]
    texts = means["about"]["texts"]
    caption = (
        f"Merges at rank 16 in each seed of adapters, mean accuracy on {texts['test']} test texts of each task, as "
        "published and with each module at the adapters' mean norm ('match'), the mean and standard deviation of "
        f"'match' over the seeds, and points against {FIRST} with the standard error over texts. Of seed {EARLIER} "
        "there are the means of an earlier run, of which texts were not kept."
    )
    return Table("language-model-seeds", titles, rows, caption)


def _row(name: str, earlier: dict[str, Any], found: dict[int, dict[str, Any]]) -> list[str]:
    """Cells of a method; none if a seed lacks it."""
    key = {"base model": "references", "own adapters": "references", "distilled": name}.get(name, f"{name}, 16")
    there = having(list(found.values()), key)
    if len(there) < len(found):
        return []
    of_seeds = [_marks(of, name, key) for of in there]
    if not all("matched" in of for of in of_seeds):
        return []
    tasks = list(there[0]["references"]["own"])
    values = {
        what: [accuracies([right_in(of[what], tasks)])[0] for of in of_seeds if what in of] for what in of_seeds[0]
    }
    cells = [name]
    for what in ("published", "matched"):
        shown = [f"{value:.3f}" for value in values.get(what, [])] or [""] * len(there)
        cells += [f"{earlier[what]:.3f}" if what in earlier else "", *shown]
    cells.append(mean_spread([earlier["matched"], *values["matched"]]) if name != "base model" else "")
    first = f"{FIRST}, 16"
    ahead = [""] * len(there)
    if key not in ("references", first):
        ahead = [points(*compared([of], key, first, "matched", tasks)) if first in of else "" for of in there]
    return [*cells, earlier.get("points", ""), *ahead]


def _marks(found: dict[str, Any], name: str, key: str) -> dict[str, dict[str, str]]:
    if key == "references":
        return {"matched": found[key]["base" if name == "base model" else "own"]}
    return {what: found[key][what] for what in ("published", "matched") if what in found[key]}
