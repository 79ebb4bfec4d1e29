"""
How well agreement, which needs no labels, orders merges
========================================================

A part of ``distill.py``.
"""

import numpy as np
from adapters import at_norm
from bench import Bench, Judged
from evaluation import Evaluator
from multi_head import Recipe, agreement_scorer
from report import Report, Table, progress
from scipy.stats import spearmanr

from lorakit import IsoMerger, LegoMerger, SVDMerger, TiesMerger, TSVMerger
from lorakit.base import BaseMerger

CHOSEN_BY = Recipe("", generic=150, pseudo=15)  # texts of the score without labels
LABELLED = 20  # texts to choose by instead
METHODS: dict[str, BaseMerger] = {
    "svd": SVDMerger(),
    "tsv": TSVMerger(),
    "iso": IsoMerger(),
    "ties core": TiesMerger(space="core"),
    "lego": LegoMerger(random_state=0),
}
NORMS = (0.7, 1.0, 1.4, 1.8)
CHOSEN_RANKS = (8, 16)


def agreement(bench: Bench, report: Report) -> None:
    """How well agreement orders merges, and what is lost by choosing with it."""
    scorer = agreement_scorer(CHOSEN_BY, bench.adapters)
    few = Evaluator("validation", LABELLED)
    scores: dict[str, tuple[float, float, float]] = {}  # agreement, accuracy on few labelled texts, kept of test texts
    norms = []
    for name, merger in METHODS.items():
        for k in CHOSEN_RANKS:
            merged = merger.set_params(k=k).fit(bench.adapters).merged_
            found = []
            for target in NORMS:
                at = at_norm(merged, bench.adapters, target)
                kept = bench.kept(Judged(bench.right(at), {}, 0.0, ""))[0]
                found.append((scorer.evaluate(at), few.mean(at, bench.tasks), kept))
                scores[f"{name}, k = {k}, norm {target}"] = found[-1]
            progress(f"{name}, k = {k}: {found}")
            norms.append([name, str(k), *(f"{agreed:.3f} / {kept:.3f}" for agreed, _, kept in found)])
    agreed, labelled, kept = np.array(list(scores.values())).T
    report.numbers["agreement"] = scores
    titles = ["method", "k", *(f"norm {target:g}" for target in NORMS)]
    caption = "Agreement without labels / what is kept on test texts; norms are in mean norms of the adapters."
    report.tables.append(Table("distill-norms", titles, norms, caption))
    rows = []
    for what, score in (("agreement, no labels", agreed), (f"accuracy on {LABELLED} labelled texts a task", labelled)):
        regret = 100 * (kept.max() - kept[score.argmax()])
        rows.append([what, f"{spearmanr(score, kept)[0]:.2f}", list(scores)[score.argmax()], f"{regret:.1f}"])
    n = CHOSEN_BY.generic + CHOSEN_BY.pseudo * len(bench.adapters)
    caption = (
        f"{len(scores)} merges, ordered by a score and by what they keep on test texts: rank correlation, the merge "
        "that the score chooses, and how many points the best merge keeps more. Agreement is on "
        f"{n} generic and pseudo-texts."
    )
    report.tables.append(Table("distill-agreement", ["chosen by", "Spearman", "choice", "regret"], rows, caption))
