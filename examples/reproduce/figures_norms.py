"""
Pictures of norms: LEGO's figures 4 and 5
=========================================

Each function measures, draws one picture and returns the table of what it shows.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from adapters import load_tasks
from backbones import MINILM, Batch
from drawing import COLOURS, DASHES, panels, save, tidy
from lego_tables67 import groups_of
from report import Report, Table, mean_spread, seeds
from scipy.stats import kurtosis
from tasks import load_task
from torch import Tensor, nn

from lorakit import AdapterSet, LegoMerger, collect_grams, rank_path
from lorakit.metrics import NormDecay, norm_decay, output_variance_path
from lorakit.plotting import NormDecayDisplay, OutputVarianceDisplay

OWN, SHARED = "own start", "shared start"
K = 16  # twice the adapters' rank, as the paper has it
KS = (8, 16, 24, 32, 40, 48, 56)  # one to seven times the adapters' rank
MODULE = "encoder.layer.0.attention.self.query"
MOST_TOKENS = 4000
ROUND_OFF = 1e-5


def starts(options: argparse.Namespace, tasks: Sequence[str]) -> dict[str, list[AdapterSet]]:
    """Adapters by how they began: of every seed, or with one start for all of the first seed."""
    found = {OWN: [load_tasks(tasks, seed=seed) for seed in options.seeds]}
    if options.shared_start:
        found[SHARED] = [load_tasks(tasks, seed=options.seeds[0], shared_start=True)]
    return found


def few(options: argparse.Namespace) -> list[str]:
    """The seven diverse tasks; the paper's figures 4, 5 and 7 are of seven."""
    return next(iter(groups_of(options.tasks).values()))


def figure4(options: argparse.Namespace, report: Report) -> Table:
    """Norm of a cluster's mean beside the mean norm of its members."""
    tasks = few(options)
    rows, sentences, numbers = [], [], {}
    drawn: list[NormDecay] = []
    for start, sets in starts(options, tasks).items():
        decays = [norm_decay(LegoMerger(k=K, random_state=0).fit(X), X) for X in sets]
        drawn.append(decays[0])
        found = {
            "clusters of one": [float((_all(d.sizes) == 1).mean()) for d in decays],
            "largest": [float(_all(d.sizes).max()) for d in decays],
            "norm left": [float(np.median(_all(d.ratio)[_all(d.sizes) > 1])) for d in decays],
            "at right angles": [float(np.median(_all(d.sizes)[_all(d.sizes) > 1] ** -0.5)) for d in decays],
        }
        rows.append([start, *(mean_spread(values, digits=2) for values in found.values())])
        numbers[start] = found
        longer = sum(int((_all(d.ratio) > 1 + ROUND_OFF).sum()) for d in decays)
        sentences.append(
            f"{start.capitalize()}: {longer} of {sum(len(_all(d.ratio)) for d in decays)} centroids are longer than "
            f"their members are on average; means of several units have {np.mean(found['norm left']):.0%} of that "
            f"length in the median, where units at right angles would have {np.mean(found['at right angles']):.0%}."
        )
    figure, axes = panels(2, size=(5.6, 3.6))
    for ax, kind in zip(axes, ("norms", "ratio"), strict=True):
        NormDecayDisplay(drawn[0]).plot(ax, kind=kind)
    axes[1].set_ylabel("norm of the centroid / of its members")
    picture = report.figure("lego_figure4.png")
    save(figure, picture)
    report.numbers["figure 4"] = numbers
    caption = (
        f"Figure 4, norm decay: the units of {len(tasks)} adapters in {K} clusters, all modules: share of the clusters "
        "that hold one unit, size of the largest; of the others the norm of the mean over the mean norm of the "
        f"members, median, and what it would be at right angles; {seeds(options.seeds)}."
    )
    return Table("lego-figure-4", ["adapters", *numbers[OWN]], rows, caption, " ".join(sentences), picture)


def figure5(options: argparse.Namespace, report: Report) -> Table:
    """Outputs of merges by rank: their histogram at the first layer, and their variance at all modules."""
    tasks = few(options)
    base, batches = MINILM.load(), list(batches_of(tasks, options.n_validation))
    sets = [load_tasks(tasks, seed=seed) for seed in options.seeds]
    ks = [k for k in KS if k <= sum(max(adapter.ranks) for adapter in sets[0])]
    grams, inputs = collect_grams(base, sets[0][0], batches, apply=False), inputs_of(base, MODULE, batches)
    variances: dict[str, list[Any]] = {"without": [], "with": []}
    outputs: list[dict[int, np.ndarray]] = []
    for X in sets:
        for how, scale in (("without", None), ("with", "sqrt")):
            path = rank_path(LegoMerger(output_scale=scale, random_state=0), X, ks)
            variances[how].append(output_variance_path(path, X, grams=grams))
            if how == "without":
                halves = {k: path[k].merged_[MODULE] for k in ks}
                outputs.append({k: (inputs @ f.A.T @ f.B.T).numpy().ravel() for k, f in halves.items()})
    ratios = {how: [np.median(v.ratio, axis=1) for v in found] for how, found in variances.items()}
    figure, axes = panels(2, size=(5.2, 3.8))
    _histograms(axes[0], outputs[0])
    OutputVarianceDisplay({f"{how} output reweighting": found[0] for how, found in variances.items()}).plot(axes[1])
    picture = report.figure("lego_figure5.png")
    save(figure, picture)
    rows = []
    for i, k in enumerate(ks):
        row = [mean_spread([float(seed[i]) for seed in found], digits=2) for found in ratios.values()]
        row.append(mean_spread([float(y[k].std()) for y in outputs]))
        row.append(mean_spread([float(y[k].mean() / y[k].std()) for y in outputs]))
        rows.append([str(k), *row, mean_spread([float(kurtosis(y[k])) for y in outputs], digits=2)])
    report.numbers["figure 5"] = {"ks": ks} | {how: np.array(found).tolist() for how, found in ratios.items()}
    grown = {how: float(np.mean([seed[-1] / seed[0] for seed in found])) for how, found in ratios.items()}
    note = (
        f"From k = {ks[0]} to k = {ks[-1]} the variance grows {grown['without']:.2f} times without output reweighting "
        f"and {grown['with']:.2f} times with it; units that were independent and of one length would have it grow "
        f"{ks[-1] / ks[0]:g} times, and not at all."
    )
    titles = ["k", "without", "with", "deviation", "mean / deviation", "excess kurtosis"]
    caption = (
        f"Figure 5, variance expansion: variance of the outputs of merges of {len(tasks)} adapters over the adapters' "
        "mean variance, median over modules, without and with output reweighting, for the inputs that the modules of "
        f"the base model get from {options.n_validation} validation texts a task; and of the outputs of {MODULE}, "
        "without it, the standard deviation, the mean and the excess kurtosis, which is 0 of a normal distribution; "
        f"{seeds(options.seeds)}."
    )
    return Table("lego-figure-5", titles, rows, caption, note, picture)


def batches_of(tasks: Sequence[str], n: int, size: int = 50) -> Iterator[Batch]:
    """Yield validation texts of each task in batches."""
    for task in tasks:
        texts = [text for text, _ in load_task(task).splits["validation"][:n]]
        for start in range(0, len(texts), size):
            yield MINILM.collate(MINILM.encode(load_task(task), texts[start : start + size]))


@torch.no_grad()
def inputs_of(base: nn.Module, module: str, batches: Sequence[Batch], most: int = MOST_TOKENS) -> Tensor:
    """What a module of the base model gets, padding left out: up to so many tokens, evenly from all, (tokens, d_in)."""
    seen: list[Tensor] = []
    handle = base.get_submodule(module).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for batch in batches:
            base(**batch)
    finally:
        handle.remove()
    tokens = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches, strict=True)])
    return tokens[:: max(1, -(-len(tokens) // most))]


def _all(by_module: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(by_module.values()))


def _histograms(ax: Any, outputs: dict[int, np.ndarray]) -> None:
    ks = list(outputs)
    edges = np.linspace(-4, 4, 121) * float(outputs[ks[-1]].std())
    for i, k in enumerate(dict.fromkeys([*ks[:2], ks[len(ks) // 2], ks[-1]])):
        heights = np.histogram(outputs[k], edges)[0] / len(outputs[k]) / np.diff(edges)
        middles = (edges[1:] + edges[:-1]) / 2
        ax.plot(middles, heights, color=COLOURS[i], linestyle=DASHES[i], label=f"$k$ = {k}")
    ax.set_xlabel(f"output at {MODULE.removeprefix('encoder.')}")
    ax.set_ylabel("density")
    ax.set_title("without output reweighting", loc="left", fontsize=10)
    ax.legend(frameon=False)
    tidy(ax)
