"""
Which units go together? LEGO's clusters
========================================

LoRA-LEGO cuts each adapter into minimal semantic units (MSUs), one row of ``A`` with its column of ``B``, and clusters
the units of all adapters. The picture shows where the units lie and which adapters each cluster is made of. Run it
with::

    python examples/plot_clusters.py
"""

# %%
# Merge
# -----
#
# ``align="svd"`` takes the singular directions as units, which do not depend on how an adapter's factors happen to be
# written.

from pathlib import Path

import matplotlib.pyplot as plt

from lorakit import LegoMerger, load_adapters
from lorakit.plotting import ClusterCompositionDisplay, MSUMapDisplay

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
adapters = load_adapters([HERE / "adapters" / name for name in ("icd10", "langid", "wn_noun", "wn_pos")])
merger = LegoMerger(k=8, align="svd", scale="match", random_state=0).fit(adapters)
merger

# %%
# Clusters by adapter
# -------------------
#
# A cluster of one colour is a unit that one adapter alone needs; several colours are a direction that adapters share.

ClusterCompositionDisplay.from_estimator(merger, adapters)
plt.show()

# %%
# The units on a map
# ------------------

MSUMapDisplay.from_estimator(merger, adapters)
plt.show()
