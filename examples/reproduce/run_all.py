"""
Run every experiment
====================

::

    python examples/reproduce/run_all.py                              # hours the first time; it can be stopped
    python examples/reproduce/run_all.py --quick                      # few tasks and texts
    python examples/reproduce/run_all.py --pages docs/results         # also write docs/results/NAME.rst

Texts are fetched, adapters trained and merges measured as they are needed, and kept: a run that was stopped goes on
where it was. An experiment is any script of this folder whose name begins with one of PREFIXES; other options are
passed on to each.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFIXES = ("lego_", "svd_", "beyond_", "leaderboard", "distill", "language_model", "language_papers")


def main() -> int:
    """Train, run all, say how each went."""
    options, others = parse_options()
    scripts = [script for script in experiments() if not options.only or script.stem in options.only]
    if unknown := sorted(set(options.only) - {script.stem for script in scripts}):
        raise SystemExit(f"there are no experiments {unknown}; there are {[s.stem for s in experiments()]}")
    train = [HERE / "train_all.py", *(["--quick"] if "--quick" in others else [])]
    ended = {} if options.no_training else {"train_all": run(train)}
    for script in scripts:
        page = ["--page", options.pages / f"{script.stem}.rst"] if options.pages else []
        ended[script.stem] = run([script, *others, *page])
    print("\n" + "\n".join(f"{name:24}{how}" for name, (_, how) in ended.items()))
    return int(any(code for code, _ in ended.values()))


def experiments() -> list[Path]:
    """The scripts of all experiments."""
    return sorted(path for path in HERE.glob("*.py") if path.stem.startswith(PREFIXES))


def run(command: list[object]) -> tuple[int, str]:
    """Run a script; its exit status, and how it went in words. One that fails does not stop the others."""
    words = [str(word) for word in command]
    print(f"\n$ python {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *words], check=False).returncode
    minutes = (time.perf_counter() - start) / 60
    return code, f"{'done' if code == 0 else f'FAILED with status {code}'} after {minutes:.1f} minutes"


def parse_options() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: the options of this script, and those to pass on."""
    parser = argparse.ArgumentParser(description="Run every experiment; other options are passed on to each.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these experiments, such as lego_table1")
    parser.add_argument("--pages", type=Path, metavar="FOLDER", help="write pages of the documentation there")
    parser.add_argument("--no-training", action="store_true", help="train adapters only as they are needed")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
