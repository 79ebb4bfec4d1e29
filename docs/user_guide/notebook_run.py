"""Run notebook.ipynb and write what it shows, for the page: python docs/user_guide/notebook_run.py

Needs nbclient and ipykernel. The page includes notebook_cells.inc, so that building it runs nothing.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOTEBOOK, CELLS = HERE / "notebook.ipynb", HERE / "notebook_cells.inc"


def run():
    """Return the notebook with its outputs, run from the root of the repository."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            output.pop("transient", None)
    return notebook


def page_of(notebook):
    """Return the cells as reStructuredText, outputs as the HTML or the text that the notebook shows."""
    lines = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines += [cell.source, ""]
            continue
        lines += [".. code-block:: python", "", *_indented(cell.source), ""]
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                lines += [".. raw:: html", "", *_indented(f"<div>{data['text/html']}</div>"), ""]
            else:
                lines += [".. code-block:: text", "", *_indented(data["text/plain"]), ""]
    return "\n".join(lines)


def _indented(text):
    return [f"   {line}".rstrip() for line in text.splitlines()]


if __name__ == "__main__":
    ran = run()
    nbformat.write(ran, NOTEBOOK)
    CELLS.write_text(page_of(ran), encoding="utf-8")
