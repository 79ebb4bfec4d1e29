"""
A report about a merge
======================

One page says what went in, how alike the adapters are, where they conflict, what each kept, and how to make the merge
again. It is one file without scripts from elsewhere, to be sent to a colleague. Run it with::

    python examples/plot_report.py
"""

# %%
# Merge
# -----

from pathlib import Path

import lorakit
from lorakit import TSVMerger, load_adapters

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
adapters = load_adapters([HERE / "adapters" / name for name in ("icd10", "langid_r16", "wn_noun_r4")])
merger = TSVMerger(k=16, scale="match").fit(adapters)

# %%
# Report
# ------
#
# ``report.save("merge.html")`` writes the page, and so does ``lorakit merge --report`` beside its output. A notebook
# shows it in a frame, as here.

# sphinx_gallery_thumbnail_path = 'user_guide/report.png'
report = lorakit.report(adapters, merger)
report
