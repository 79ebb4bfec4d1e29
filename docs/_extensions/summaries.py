"""Sphinx: the summaries in the lists of the API have no references to the papers below a docstring."""

import re

from sphinx.ext.autosummary import Autosummary

REFERENCE = re.compile(r"\s*\[R[0-9a-f]+-\d+\]_?")


class PlainAutosummary(Autosummary):
    """The autosummary directive, without "[Rbef7177c37e4-1]" at the end of a summary."""

    def get_items(self, names):
        """Return name, signature, summary and real name of each."""
        return [(name, sig, REFERENCE.sub("", summary), real) for name, sig, summary, real in super().get_items(names)]


def setup(app):
    """Called by Sphinx, after autosummary."""
    app.add_directive("autosummary", PlainAutosummary, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
