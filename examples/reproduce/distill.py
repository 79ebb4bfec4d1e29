"""
Merging with the base model at hand
===================================

How much of twelve adapters that began apart is kept by a merge whose factors were trained on all their heads
(:class:`lorakit.DistillMerger`), without a text of any task or with a few, beside merges of weights alone and RegMean::

    python examples/reproduce/distill.py                     # the methods at rank 16
    python examples/reproduce/distill.py --parts longer      # longer trainings
    python examples/reproduce/distill.py --parts limits      # ranks, numbers of adapters, mixed ranks
    python examples/reproduce/distill.py --parts starts      # few adapters, from two starts
    python examples/reproduce/distill.py --parts tasks       # what is kept of each task
    python examples/reproduce/distill.py --parts clock --longer default  # seconds by the clock on all cores, anew
    python examples/reproduce/distill.py --parts choice      # kinds and numbers of texts, starts: validation and test
    python examples/reproduce/distill.py --parts agreement   # how well the score without labels chooses

It can be stopped at any time: a merge in training goes on after its last epoch. Nine of the adapters are those of the
tests, the others are trained. Norms are chosen on validation texts; every table is of test texts that nothing was
chosen by. The texts of tasks that merges are trained on come from the tasks' training texts, without labels.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from backbones import MINILM
from bench import FIRST, RECORD, Bench, Judged, averaged
from distill_agreement import agreement
from drawing import panels, save, tidy
from entrants import batches_of, grams_of
from multi_head import Recipe, anew, merge, once
from peft_merges import peft_merge
from recipes import GROUPS, LIMITS, LONGER, MORE, N_TEXTS, RECIPES, STARTS
from report import Report, Table, kept_options, machine, mean_spread, parse, parser, progress, seeds
from tasks import TRAINED, UNSEEN, USUAL

from lorakit import Adapter, RegMeanMerger, RegMeanPlusMerger, SVDMerger, TSVMerger

START = "tsv, match"
BY_TASK = {  # what the table by task calls them
    "more-1.4": "700 English sentences",
    "default": "1400 texts of five kinds",
    "default-x2": "2800 of five kinds",
    "default-own": "1400, and 50 texts a task",
}
# Tasks of which adapters are taken: all that are asked for otherwise
POOLS = {"two": USUAL[:2], "four": USUAL[:4], "alike": USUAL[:4], "sixteen": (*TRAINED, *UNSEEN)}
RANKS = {"mixed": dict.fromkeys(USUAL[0::3], 4) | dict.fromkeys(USUAL[1::3], 16)}  # of the adapters; 8 otherwise
ABOUT = {"alike": "began alike", "mixed": "of ranks 4, 8, 16"}  # of pools: what is unlike the others


def main() -> None:
    """Run the parts that are asked for."""
    command = parser("A merge whose factors are trained on all heads, beside others.")
    command.set_defaults(n_test=100, n_validation=20, seeds=[0])
    parts: dict[str, Callable[[Bench, Report], None]] = {
        "methods": methods,
        "longer": longer,
        "limits": limits,
        "starts": starts,
        "tasks": tasks,
        "clock": clock,
        "choice": choice,
        "agreement": agreement,
    }
    command.add_argument("--parts", nargs="+", choices=parts, default=["methods"], help="what to run")
    command.add_argument("--merges", nargs="+", metavar="MERGE", help="of the others some, such as regmean++")
    command.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES), help="trained merges")
    command.add_argument("--longer", nargs="+", choices=LONGER, default=list(LONGER), help="rows of the part longer")
    command.add_argument("--limits", nargs="+", choices=LIMITS, default=list(LIMITS), help="rows of the part limits")
    command.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="tables of the part choice")
    rows = [name for of_group, _ in GROUPS.values() for name in of_group]
    command.add_argument("--choice", nargs="+", choices=rows, default=rows, help="rows of the part choice")
    command.add_argument("--bfloat16", action="store_true", help="train in bfloat16: for processors that compute in it")
    kept_options(command, f"measured/{RECORD.name}")
    command.add_argument("--first", type=int, default=FIRST, help="test text to judge from (default: %(default)s)")
    command.add_argument("-k", type=int, default=16, help="rank of the methods (default: %(default)s)")
    options = parse(command)
    report = Report("distill", options)
    for part in options.parts:
        parts[part](Bench(options, 0 if part == "agreement" else options.first), report)
    report.publish()


def methods(bench: Bench, report: Report) -> None:
    """All ways to merge at one rank."""
    k = report.options.k
    weights: dict[str, Callable[[], Adapter]] = {
        "svd, match": lambda: SVDMerger(k, scale="match").fit(bench.adapters).merged_,
        START: lambda: TSVMerger(k, scale="match").fit(bench.adapters).merged_,
        "tsv, norm chosen": lambda: bench.chosen(TSVMerger(k).fit(bench.adapters).merged_),
        "PEFT svd, norm chosen": lambda: bench.chosen(peft_merge(bench.adapters, "svd", svd_rank=k)),
        f"regmean, {N_TEXTS} texts a task, norm chosen": lambda: bench.chosen(
            RegMeanMerger(k, grams=grams_of(bench.adapters, N_TEXTS)).fit(bench.adapters).merged_
        ),
        f"regmean++, {N_TEXTS} texts a task, norm chosen": lambda: bench.chosen(
            RegMeanPlusMerger(k, model=MINILM.load(), batches=batches_of(bench.adapters, N_TEXTS))
            .fit(bench.adapters)
            .merged_
        ),
    }
    if report.options.merges:
        weights = {name: made for name, made in weights.items() if name.split(",")[0] in report.options.merges}
    found: dict[str, Judged] = {}
    for name, make in weights.items():
        found[name] = _once(bench, name, k, make)
        progress(f"{name}: {bench.kept(found[name])[0]:.3f}")
    for name in report.options.recipes:
        recipe = replace(RECIPES[name], k=k, seed=report.options.seeds[0])
        found[_label(recipe)] = _trained(bench, recipe)
    report.numbers["methods"] = {name: bench.kept(judged) for name, judged in found.items()}
    reference = _start(bench, k)
    rows = []
    for name, judged in found.items():
        gained = "" if name == START else _signed(bench.difference(judged, reference))
        rows.append([name, _shown(bench.kept(judged)), gained, f"{judged.seconds:.0f}"])
    n = report.options.n_test
    caption = (
        f"{len(bench.tasks)} adapters of rank 8 that began apart, merged into one of rank {k}. Kept: accuracy divided "
        f"by that of the task's own adapter, mean over tasks, {n} test texts each (after the first {bench.first}), "
        "with its standard error over texts; the difference to the start in points, on the same texts. Seconds of one "
        "thread, with the measuring of norms where they are chosen, and with the texts and teachers of merges that are "
        "trained."
    )
    titles = ["merge", "kept", f"against {START}", "seconds"]
    every = not report.options.merges and set(report.options.recipes) == set(RECIPES)
    picture = _picture(found, bench, report) if every else None
    name = "distill-methods" if every else "distill-some"
    report.tables.append(Table(name, titles, rows, caption, picture=picture, machine=bench.machine))


def longer(bench: Bench, report: Report) -> None:
    """More epochs at a higher rate, by the seed of the texts and of the training."""
    start = _start(bench, report.options.k)
    kept = _shown(bench.kept(start))
    rows = [[START, "", "", "", kept if len(report.options.seeds) == 1 else kept[:5], "", ""]]
    for name in report.options.longer:
        recipe = replace(LONGER[name], k=report.options.k)
        found = _of_seeds(bench, recipe)
        values = [bench.kept(judged)[0] for judged in found]
        report.numbers[f"longer, {name}"] = values
        mean = averaged(found)
        about = [_label(recipe), str(recipe.n_texts(len(bench.tasks))), str(recipe.epochs), f"{recipe.learning_rate:g}"]
        kept = _shown(bench.kept(found[0])) if len(values) == 1 else mean_spread(values)
        rows.append([*about, kept, _signed(bench.difference(mean, start)), f"{mean.seconds:.0f}"])
    spread = "± standard error over texts" if len(report.options.seeds) == 1 else seeds(report.options.seeds)
    caption = (
        f"{len(bench.tasks)} adapters in one of rank {report.options.k}, {report.options.n_test} test texts a task "
        f"after the first {bench.first}. Kept, {spread}; points against {START} with their standard error over "
        "texts."
    )
    titles = ["merge", "number of texts", "epochs", "learning rate", "kept", f"against {START}", "seconds"]
    name = "distill-seeds" if len(report.options.seeds) > 1 else "distill-fresh"
    name = "distill-longer" if bench.first == FIRST else name
    report.tables.append(Table(name, titles, rows, caption, machine=bench.machine))


def limits(bench: Bench, report: Report) -> None:
    """Ranks, numbers and kinds of adapters."""
    rows = []
    for name in report.options.limits:
        few, about = _pool(bench, name)
        start, found = _start(few, LIMITS[name].k), _trained(few, LIMITS[name])
        kept = [_shown(few.kept(start)), _shown(few.kept(found)), _signed(few.difference(found, start))]
        rows.append([*about, str(LIMITS[name].k), *kept, f"{found.seconds:.0f}"])
        report.numbers[f"limits, {name}"] = rows[-1]
        bench.machines |= few.machines
    n = report.options.n_test
    caption = (
        "Other ranks, numbers and kinds of adapters: what is kept by tsv with scale='match', and by a merge that was "
        f"trained with the defaults; {n} test texts a task (after the first {bench.first}). Gained: in points with the "
        "standard error over texts."
    )
    titles = ["adapters", "kind", "k", "tsv, match", "trained", "gained", "seconds"]
    report.tables.append(Table("distill-limits", titles, rows, caption, machine=bench.machine))


def starts(bench: Bench, report: Report) -> None:
    """Few adapters, from both starts."""
    rows = []
    for name, recipes in STARTS.items():
        few, about = _pool(bench, name)
        usual, longer = (_trained(few, recipe) for recipe in recipes)
        kept = [_shown(few.kept(found)) for found in (usual, longer)]
        rows.append([*about, str(MORE.k), *kept, _signed(few.difference(longer, usual))])
        bench.machines |= few.machines
    caption = (
        f"Few adapters: what is kept by merges that were trained on {MORE.generic} generic texts, English sentences "
        f"all, and {MORE.pseudo} pseudo-texts an adapter, from tsv at the adapters' norm and at 1.4 times that; "
        f"{report.options.n_test} test texts a task (after the first {bench.first}). Gained: in points with the "
        "standard error over texts."
    )
    titles = ["adapters", "kind", "k", "start: tsv at 1", "start: tsv at 1.4", "gained"]
    report.tables.append(Table("distill-starts", titles, rows, caption, machine=bench.machine))


def tasks(bench: Bench, report: Report) -> None:
    """What is kept of each task."""
    merges = {START: _start(bench, report.options.k)}
    for name, title in BY_TASK.items():
        merges[title] = averaged(_of_seeds(bench, replace(LONGER[name], k=report.options.k)))
    own = bench.own.test
    rows = [
        [
            task,
            f"{own[task].mean():.3f}",
            *(f"{found.test[task].mean() / own[task].mean():.2f}" for found in merges.values()),
        ]
        for task in bench.tasks
    ]
    caption = (
        f"Of {report.options.n_test} test texts a task (after the first {bench.first}): accuracy of the task's own "
        "adapter, and what is kept of it by merges, of which the trained ones are named by their generic texts, all "
        f"beside {MORE.pseudo} pseudo-texts an adapter. Means over {len(report.options.seeds)} seeds."
    )
    report.tables.append(Table("distill-tasks", ["task", "own", *merges], rows, caption, machine=bench.machine))


def clock(bench: Bench, report: Report) -> None:
    """Seconds by the clock from the adapters to the merge, on all cores; nothing is taken from the cache."""
    usual, cores = torch.get_num_threads(), os.cpu_count() or 1
    rows = []
    for name in report.options.longer:
        recipe = replace(LONGER[name], k=report.options.k, bfloat16=report.options.bfloat16)
        torch.set_num_threads(cores)
        merged, seconds = anew(recipe, bench.adapters)
        about = machine()
        torch.set_num_threads(usual)  # what comes after is judged and told as everywhere
        kept = bench.kept(Judged(bench.right(merged), {}, seconds, ""))
        rows.append([_label(recipe), str(recipe.n_texts(len(bench.tasks))), _shown(kept), f"{seconds:.0f}"])
        report.numbers[f"clock, {name}"] = seconds
    numbers = "bfloat16" if report.options.bfloat16 else "float32"
    caption = (
        f"Seconds by the clock on {cores} cores, computed in {numbers}: the model is loaded, texts are made, "
        f"teachers asked and the merge trained. Kept, of {report.options.n_test} test texts a task after the "
        f"first {bench.first}."
    )
    titles = ["merge", "number of texts", "kept", "seconds"]
    report.tables.append(Table(f"distill-clock-{numbers}", titles, rows, caption, machine=about))


def choice(bench: Bench, report: Report) -> None:
    """Kinds and numbers of texts, and starts: what validation texts choose, and what that keeps of test texts."""
    options = report.options
    for group in options.groups:
        recipes, usual = GROUPS[group]
        wanted = {name: recipe for name, recipe in recipes.items() if name in (usual, *options.choice)}
        by_seed = {name: _of_seeds(bench, replace(recipe, k=options.k)) for name, recipe in wanted.items()}
        found = {name: averaged(judged) for name, judged in by_seed.items()}
        rows = []
        for name, judged in found.items():
            cells = [wanted[name].name, str(wanted[name].n_texts(len(bench.tasks)))]
            for split in ("validation", "test"):
                gained = "" if name == usual else _signed(bench.difference(judged, found[usual], split))
                values = [bench.kept(of_seed, split) for of_seed in by_seed[name]]
                cells += [_shown(values[0]) if len(values) == 1 else mean_spread([kept for kept, _ in values]), gained]
                report.numbers[f"choice, {name}, {split}"] = values
            rows.append([*cells, f"{judged.seconds:.0f}"])
        equal = [name for name in found if wanted[name].own == wanted[usual].own]  # texts of tasks cannot be chosen
        best = max(equal, key=lambda name: bench.kept(found[name], "validation")[0])
        caption = (
            f"{len(bench.tasks)} adapters in one of rank {options.k}; {seeds(options.seeds)}. Kept of "
            f"{options.n_validation} validation texts and of {options.n_test} test texts a task (after the first "
            f"{bench.first}); gained: over the first row on the same texts, in points."
        )
        note = (
            "Of those with as many texts of tasks as the first row, validation texts choose: "
            f"{wanted[best].name}. It keeps {_shown(bench.kept(found[best]))} of the test texts, the first row "
            f"{_shown(bench.kept(found[usual]))}."
        )
        titles = ["texts and training", "number of texts", "validation", "gained", "test", "gained", "seconds"]
        name = f"distill-{group}" if len(options.seeds) == 1 else f"distill-{group}-seeds"
        report.tables.append(Table(name, titles, rows, caption, note, machine=bench.machine))


def _pool(bench: Bench, name: str) -> tuple[Bench, list[str]]:
    """Other adapters, and what the tables say of them."""
    few = Bench(bench.options, bench.first, POOLS.get(name), RANKS.get(name), alike=name == "alike")
    return few, [str(len(few.tasks)), ABOUT.get(name, "began apart")]


def _once(bench: Bench, name: str, k: int, make: Callable[[], Adapter]) -> Judged:
    settings = (name, k, bench.options.n_validation)
    return bench.judged(settings, lambda: once(settings, name, bench.adapters, make))


def _start(bench: Bench, k: int) -> Judged:
    return _once(bench, START, k, lambda: TSVMerger(k, scale="match").fit(bench.adapters).merged_)


def _trained(bench: Bench, recipe: Recipe) -> Judged:
    recipe = replace(recipe, bfloat16=bench.options.bfloat16)
    found = bench.judged(recipe.settings, lambda: merge(recipe, bench.adapters))
    kept = f"{bench.kept(found, 'validation')[0]:.3f} of validation texts, {bench.kept(found)[0]:.3f} of test texts"
    progress(f"{recipe.name}, k = {recipe.k}, seed {recipe.seed}: {kept}, {found.seconds:.0f} s")
    return found


def _of_seeds(bench: Bench, recipe: Recipe) -> list[Judged]:
    return [_trained(bench, replace(recipe, seed=seed)) for seed in bench.options.seeds]


def _label(recipe: Recipe) -> str:
    return f"{recipe.name}, {recipe.own} a task" if recipe.own else recipe.name


def _shown(found: tuple[float, float]) -> str:
    return f"{found[0]:.3f} ± {found[1]:.3f}"


def _signed(found: tuple[float, float]) -> str:
    return f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}"


def _picture(found: Mapping[str, Judged], bench: Bench, report: Report) -> Any:
    """Draw what is kept against seconds."""
    figure, (ax,) = panels(1, size=(6.4, 4.0))
    for i, (name, judged) in enumerate(found.items()):
        kept, error = bench.kept(judged)
        fmt = "o" if i < 10 else "s"  # colours come again after ten
        ax.errorbar([max(judged.seconds, 0.1)], [kept], [error], fmt=fmt, label=name)
    ax.set_xscale("log")
    ax.set_xlabel("seconds of one thread")
    ax.set_ylabel("accuracy kept")
    tidy(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    path = report.figure("distill.png")
    save(figure, path)
    return path


if __name__ == "__main__":
    main()
