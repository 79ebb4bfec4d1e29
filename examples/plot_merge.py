"""
Merge adapters, and see what each of them keeps
===============================================

Five real adapters of one sentence encoder, each trained for a task of its own, become one of rank 16 by four methods.
Nothing is trained and the base model is not read. Run it with::

    python examples/plot_merge.py
"""

# %%
# Read
# ----
#
# Only headers are read now. The adapters could have any ranks.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lorakit import LegoMerger, SVDMerger, TiesMerger, TSVMerger, load_adapters
from lorakit.metrics import compare_to_each

# a page of the documentation runs this without a file of its own
HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
NAMES = ["icd10", "wn_noun", "wn_pos", "langid", "deb_section"]
adapters = load_adapters([HERE / "adapters" / name for name in NAMES])
adapters

# %%
# Merge
# -----
#
# ``scale="match"`` gives each merged update the mean norm of the adapters' updates. Without it a mean is shorter than
# any of the adapters, which costs accuracy.

mergers = {
    "tsv": TSVMerger(k=16, scale="match"),
    "svd": SVDMerger(k=16, scale="match"),
    "ties": TiesMerger(k=16, density=0.5, scale="match"),
    "lego": LegoMerger(k=16, scale="match", random_state=0),
}
for merger in mergers.values():
    merger.fit(adapters)
mergers["tsv"].merged_

# %%
# Compare
# -------
#
# The cosine between the merged update and each adapter's, over all modules. Adapters that had nothing in common could
# have one of :math:`1 / \sqrt 5 = 0.45` each. The methods share out differently: what favours one adapter takes from
# the others. How much accuracy is kept is another question, which needs the model: see ``quickstart.py``.

cosines = {name: [c.cosine for c in compare_to_each(merger.merged_, adapters)] for name, merger in mergers.items()}

fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
width = 0.8 / len(cosines)
for i, (name, values) in enumerate(cosines.items()):
    ax.bar(np.arange(len(NAMES)) + i * width, values, width, label=name)
ax.axhline(len(NAMES) ** -0.5, color="grey", ls=":", lw=1)
ax.set_xticks(np.arange(len(NAMES)) + 0.4 - width / 2, NAMES)
ax.set_ylabel("cosine with the adapter")
ax.set_ylim(0, 1)
ax.legend(ncols=4, frameon=False)
plt.show()

# %%
# Save
# ----
#
# ``save_adapter(mergers["tsv"].merged_, "merged/")`` writes a directory that PEFT loads.
