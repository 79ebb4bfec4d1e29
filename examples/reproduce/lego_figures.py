"""
LEGO, figures 4, 5 and 7 to 10
==============================

::

    python examples/reproduce/lego_figures.py --jobs 2
    python examples/reproduce/lego_figures.py --figure 10      # one or some of 4 5 7 8 9 10 composition

4. *Norm decay*: the mean of a cluster's units is shorter than they are.
5. *Variance expansion*: the outputs of a merge grow with its rank.
7. *Reweighting*: what mending either does to the accuracy, by rank. Added: both, at a norm chosen on validation texts.
8. *Number of tasks*: from two adapters to all, as the paper has them, and each merge at a norm that was chosen.
9. *Distances* between an adapter's units (appendix J), beside what a merge with a permuted copy loses (table 1).
10. *Map* of the units of all adapters (appendix K), with counts of whose the nearest units are: what a map shows is
    partly what t-SNE makes. The paper has 48 adapters of 10 domains, ours are a dozen.

``composition`` is not in the paper: which tasks share clusters. Figure 6 is ``lego_pruning.py``.

Figures 4, 5 and 7 are of seven adapters, as in the paper. Units of adapters that began with the same random values lie
together whatever they were trained on, so figures 4, 10 and the composition show both: adapters that began apart, and,
of the first seed, those that did not (``--no-shared-start`` leaves these out).
"""

import argparse
from collections.abc import Callable

from figures_norms import figure4, figure5
from figures_scores import figure7, figure8
from figures_units import composition, figure9, figure10
from report import Report, Table, parse, parser, progress

FIGURES: dict[str, Callable[[argparse.Namespace, Report], Table]] = {
    "4": figure4,
    "5": figure5,
    "7": figure7,
    "8": figure8,
    "9": figure9,
    "10": figure10,
    "composition": composition,
}


def main() -> None:
    """Make the figures that are asked for."""
    arguments = parser("LEGO's figures 4, 5 and 7 to 10.")
    arguments.add_argument("--figure", nargs="+", choices=FIGURES, help="which (default: all)")
    arguments.add_argument("--no-shared-start", action="store_false", dest="shared_start", help="own starts only")
    options = parse(arguments)
    if options.quick:
        options.shared_start = False
    report = Report("lego_figures", options)
    for name in options.figure or FIGURES:
        progress(f"figure {name}")
        report.tables.append(FIGURES[name](options, report))
    report.publish()


if __name__ == "__main__":
    main()
