"""The command line, ``lorakit``: one file per command, each of them only the library's verbs in a row.

Only click is imported here. What a command needs beyond it, torch first of all, it imports when it runs.
"""

from __future__ import annotations

import click

from .._version import __version__
from ._errors import Commands, debug_option
from .bake import bake
from .convert import convert
from .diff import diff
from .env import env
from .extract import extract
from .fit import fit
from .inspect import inspect
from .merge import merge
from .methods import methods
from .plot import plot
from .prune import prune
from .replay import replay
from .report import report
from .verify import verify

__all__ = ["main"]


@click.group(
    cls=Commands,
    commands=[merge, prune, inspect, convert, diff, verify, replay, bake, extract, fit, methods, plot, report, env],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  lorakit inspect law/ medicine/ finance/
  lorakit merge law/ medicine/ finance/ -o merged/ -k 16
  lorakit prune merged/ -o small/ -k 4
  lorakit convert merged/ -o merged-half/ --dtype bfloat16
  lorakit diff merged/ merged-half/
  lorakit verify merged/ --sources law/ medicine/ finance/
  lorakit replay merged/
  lorakit report merged/ -o merged.html
  lorakit bake base/ law/:0.7 medicine/:0.5 -o model/
  lorakit extract tuned/ base/ -k 16 -o adapter/

\b
Exit codes:
  0    done; of diff and replay: the same; of verify: yes; of fit: all fit
  1    of diff and replay: different; of verify: no; of fit: one does not
  2    wrong usage, unreadable input or refused output
  3    of diff, verify and replay: cannot tell
  70   a bug in lorakit
  130  interrupted""",
)
@click.version_option(__version__, prog_name="lorakit", message="%(prog)s %(version)s")
@debug_option
def main() -> None:
    """Merge, prune, convert and compare LoRA adapters without their base model; add them to it, take them out of it."""
