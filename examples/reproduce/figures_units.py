"""
Pictures of units: LEGO's figures 9 and 10, and what its clusters hold
======================================================================

Each function measures, draws one picture and returns the table of what it shows.
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from adapters import load_tasks, permuted
from drawing import COLOURS, DASHES, MARKERS, panels, save, tidy
from evaluation import Evaluator
from figures_norms import MODULE, few, starts
from processes import Processes
from report import Report, Table, mean_spread, progress, seeds
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_mutual_info_score

from lorakit import AdapterSet, AverageMerger, LegoMerger, rank_path
from lorakit.metrics import ClusterComposition, cluster_composition, msu_distances
from lorakit.plotting import ClusterCompositionDisplay, MSUMapDisplay

FIRST_LAYER = "encoder.layer.0."
N_LAYERS = 6
KS = (8, 16, 32)
DOMAINS = {
    "sentiment": ("movie", "amazon", "tweets"),
    "WordNet": ("wn_noun", "wn_pos", "wn_rel", "wn_verb"),
    "news and mail": ("news20", "reuters8", "spam"),
    "software": ("deb_section", "proglang"),
}  # other tasks are alone
DOMAIN_OF = {task: domain for domain, tasks in DOMAINS.items() for task in tasks}
PARTS = ("whole units", "halves in A", "halves in B")
SHUFFLES = 5000


def figure9(options: argparse.Namespace, report: Report) -> Table:
    """Distances between an adapter's units, by layer, and what its merge with a permuted copy loses."""
    tasks = options.tasks
    with Processes(options.jobs) as processes:
        given = [(tasks, seed, options.n_test) for seed in options.seeds]
        lost = np.array([[found[task] for task in tasks] for found in processes.map(losses, given)])  # (seeds, tasks)
    found = [msu_distances(load_tasks(tasks, seed=seed)) for seed in options.seeds]
    layer_of = [next(i for i in range(N_LAYERS) if f".layer.{i}." in module) for module in found[0].modules]
    by_layer = np.array(
        [[d.within[np.equal(layer_of, layer)].mean(axis=0) for layer in range(N_LAYERS)] for d in found]
    )  # (seeds, layers, tasks)
    within = by_layer.mean(axis=1)
    others = ~np.eye(len(tasks), dtype=bool)
    between = np.array([[d.between.mean(axis=0)[i, others[i]].mean() for i in range(len(tasks))] for d in found])
    order = np.argsort(within.mean(axis=0))
    rows = [
        [
            tasks[i],
            mean_spread(within[:, i]),
            mean_spread(between[:, i]) if len(tasks) > 1 else "",
            mean_spread(100 * lost[:, i], digits=1),
        ]
        for i in order
    ]
    figure, (ax,) = panels(1, size=(7.0, 4.2))
    for i in reversed(order):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        ax.plot(
            range(N_LAYERS), by_layer.mean(axis=0)[:, i], linestyle=DASHES[i % len(DASHES)], label=tasks[i], **style
        )
    ax.set_xlabel("layer")
    ax.set_ylabel("mean Euclidean distance of units")
    ax.set_xticks(range(N_LAYERS))
    tidy(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    picture = report.figure("lego_figure9.png")
    save(figure, picture)
    report.numbers["figure 9"] = {"tasks": tasks, "within": within.tolist(), "lost": lost.tolist()}
    caption = (
        "Figure 9, distances of units: mean over the pairs of units of one adapter, and of its units with those of "
        "other adapters, mean over modules; and the points of accuracy that the adapter loses by the average with a "
        f"permuted copy of itself, on {options.n_test} test texts; {seeds(options.seeds)}; the closest units first."
    )
    titles = ["task", "within", "to others", "points lost"]
    note = related(within.mean(axis=0), 100 * lost.mean(axis=0))
    return Table("lego-figure-9", titles, rows, caption, note, picture)


def losses(tasks: Sequence[str], seed: int, n: int) -> dict[str, float]:
    """Accuracy that each adapter loses by the average with a permuted copy, the one of lego_table1.py."""
    test, rng, found = Evaluator("test", n), np.random.RandomState(seed), {}
    for adapter in load_tasks(tasks, seed=seed):
        merged = AverageMerger().fit(AdapterSet([adapter, permuted(adapter, rng)])).merged_
        found[adapter.name] = test.accuracy(adapter, adapter.name) - test.accuracy(merged, adapter.name)
    return found


def related(distances: np.ndarray, lost: np.ndarray) -> str:
    """Say whether adapters with closer units lose less."""
    if len(distances) < 4:
        return ""
    found = spearmanr(distances, lost)
    known = "" if found.pvalue < 0.05 else ", which chance explains as well"
    return (
        f"Rank correlation over {len(distances)} tasks of the distance within an adapter with the points lost: "
        f"{found.statistic:+.2f} (p = {found.pvalue:.2g}){known}. The paper takes close units for the reason of small "
        "losses, which would be a positive correlation."
    )


def figure10(options: argparse.Namespace, report: Report) -> Table:
    """Map of the units of all adapters at a module of the first layer, and whose units are neighbours in that layer."""
    by_start = starts(options, options.tasks)
    figure, axes = panels(len(by_start), size=(4.6, 3.9))
    rows, sentences, numbers = [], [], {}
    for ax, (start, sets) in zip(axes, by_start.items(), strict=True):
        domains = {name: DOMAIN_OF.get(name, name) for name in sets[0].names}
        MSUMapDisplay.from_adapters(sets[0], module=MODULE, tasks=domains, ax=ax)
        ax.set_title(f"{start}: units of {MODULE.removeprefix('encoder.')}", loc="left", fontsize=9)
        if ax is not axes[-1]:
            ax.get_legend().remove()
        for part in PARTS:
            found = [neighbours(X, list(domains.values()), part) for X in sets]
            progress(f"{start}, {part}: {found}")
            columns = [[f[what] for f in found] for what in ("own", "own chance", "domain", "domain chance")]
            ps = [f["p"] for f in found]
            shown = ", ".join(f"{p:.2g}" for p in ps)
            rows.append([start if part == PARTS[0] else "", part, *map(mean_spread, columns), shown])
            numbers[f"{start}, {part}"] = found
            if part == PARTS[0]:
                own, own_chance, domain, chance = (float(np.mean(c)) for c in columns)
                sentences.append(
                    f"{start.capitalize()}: the nearest unit is of the same adapter in {own:.0%} of cases (chance "
                    f"{own_chance:.0%})"
                )
                if not np.isnan(domain):
                    sentences[-1] += (
                        f", the nearest of another adapter is of the same domain in {domain:.0%} (chance {chance:.0%}, "
                        f"p below 0.05 in {sum(p < 0.05 for p in ps)} of {len(ps)} seeds)"
                    )
    picture = report.figure("lego_figure10.png")
    save(figure, picture)
    report.numbers["figure 10"] = numbers
    caption = (
        f"Figure 10, units by domain: {len(options.tasks)} adapters, modules of the first layer: share of units whose "
        "nearest unit is of the same adapter, and whose nearest unit of another adapter is of the same domain (only "
        "adapters that are not alone in theirs), with what chance would have, and the share of random assignments of "
        f"domains to adapters that do as well; {seeds(options.seeds)}."
    )
    titles = ["adapters", "of", "own adapter", "chance", "same domain", "chance ", "p"]
    return Table("lego-figure-10", titles, rows, caption, ". ".join(sentences) + ".", picture)


def neighbours(adapters: AdapterSet, domains: Sequence[str], part: str) -> dict[str, float]:
    """Whose the nearest units are, over the modules of the first layer."""
    n = len(adapters)
    foreign = np.zeros((n, n))  # how often the nearest unit of another adapter is of that one
    own, own_chance = [], []
    for module in adapters.module_names:
        if not module.startswith(FIRST_LAYER):
            continue
        factors = [adapter[module] for adapter in adapters]
        halves = torch.cat([f.A for f in factors]), torch.cat([f.B.T for f in factors])
        units = {PARTS[0]: torch.cat(halves, dim=1), PARTS[1]: halves[0], PARTS[2]: halves[1]}[part].double()
        owners = np.repeat(np.arange(n), [f.rank for f in factors])
        distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(np.inf)
        same = torch.from_numpy(owners[:, None] == owners)
        own.append((owners[distances.argmin(dim=1)] == owners).mean())
        own_chance.append(((same.sum(dim=1) - 1) / (len(owners) - 1)).mean().item())
        if n > 1:
            nearest = distances.masked_fill(same, np.inf).argmin(dim=1)
            np.add.at(foreign, (owners, owners[nearest]), 1)
    found = {"own": float(np.mean(own)), "own chance": float(np.mean(own_chance))}
    rng, codes = np.random.RandomState(0), np.unique(domains, return_inverse=True)[1]
    observed = within_domains(foreign, codes)
    shuffled = np.array([within_domains(foreign, rng.permutation(codes)) for _ in range(SHUFFLES)])
    p = (1 + (shuffled >= observed - 1e-12).sum()) / (1 + SHUFFLES)
    return found | {"domain": observed, "domain chance": float(shuffled.mean()), "p": float(p)}


def within_domains(counts: np.ndarray, codes: np.ndarray) -> float:
    """Share of the counts between adapters of one domain, of the rows of adapters not alone in theirs; NaN of none."""
    same = codes[:, None] == codes
    rows = same.sum(axis=1) > 1
    return float((counts * same)[rows].sum() / counts[rows].sum()) if rows.any() else float("nan")


def composition(options: argparse.Namespace, report: Report) -> Table:
    """What the clusters hold: units of one task or of many."""
    by_start = starts(options, few(options))
    rows, sentences, numbers = [], [], {}
    figure, axes = panels(len(by_start), size=(6.0, 3.6), share_y=True)
    for ax, (start, sets) in zip(axes, by_start.items(), strict=True):
        ks = [k for k in KS if k < sum(max(adapter.ranks) for adapter in sets[0])]
        paths = [rank_path(LegoMerger(random_state=0), X, ks) for X in sets]
        for k in ks:
            found = [cluster_composition(path[k], X) for path, X in zip(paths, sets, strict=True)]
            values = {
                "in mixed clusters": [_mean(c.mixed) for c in found],
                "of their cluster's task": [_mean(c.purity) for c in found],
                "information on the task": [_mean(c.adjusted_mutual_information) for c in found],
                "on the row": [row_information(path[k], X) for path, X in zip(paths, sets, strict=True)],
            }
            rows.append([start if k == ks[0] else "", str(k), *map(mean_spread, values.values())])
            numbers[f"{start}, k = {k}"] = values
            if k == ks[min(1, len(ks) - 1)]:
                _draw(ax, start, k, found[0])
                sentences.append(
                    f"{start.capitalize()}, k = {k}: {np.mean(values['in mixed clusters']):.0%} of the units share "
                    f"a cluster with units of other tasks, and the information of the clusters on the row numbers is "
                    f"{np.mean(values['on the row']):.2f}."
                )
        if ax is not axes[-1]:
            ax.get_legend().remove()
    picture = report.figure("lego_composition.png")
    save(figure, picture)
    report.numbers["composition"] = numbers
    caption = (
        f"Clusters by task: units of {len(few(options))} adapters in k clusters, means over modules: share of the "
        "units in clusters of several tasks, share that is of the most frequent task of its cluster, and the adjusted "
        "mutual information of the clusters with the tasks and with the units' row numbers (0: no more than by "
        f"chance, 1: the same partition); {seeds(options.seeds)}."
    )
    titles = ["adapters", "k", *next(iter(numbers.values()))]
    return Table("lego-composition", titles, rows, caption, " ".join(sentences), picture)


def row_information(merger: LegoMerger, adapters: AdapterSet) -> float:
    """Adjusted mutual information of clusters with the units' row numbers, mean over modules."""
    found = []
    for module, labels in merger.labels_.items():
        numbers = np.concatenate([np.arange(adapter[module].rank) for adapter in adapters])
        found.append(adjusted_mutual_info_score(numbers, labels))
    return float(np.mean(found))


def _draw(ax: object, start: str, k: int, found: ClusterComposition) -> None:
    display = ClusterCompositionDisplay(found).plot(ax, module=MODULE)
    display.ax_.set_title(f"{start}, k = {k}: {MODULE.removeprefix('encoder.')}", loc="left", fontsize=9)


def _mean(by_module: Mapping[str, float]) -> float:
    return float(np.mean(list(by_module.values())))
