"""
How low can the rank of one adapter go?
=======================================

An adapter of rank 16 is pruned to every rank below, in two ways: by singular values, which is the nearest adapter of
that rank, and by clustering its minimal semantic units, as LEGO does. Run it with::

    python examples/plot_pruning_curve.py
"""

# %%
# Prune
# -----
#
# A pruner takes a set of adapters and returns a set.

from pathlib import Path

import matplotlib.pyplot as plt

from lorakit import LegoPruner, SVDPruner, load_adapter
from lorakit.metrics import relative_error

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
wide = load_adapter(HERE / "adapters" / "langid_r16")
ranks = [1, 2, 4, 6, 8, 10, 12, 14]
errors = {"SVDPruner": [], "LegoPruner": []}
for k in ranks:
    for name, pruner in (("SVDPruner", SVDPruner(k=k)), ("LegoPruner", LegoPruner(k=k, random_state=0))):
        (pruned,) = pruner.fit_transform([wide])
        errors[name].append(relative_error(pruned, wide))

# %%
# What is lost
# ------------
#
# The norm of the difference over the norm of the adapter's update. No adapter of rank k is nearer than
# :class:`~lorakit.SVDPruner`'s. What an error costs in accuracy is measured in :doc:`/results/lego_pruning`.

fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, values in errors.items():
    ax.plot(ranks, values, "o-", label=name)
ax.set_xlabel("rank")
ax.set_ylabel("relative error of the update")
ax.set_ylim(0, 1)
ax.legend(frameon=False)
plt.show()

# %%
# A rank for each module
# ----------------------
#
# Modules differ in how much rank they need. A share of the energy gives each its own; a
# :class:`~lorakit.RankBudget` spreads a mean rank, or the bytes of a file, over all of them.

(by_energy,) = SVDPruner(k=0.9).fit_transform([wide])
sorted({info.rank for info in by_energy.infos.values()})
