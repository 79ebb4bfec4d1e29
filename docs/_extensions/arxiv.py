"""Sphinx: where a page says "arXiv 2409.16167", the number is a link, without a role in the text or in a docstring."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

NUMBER = re.compile(r"arXiv[ :](\d{4}\.\d{5})")


class LinkPapers(SphinxPostTransform):
    """Turn the papers that are named in running text, lists and tables into links."""

    default_priority = 800

    def run(self, **kwargs):
        """Replace each text that names a paper by its parts."""
        for text in list(self.document.findall(nodes.Text)):
            if not NUMBER.search(text) or isinstance(
                text.parent, (nodes.reference, nodes.literal, nodes.literal_block)
            ):
                continue
            parts, end = [], 0
            for found in NUMBER.finditer(text):
                link = f"https://arxiv.org/abs/{found[1]}"
                parts += [nodes.Text(text[end : found.start()]), nodes.reference("", found[0], refuri=link)]
                end = found.end()
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app):
    """Called by Sphinx."""
    app.add_post_transform(LinkPapers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
