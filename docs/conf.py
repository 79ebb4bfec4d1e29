"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html`` builds the pages, without a network."""

import sys
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from types import FunctionType

from numpydoc.xref import DEFAULT_LINKS

import lorakit

sys.path.insert(0, str(Path(__file__).with_name("_extensions")))

project = "lorakit"
author = "The lorakit developers"
copyright = author
release = lorakit.__version__
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # its scripts and fonts lie beside the pages
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "arxiv",
    "summaries",
]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
viewcode_line_numbers = True
templates_path = ["_templates"]
exclude_patterns = ["_build", "_*s.rst", "auto_examples/**/*.ipynb", "auto_examples/**/*.py", "conftest.py"]
default_role = "literal"


def _own(fullname, kind):
    """Public members of one kind that a class gets from lorakit and that its docstring does not list already."""
    module, _, name = fullname.rpartition(".")
    cls = getattr(import_module(module), name)
    ours = [base for base in cls.__mro__ if base.__module__.startswith("lorakit")]
    names = dict.fromkeys(name for base in ours for name, value in vars(base).items() if isinstance(value, kind))
    return [name for name in names if not name.startswith("_") and f"\n{name} :" not in cleandoc(cls.__doc__)]


autosummary_context = {
    "own_properties": lambda fullname: _own(fullname, property),
    "own_methods": lambda fullname: _own(fullname, (FunctionType, classmethod)),
}


def write_method_table(app):
    """Write the table of methods from the registry, so that it cannot fall behind the code."""
    from lorakit.base import GAUGES
    from lorakit.discovery import all_methods

    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 14 22 10 18 18 34", ""]
    head = ("method", "class", "ranks", "spaces", "unmoved by", "paper")
    rows = [head]
    none = "\N{EN DASH}"
    for info in all_methods("merger"):
        kept = ", ".join(sorted(info.invariances)) or "nothing"
        if info.invariances >= set(GAUGES):
            kept = "any change of factors"
        ranks = ("one" if info.needs_equal_ranks else "any") + (", data" if info.needs_data else "")
        spaces = ", ".join(info.spaces) or none
        rows.append((f"``{info.method}``", f":class:`~lorakit.{info.name}`", ranks, spaces, kept, info.paper or none))
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    target = Path(app.srcdir) / "generated" / "methods.inc"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_option_reference(app):
    """Write what each command's --help says, for the page of the command line."""
    from click import Context

    from lorakit.cli import main

    lines = []
    for name, command in main.commands.items():
        with Context(command, info_name=f"lorakit {name}", max_content_width=96, terminal_width=96) as ctx:
            shown = command.get_help(ctx)
        lines += [f"lorakit {name}", "~" * (len(name) + 8), "", ".. code-block:: text", ""]
        lines += [f"   {line}".rstrip() for line in shown.splitlines()] + [""]
    target = Path(app.srcdir) / "generated" / "options.inc"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


KINDS = ("merger", "pruner", "transformer")
autosummary_generate = ["api.rst", *(f"_{kind}s.rst" for kind in KINDS)]


def write_estimator_lists(app):
    """Write the lists of estimators that the page of the API includes, from the registry too."""
    from lorakit.discovery import all_methods

    for kind in KINDS:
        names = sorted((info.name for info in all_methods(kind)), key=str.lower)
        lines = [
            ".. currentmodule:: lorakit",
            "",
            ".. autosummary::",
            "   :toctree: generated/",
            "   :nosignatures:",
            "",
        ]
        listed = "\n".join([*lines, *(f"   {name}" for name in names)]) + "\n"
        Path(app.srcdir, f"_{kind}s.rst").write_text(listed, encoding="utf-8")


def write_tables(app):
    """Write the tables of kinds of adapters and of families of models from the code."""
    from tables import family_rows, kind_rows, list_table, refused_rows

    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    for name, rows in (("kinds", kind_rows()), ("refused", refused_rows()), ("families", family_rows())):
        (folder / f"{name}.inc").write_text(list_table(rows), encoding="utf-8")


def say_command_line(app, what, name, obj, options, lines):
    """Say at the end of each method's page what the command line sets, from what ``lorakit methods`` reads."""
    from lorakit._listing import FOLDERS, added_by_command_line, listed

    if what != "class":
        return
    for info in (
        info for kind in FOLDERS if kind != "transformer" for info in listed(kind) if info.name == obj.__name__
    ):
        command = "merge" if info.kind == "merger" else "prune"
        lines += ["", ".. rubric:: On the command line", ""]
        if info.needs_data and info.method != "distill":
            lines += ["It needs data, and is there in Python only.", ""]
            continue
        lines += [f"``lorakit {command} --method {info.method}``; without ``-k``, as with ``k=None`` here.", ""]
        added = added_by_command_line(info)
        lines += [] if added else ["Every other parameter has the default that it has here.", ""]
        for option, text in added.items():
            lines += [f"``{option}``", f"   {text[0].upper()}{text[1:]}", ""]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", say_command_line, priority=900)  # after numpydoc, which takes it apart
    app.connect("builder-inited", write_method_table)
    app.connect("builder-inited", write_option_reference)
    app.connect("builder-inited", write_tables)
    app.connect("builder-inited", write_estimator_lists, priority=400)  # before autosummary, which reads the lists


suppress_warnings = ["config.cache"]  # of the functions above, which cannot be pickled
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # the docstrings give the types
numpydoc_show_class_members = False  # the autosummary template lists them
numpydoc_xref_param_type = True
DEFAULT_LINKS.clear()  # they lead to other projects' inventories, which would need a network
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {name: f"lorakit.{name}" for name in ("Adapter", "AdapterSet", "LoraFactors")} | {
    name: f"lorakit.adapters.{name}" for name in ("ModuleKind", "ModuleInfo", "Provenance", "Source")
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # other scripts are shown, not run: quickstart.py and plot_grid_search_k.py take minutes
    "filename_pattern": r"/plot_(?!grid_search_k)",
    "ignore_pattern": r"(__init__|minilm)\.py",  # minilm.py is a helper of the others
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "show_signature": False,
}

html_static_path = ["_static"]
html_css_files = ["lorakit.css"]
html_theme = "pydata_sphinx_theme"
html_title = "lorakit"
html_favicon = "_static/logo.svg"
html_theme_options = {
    "logo": {"text": "lorakit", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "alt_text": ""},
    "navbar_start": ["navbar-logo", "version"],
    "header_links_before_dropdown": 7,
    "show_prev_next": False,
    "show_version_warning_banner": False,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "quickstart": [], "contributing": []}
html_show_sourcelink = False
