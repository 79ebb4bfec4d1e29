"""
Are these adapters alike?
=========================

Before a merge: the cosines between the updates of eight adapters, and how much rank their mean needs. Run it with::

    python examples/plot_similarity.py
"""

# %%
# Cosines
# -------
#
# Two adapters for the same task have something in common, also at different ranks: ``langid`` and ``langid_r16``,
# ``wn_noun`` and ``wn_noun_r4``. The others have nearly nothing, and a merge must hold them side by side.

from pathlib import Path

import matplotlib.pyplot as plt

from lorakit import load_adapters
from lorakit.plotting import AdapterSimilarityDisplay, SingularValuesDisplay

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
folders = sorted(path.parent for path in (HERE / "adapters").glob("*/adapter_config.json"))
adapters = load_adapters(folders)
AdapterSimilarityDisplay.from_adapters(adapters)
plt.show()

# %%
# Singular values
# ---------------
#
# The mean of adapters that have little in common needs nearly the sum of their ranks. Where the line of the mean falls
# late, a low rank cuts much.

SingularValuesDisplay.from_adapters(adapters, mean=True)
plt.show()
