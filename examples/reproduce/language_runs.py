"""
Runs of the language model's experiments: what is measured, and what is reported
================================================================================

Options, the order of work and the files of ``language_model.py`` and ``language_papers.py``. Of several seeds each
measurement is made for all before the next one, so that what has been stopped is a table of all seeds, with fewer rows.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation import update_hash
from language_bench import N_TEST, N_VALIDATION, Bench, Units, bench_of
from measured import Measured
from report import kept_options, machine, parse, parser, progress, seeds
from smollm2 import MERGED, SmolLM2, training
from tasks import load_task
from training import metrics_of

Found = Mapping[str, Any]  # measurements of a seed, by name


@dataclass(frozen=True)
class Run:
    """What was found.

    Parameters
    ----------
    by_seed : dict of int to dict
        Measurements of each seed, by name.
    adapters : dict of int to dict
        Of each seed and task how its adapter was trained.
    n_test, n_validation : int
        Texts of each task.
    machine : str
        What it was measured on.
    """

    by_seed: Mapping[int, Found]
    adapters: Mapping[int, Mapping[str, Any]]
    n_test: int
    n_validation: int
    machine: str = ""

    @property
    def found(self) -> list[Found]:
        """The measurements, one a seed."""
        return list(self.by_seed.values())

    @property
    def over(self) -> str:
        """How to call what is averaged over: the seed, if it is one."""
        return f"seed {next(iter(self.by_seed))}" if len(self.by_seed) == 1 else seeds(self.found)


def options_of(description: str, methods: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the options of these experiments; ``methods`` are those that can be asked for."""
    command = parser(description, MERGED)
    command.set_defaults(seeds=[0, 1], n_test=N_TEST, n_validation=N_VALIDATION)
    if methods:
        command.add_argument("--methods", nargs="+", choices=methods, default=list(methods), metavar="METHOD")
    kept_options(command, "measured/")
    return command


def parsed(command: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line."""
    return parse(command, MERGED, quick=MERGED[1:4])


def run(name: str, options: argparse.Namespace, units: Callable[[Bench], Units]) -> Run:
    """Measure what is wanted and not measured yet, or read what was measured."""
    files = {seed: Measured(name, seed) for seed in options.seeds}
    if options.measured:
        return reported(files, options)
    benches = {seed: bench_of(options.tasks, seed, options.n_test, options.n_validation) for seed in options.seeds}
    abouts = {seed: about(bench) for seed, bench in benches.items()}
    for seed, file in files.items():
        if not file.same(abouts[seed]):
            progress(f"seed {seed}: {file.path.name} is of other adapters or texts, and is not used")
    by_seed: dict[int, dict[str, Any]] = {seed: {} for seed in options.seeds}
    planned = {seed: list(units(bench)) for seed, bench in benches.items()}
    for i in range(max(map(len, planned.values()))):
        for seed in (seed for seed in options.seeds if i < len(planned[seed])):
            what, make, settings = planned[seed][i]
            file, bench = files[seed], benches[seed]
            key = bench.path(what, *settings).stem
            kept = file.get(what, key)
            by_seed[seed][what] = bench.once(what, make, *settings) if kept is None else kept
            if options.keep and kept is None:
                file.keep(what, key, by_seed[seed][what], abouts[seed])
    adapters = {seed: about["adapters"] for seed, about in abouts.items()}
    return Run(by_seed, adapters, options.n_test, options.n_validation)


def reported(files: Mapping[int, Measured], options: argparse.Namespace) -> Run:
    """Read what was measured; of seeds that have no file, nothing.

    Raises
    ------
    SystemExit
        If there is no file, or one is of other numbers of texts.
    """
    there = {seed: file for seed, file in files.items() if file.entries}
    if not there:
        names = ", ".join(file.path.name for file in files.values())
        raise SystemExit(f"--measured: there is none of {names} in measured/; run it with --keep first")
    for file in there.values():
        sizes = [file.about["texts"][what] for what in ("test", "validation")]
        if sizes != [options.n_test, options.n_validation]:
            raise SystemExit(
                f"--measured: {file.path.name} is of {sizes[0]} test and {sizes[1]} validation texts a task, not of "
                f"{options.n_test} and {options.n_validation}; leave out --n-test, --n-validation and --quick"
            )
    by_seed = {seed: file.found() for seed, file in there.items()}
    adapters = {seed: file.about["adapters"] for seed, file in there.items()}
    machines = " ".join(dict.fromkeys(file.about["machine"] for file in there.values()))
    return Run(by_seed, adapters, options.n_test, options.n_validation, machines)


def about(bench: Bench) -> dict[str, Any]:
    """What measurements of a bench are of."""
    tasks = [*bench.tasks, *bench.unseen]
    texts = {"test": bench.test.n, "validation": bench.validation.n, "tasks": {t: load_task(t).key for t in tasks}}
    adapters = {}
    for adapter in bench.adapters:
        metrics = metrics_of(training(adapter.name, bench.seed), SmolLM2()) or {}
        wanted = ("training", "labels", "base_validation", "validation", "seconds", "versions")
        adapters[adapter.name] = {"update": update_hash(adapter)} | {what: metrics.get(what) for what in wanted}
    return {"machine": machine(), "texts": texts, "adapters": adapters}
