"""Recipes on disk: :func:`load_recipe` and :func:`save_recipe`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline

from .._version import __version__
from ..adapters import Adapter
from ..exceptions import InvalidRecipeError
from ..files import atomic
from ..files.checkpoint import headers_digest
from ..files.open_checkpoint import open_checkpoint
from ..io.formats.record import file_digest
from .recipe import FORM, read_recipe
from .steps import left_out_of, steps_of
from .text import dump

__all__ = ["load_recipe", "save_recipe"]


def load_recipe(path: str | os.PathLike[str]) -> Pipeline:
    r"""Read a recipe of `lorakit merge` or `lorakit prune` as a scikit-learn Pipeline.

    Parameters
    ----------
    path : str or PathLike
        A recipe, in YAML: see :doc:`/user_guide/recipes`. Its sources and its output are not looked at.

    Returns
    -------
    Pipeline
        Of estimators of lorakit, unfitted. What a step does not name is as on the command line: ``random_state=0``, and
        ``scale='match'`` of a merge.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidRecipeError
        If it is no YAML, or says what a recipe cannot say; with line and key. Also if it is a recipe of a command that
        no estimator does, such as `lorakit bake`.
    ImportError
        If PyYAML is not installed: ``pip install 'lorakit[recipes]'``.

    See Also
    --------
    save_recipe : The way back.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lorakit import load_recipe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recipe = Path(folder, "merge.yaml")
    ...     _ = recipe.write_text("steps:\n- prune: {k: 8}\n- merge: {method: ties, density: 0.3, k: 16}\n")
    ...     load_recipe(recipe)
    Pipeline(steps=[('prune', SVDPruner(k=8)),
                    ('merge', TiesMerger(density=0.3, k=16, scale='match'))])
    """
    recipe = read_recipe(path)
    if recipe.pipeline is None:
        raise InvalidRecipeError(
            f"is a recipe of {recipe.step}, which is no pipeline of estimators",
            path=path,
            remedy=f"run it with `lorakit {'fit' if recipe.step == 'rename' else recipe.step} --recipe`",
        )
    return recipe.pipeline


def save_recipe(
    estimator: Any,
    path: str | os.PathLike[str],
    *,
    sources: Iterable[Adapter] = (),
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a pipeline, or one estimator, as a recipe that `lorakit merge` or `lorakit prune` runs.

    Parameters
    ----------
    estimator : Pipeline or estimator
        Of mergers, pruners and other steps of lorakit. Fitted attributes are not written, nor are ``n_jobs``,
        ``verbose`` and ``device``, which are of a run.
    path : str or PathLike
        The file to write, such as ``merge.yaml``.
    sources : iterable of Adapter, default=()
        What the recipe begins with, as :func:`~lorakit.load_adapters` read it. Their paths are written with the SHA-256
        of their files. Without sources they are given when the recipe is run.
    output : str or PathLike, optional
        Where the result is written when the recipe is run. Without one it is given then.
    overwrite : bool, default=False
        Replace a file that is there.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InvalidRecipeError
        If a step is none of lorakit's, or has a parameter that a recipe cannot hold, such as data or a function.
    OutputError
        If the file exists, or cannot be written.
    ImportError
        If PyYAML is not installed: ``pip install 'lorakit[recipes]'``.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.pipeline import make_pipeline
    >>> from lorakit import ModuleSelector, SVDMerger, save_recipe
    >>> pipeline = make_pipeline(ModuleSelector(include="*.self_attn.*"), SVDMerger(k=16))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(save_recipe(pipeline, f"{folder}/merge.yaml", output=f"{folder}/merged").read_text())
    recipe: 1
    made_by: lorakit ...
    steps:
    - select:
        include: '*.self_attn.*'
        syntax: glob
    - merge:
        method: svd
        k: 16
        scale: 1.0
        scale_target: 1.0
        scale_scope: module
    output:
      path: merged
    <BLANKLINE>
    """
    file = Path(path)
    steps = steps_of(estimator)
    given = [adapter_source(adapter, file.parent) for adapter in sources]
    recipe = {
        **({"sources": given} if given else {}),
        "steps": steps,
        **({} if output is None else {"output": {"path": portable_path(output, file.parent)}}),
    }
    return write_recipe(recipe, file, left_out=left_out_of(estimator), overwrite=overwrite)


def write_recipe(recipe: Mapping[str, Any], file: Path, *, left_out: Iterable[str] = (), overwrite: bool) -> Path:
    """Write what a recipe says, with a comment that names what it cannot hold."""
    missing = ", ".join(left_out)
    comment = f"Not held by a recipe, and to be given again: {missing}" if missing else ""
    text = dump({"recipe": FORM, "made_by": f"lorakit {__version__}", **recipe}, comment=comment)
    with atomic.replaced_file(file, overwrite=overwrite) as new:
        new.write_text(text, encoding="utf-8", newline="\n")
    return file


def adapter_source(adapter: Adapter, folder: Path, *, strength: float | None = None) -> dict[str, Any]:
    """Return what a recipe says of an adapter that was read from a file.

    Raises
    ------
    InvalidRecipeError
        If it was not read from one file or folder.
    """
    known = adapter.provenance
    source = known.sources[0] if len(known.sources) == 1 and known.made is None else None
    if source is None or source.path is None:
        raise InvalidRecipeError(
            f"adapter {adapter.name!r} was made in memory",
            expected="adapters as they were read from files",
            remedy="save it, and load it from there",
        )
    # by its file where that is all of it: a folder could hold others
    place = source.path if source.config is None else source.path.parent
    hashes = {
        "sha256": file_digest(source.path, source.opened[0]),
        "config_sha256": file_digest(source.config, source.opened[1]),
        "initial_sha256": source.initial and file_digest(source.initial.path, source.initial.opened[0]),
    }
    return {
        "path": source.hub or portable_path(place, folder),
        "name": adapter.name,
        **({} if strength is None else {"strength": strength}),
        **{key: digest for key, digest in hashes.items() if digest is not None},
    }


def checkpoint_source(path: str, folder: Path) -> dict[str, Any]:
    """Return what a recipe says of a checkpoint."""
    return {"path": portable_path(path, folder), "headers_sha256": headers_digest(open_checkpoint(path))}


def portable_path(path: str | os.PathLike[str], folder: Path) -> str:
    """Return a path as it is from a folder, so that both can be moved together; absolute where nothing is shared."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).absolute().as_posix()
