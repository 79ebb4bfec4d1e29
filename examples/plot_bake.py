"""
Bake adapters into a checkpoint, and take one out again
=======================================================

``bake`` adds updates to the weights of a model, tensor by tensor; ``extract_adapter`` makes an adapter of the
difference between two models. One after the other gives the adapter back, up to rounding. Run it with::

    python examples/plot_bake.py
"""

# %%
# A base model
# ------------
#
# It stands for a checkpoint on disk, and has one weight for each module of the adapters. ``lorakit bake`` does the same
# with files of any size.

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from lorakit import bake, extract_adapter, load_adapters
from lorakit.metrics import relative_error

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
first, second = load_adapters([HERE / "adapters" / name for name in ("icd10", "langid")])
generator = torch.Generator().manual_seed(0)
base = {
    f"{name}.weight": 0.05 * torch.randn(info.d_out, info.d_in, generator=generator)
    for name, info in first.infos.items()
}

# %%
# Bake
# ----
#
# Seven tenths of one adapter and half of the other, as they stand.

tuned = dict(bake(base, [first, second], strengths=[0.7, 0.5]))

# %%
# Extract
# -------
#
# The change has rank 16, the sum of the two ranks: from there on only the rounding of the weights to float32 is left.

from lorakit import ConcatMerger

exact = ConcatMerger(strengths=[0.7, 0.5]).fit([first, second]).merged_
ranks = [2, 4, 8, 12, 16]
found = {k: extract_adapter(tuned, base, k=k) for k in ranks}
errors = [relative_error(found[k], exact) for k in ranks]

fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
ax.plot(ranks, errors, "o-")
ax.set_yscale("log")
ax.set_xlabel("rank of the extracted adapter")
ax.set_ylabel("relative error of the update")
plt.show()
