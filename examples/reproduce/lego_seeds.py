"""
LEGO's seed: how far it moves the merge, and what that does to accuracy
=======================================================================

k-means has many optima, and the seed decides which of them LEGO finds. Here one set of adapters is merged with twenty
seeds, at k = 16. How far apart are the merges? How much do their inertias differ, which k-means lowers, and how much
their accuracies? Two ways that draw nothing at random are compared with the seeds: k-means that starts from Ward's
clustering (``init="ward"``), and Ward's clustering itself (``clusterer=AgglomerativeClustering()``)::

    python examples/reproduce/lego_seeds.py --adapters tests/reproduce/data/nine

``--adapters`` names a folder that holds one adapter a task, and these tasks are then merged and judged; without it the
adapters are trained as for the other experiments. A second table is of the five adapters of the examples, which were
trained from one common random ``A``, on the texts of the examples. Nothing is chosen on test texts: the first table has
validation texts too, and these decide what lorakit's default is.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from adapters import load_tasks
from evaluation import Evaluator, updated
from minilm import ADAPTERS, TASKS
from minilm import load_base as load_minilm
from minilm import load_task as load_shipped
from processes import Processes
from report import Report, Table, parse, parser, progress
from scipy.stats import spearmanr
from sklearn.cluster import AgglomerativeClustering
from standings import Right, accuracies, difference, normalised, right_of, right_of_own

from lorakit import Adapter, AdapterSet, LegoMerger, load_adapter
from lorakit.metrics import relative_error

K = 16
N_SEEDS = 20
N_TEXTS = 200  # of each task, to test and to decide by
SEEDED, FROM_WARD, WARD = "k-means++", "k-means from Ward", "Ward alone"
UNSEEDED = {FROM_WARD: {"init": "ward"}, WARD: {"clusterer": AgglomerativeClustering()}}

Way = tuple[str, int]  # how the units are clustered, and the seed


def main() -> None:
    """Merge with every seed, measure, report."""
    command = parser("LEGO's seed: how far it moves the merge, and what that does to accuracy.")
    command.set_defaults(n_test=N_TEXTS, n_validation=N_TEXTS)
    command.add_argument("--adapters", type=Path, metavar="FOLDER", help="one adapter a task (default: trained ones)")
    command.add_argument("--n-seeds", type=int, default=N_SEEDS, metavar="N", help="of LEGO (default: %(default)s)")
    options = parse(command)
    if options.quick:
        options.n_seeds = 3
    report = Report("lego_seeds", options)
    options.tasks = tasks_of(options.tasks, options.adapters)
    merged_of(given(options), ways(options.n_seeds)[0])  # adapters are trained, or refused, before processes start
    with Processes(options.jobs) as processes:
        report.tables += [apart(options, processes), shipped(options, processes)]
    report.numbers = {found.name: [list(row) for row in found.rows] for found in report.tables}
    report.publish()


def tasks_of(tasks: Sequence[str], folder: Path | None) -> list[str]:
    """Of these tasks, those that the folder has an adapter of."""
    return [task for task in tasks if folder is None or (folder / task).is_dir()]


def given(options: argparse.Namespace) -> AdapterSet:
    """The adapters of the first table."""
    return adapters_of(tuple(options.tasks), options.adapters, options.seeds[0])


@cache
def adapters_of(tasks: tuple[str, ...], folder: Path | None, seed: int) -> AdapterSet:
    """Read one adapter a task, each called after its task."""
    if folder is None:
        return load_tasks(tasks, seed=seed)
    return AdapterSet(Adapter(dict(load_adapter(folder / task)), name=task) for task in tasks)


def ways(n_seeds: int) -> list[Way]:
    """Every way to cluster the units: with each seed, and the two that have none."""
    return [*((SEEDED, seed) for seed in range(n_seeds)), *((what, 0) for what in UNSEEDED)]


def merged_of(adapters: AdapterSet, way: Way) -> tuple[Adapter, float]:
    """Merge in one way; the merge, and the inertia over the whole model."""
    what, seed = way
    k = min(K, sum(max(adapter.ranks) for adapter in adapters))
    merger = LegoMerger(k=k, random_state=seed, **UNSEEDED.get(what, {})).fit(adapters)
    return merger.merged_, float(sum(merger.inertia_.values()))


def apart(options: argparse.Namespace, processes: Processes) -> Table:
    """Table of adapters that were trained apart."""
    all_ways = ways(options.n_seeds)
    sizes = {"validation": options.n_validation, "test": options.n_test}
    right: dict[str, list[Right]] = {}
    for split, n in sizes.items():
        tasks = [(tuple(options.tasks), options.adapters, options.seeds[0], way, split, n) for way in all_ways]
        right[split] = []
        for way, found in zip(all_ways, processes.map(measure, tasks), strict=True):
            right[split].append(found)
            progress(f"{way[0]}, seed {way[1]}, {split}: {accuracies([found])[0]:.3f}")
    own = {split: right_of_own(given(options), Evaluator(split, n)) for split, n in sizes.items()}
    caption = (
        f"LEGO, k = {K}, of {len(options.tasks)} adapters of rank 8 that were trained apart, with {options.n_seeds} "
        f"seeds and without one: mean accuracy on {options.n_validation} validation and {options.n_test} test texts a "
        "task."
    )
    return table("lego-seeds", caption, given(options), all_ways, right, own)


def measure(tasks: tuple[str, ...], folder: Path | None, seed: int, way: Way, split: str, n: int) -> Right:
    """Which texts of a split a merge gets right."""
    merged, _ = merged_of(adapters_of(tasks, folder, seed), way)
    return right_of(merged, tasks, Evaluator(split, n))


def shipped(options: argparse.Namespace, processes: Processes) -> Table:
    """Table of the examples' adapters, which have a common start, on the examples' texts."""
    names, all_ways = TASKS, ways(options.n_seeds)
    n = min(options.n_test, 200)
    right = []
    for way, found in zip(all_ways, processes.map(measure_shipped, [(way, n) for way in all_ways]), strict=True):
        right.append(found)
        progress(f"examples, {way[0]}, seed {way[1]}: {accuracies([found])[0]:.3f}")
    adapters = adapters_of(names, ADAPTERS, 0)
    own = {adapter.name: right_of_shipped(adapter, [adapter.name], n)[adapter.name] for adapter in adapters}
    caption = (
        f"The same of the {len(names)} adapters of rank 8 of the examples, which began with one common random A, on "
        f"{n} texts a task."
    )
    return table("lego-seeds-examples", caption, adapters, all_ways, {"test": right}, {"test": own})


def measure_shipped(way: Way, n: int) -> Right:
    """Which texts of the examples a merge of their adapters gets right."""
    return right_of_shipped(merged_of(adapters_of(TASKS, ADAPTERS, 0), way)[0], TASKS, n)


def right_of_shipped(adapter: Adapter, tasks: Sequence[str], n: int) -> Right:
    """Which of the first texts of each task of the examples get their true label."""
    base, found = _base(), {}
    items = {name: _task(name, n) for name in tasks}  # embedded by the base model: before the update is in
    with torch.no_grad(), updated(base, adapter) as model:
        for name, (texts, true, head) in items.items():
            found[name] = (head(model, texts).argmax(dim=1) == true).numpy()
    return found


@cache
def _base() -> torch.nn.Module:
    return load_minilm()


@cache
def _task(name: str, n: int) -> tuple[list[str], torch.Tensor, Callable[..., torch.Tensor]]:
    task = load_shipped(name, _base(), n)
    return task.texts, task.y, task.head


def table(
    name: str,
    caption: str,
    adapters: AdapterSet,
    all_ways: Sequence[Way],
    right: Mapping[str, Sequence[Right]],
    own: Mapping[str, Right],
) -> Table:
    """One row a way without a seed, one for all seeds together; how far merges are apart; and what follows."""
    merges, inertias = zip(*(merged_of(adapters, way) for way in all_ways), strict=True)
    groups = {what: [i for i, way in enumerate(all_ways) if way[0] == what] for what in (SEEDED, *UNSEEDED)}
    seeded = groups[SEEDED]
    level = float(np.mean([inertias[i] for i in seeded]))
    rows = []
    for what, members in groups.items():
        pairs = list(combinations(seeded, 2)) if what == SEEDED else [(members[0], i) for i in seeded]
        moved = [relative_error(merges[i], merges[j]) for i, j in pairs]
        cells = [what, _spread([inertias[i] / level for i in members], 4), _spread(moved, 2)]
        for split, found in right.items():
            of_way = [found[i] for i in members]
            kept = normalised(of_way, [own[split]] * len(of_way))
            cells += [_spread(accuracies(of_way), 3), _spread(kept, 3)]
        rows.append(cells)
    titles = ["start", "inertia", "moved"]
    for split in right:
        titles += [f"{split}: accuracy", "kept"]
    (from_ward,), (alone,) = groups[FROM_WARD], groups[WARD]
    note = " ".join(
        [
            f"{FROM_WARD} ends {relative_error(merges[from_ward], merges[alone]):.2f} of the norm away from {WARD}.",
            *(_sentences(split, found, groups, inertias) for split, found in right.items()),
        ]
    )
    return Table(
        name,
        titles,
        rows,
        f"{caption} Mean ± standard deviation over seeds (least to most). Inertia is the sum over the modules, divided "
        "by the seeds' mean; moved is the distance of a merge from those of the other seeds, divided by their norm; "
        "kept is the accuracy divided by that of the task's own adapter, mean over tasks.",
        note,
    )


def _sentences(
    split: str, found: Sequence[Right], groups: Mapping[str, Sequence[int]], inertias: Sequence[float]
) -> str:
    """Say what the seed does to accuracy on one split, and how the ways without a seed stand."""
    seeded = [found[i] for i in groups[SEEDED]]
    scores = accuracies(seeded)
    said = [f"On {split} texts {100 * np.ptp(scores):.1f} points lie between the best seed and the worst."]
    if len(scores) > 2 and np.ptp(scores) > 0:
        rank = spearmanr([inertias[i] for i in groups[SEEDED]], scores).statistic
        said.append(f"The rank correlation of inertia and accuracy over the seeds is {rank:+.2f}.")
    for what in UNSEEDED:
        (only,) = groups[what]
        ahead, error = difference([found[only]] * len(seeded), seeded)
        better = sum(accuracies([found[only]])[0] > score for score in scores)
        said.append(
            f"{what} is {100 * ahead:+.1f} ± {100 * error:.1f} points from the seeds' mean (standard error over "
            f"texts), and ahead of {better} of {len(scores)} seeds."
        )
    return " ".join(said)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean, standard deviation and range; of one value, the value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, spread = np.mean(values), np.std(values, ddof=1)
    return f"{mean:.{digits}f} ± {spread:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
