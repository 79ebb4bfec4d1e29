"""What ``lorakit merge --method distill`` takes besides adapters: a base model, heads, and texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._nearest import nearest
from ._options import together
from ._values import check_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .. import AdapterSet

METHOD = "distill"
_N_DRY = 20  # texts of a dry run
_KEYS = {
    "encoder": {"kind", "heads", "pooling", "scale", "max_tokens", "prefix"},
    "causal": {"kind", "heads", "max_tokens", "prefix"},
}

distill_options = together(
    click.option("--model", metavar="FOLDER|MODULE:FUNCTION", type=click.Path(),
                 help="For distill: the base model, a folder of the transformers library, or a function that returns "
                      "model and tokenizer."),
    click.option("--heads", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                 help="For distill: what the adapters' heads are, as JSON or YAML; see the user guide."),
    click.option("--prompts", multiple=True, metavar="[ADAPTER=]FILE",
                 help="For distill: texts to train on, one a line; repeat it. Those of an adapter's task are added to "
                      "lorakit's generic texts and to texts made from the adapters; others take the place of these."),
)  # fmt: skip

Complete = Callable[[Any, "AdapterSet"], Any]


def completion(
    method: str, *, model: str | None, heads: str | None, prompts: Sequence[str], dry_run: bool
) -> Complete | None:
    """Return what gives an estimator its model, heads and inputs once the adapters are open; None for other methods.

    Raises
    ------
    click.UsageError
        If the method lacks one of the options, or another method has one.
    """
    given = {"--model": model, "--heads": heads, "--prompts": prompts}
    if method != METHOD:
        if wrong := [name for name, value in given.items() if value]:
            raise click.UsageError(f"{', '.join(wrong)}: only for --method {METHOD}, not for {method!r}")
        return None
    if model is None or heads is None:
        raise click.UsageError(
            f"--method {METHOD} needs the base model and the adapters' heads: --model FOLDER --heads FILE"
        )
    described = read_heads(Path(heads))

    def complete(estimator: Any, adapters: AdapterSet) -> Any:
        _check_names(described["heads"], adapters.names)
        loaded, tokenizer = load_model(model, described["kind"])
        prefix = described.get("prefix", "")
        texts, owners = read_texts(prompts, adapters.names)
        if None not in owners:
            from .. import generic_inputs, pseudo_inputs

            made = generic_inputs() + pseudo_inputs(loaded, adapters, tokenizer=tokenizer, prefix=prefix)
            texts, owners = [*made, *texts], [*[None] * len(made), *owners]
        if dry_run:
            texts, owners = texts[:_N_DRY], owners[:_N_DRY]
            estimator.set_params(epochs=1)
        with _usage_errors(heads):
            forwards = make_heads(described, loaded, tokenizer)
        return estimator.set_params(model=loaded, forwards=forwards, inputs=texts, owners=owners, prefix=prefix)

    return complete


def read_heads(path: Path) -> dict[str, Any]:
    """Read and check the file that says what the heads are.

    Raises
    ------
    click.UsageError
        If it is neither JSON nor YAML, or says something else.
    """
    text = path.read_text(encoding="utf-8")
    found = _parsed(path, text)
    kind = found.get("kind") if isinstance(found, Mapping) else None
    if kind not in _KEYS:
        raise click.UsageError(f"{path}: kind must be one of {', '.join(_KEYS)}; got {kind!r}")
    if unknown := sorted(set(found) - _KEYS[kind]):
        known = sorted(_KEYS[kind])
        raise click.UsageError(f"{path}: there is no {unknown[0]!r}{nearest(unknown[0], known)} There are {known}.")
    heads = found.get("heads")
    if not isinstance(heads, Mapping) or not heads:
        raise click.UsageError(f"{path}: heads must name a head for each adapter; got {heads!r}")
    wanted = {"labels"} if kind == "encoder" else {"labels", "prompt"}
    for name, head in heads.items():
        if not isinstance(head, Mapping) or set(head) != wanted:
            raise click.UsageError(
                f"{path}: the head of {name!r} must have {' and '.join(sorted(wanted))}; got {head!r}"
            )
    return dict(found)


def _parsed(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise click.UsageError(f"{path}: is no JSON: {error}") from error
    try:
        import yaml
    except ImportError as error:
        raise click.UsageError(f"{path}: YAML needs a package: pip install pyyaml, or write a .json file") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise click.UsageError(f"{path}: is no YAML: {error}") from error


def read_texts(prompts: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """Read the texts of all files, and the adapter that each belongs to.

    Raises
    ------
    click.UsageError
        If a file cannot be read or has no text, or there is no such adapter.
    """
    texts: list[str] = []
    owners: list[str | None] = []
    for prompt in prompts:
        owner, equals, file = prompt.partition("=")
        if not equals:
            owner, file = "", prompt
        else:
            check_named("--prompts", {owner: file}, names)
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--prompts {prompt}: {file} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise click.UsageError(f"--prompts {prompt}: {file} has no text; expected one a line")
        texts += found
        owners += [owner or None] * len(found)
    return texts, owners


def load_model(where: str, kind: str) -> tuple[Any, Any]:
    """Load the base model and its tokenizer.

    Raises
    ------
    click.UsageError
        If there is no such folder or function, or it returns something else.
    """
    from torch import nn

    module, colon, function = where.partition(":")
    if Path(where).is_dir() or not colon:
        return _from_folder(where, kind)
    with _from_here():
        try:
            made = getattr(import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise click.UsageError(f"--model {where}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise click.UsageError(
            f"--model {where}: must return a torch module and a tokenizer; got {type(made).__name__}"
        )
    return made


def _from_folder(where: str, kind: str) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise click.UsageError(f"--model {where}: needs a package: pip install transformers") from error
    if not Path(where).is_dir():
        raise click.UsageError(f"--model {where}: there is no such folder; expected a model, or MODULE:FUNCTION")
    transformers.utils.logging.set_verbosity_error()  # heads that the adapters do not use need not be told of
    transformers.utils.logging.disable_progress_bar()
    load = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForCausalLM
    try:
        return load.from_pretrained(where), transformers.AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--model {where}: transformers cannot load it: {error}") from error


def make_heads(described: Mapping[str, Any], model: Any, tokenizer: Any) -> Any:
    """Make the heads that the file describes."""
    from ..distillation.text_heads import PromptHead, label_heads

    heads = described["heads"]
    options = {name: described[name] for name in ("pooling", "scale", "max_tokens") if name in described}
    if described["kind"] == "encoder":
        return label_heads(model, tokenizer, {name: head["labels"] for name, head in heads.items()}, **options)
    return {name: PromptHead(tokenizer, head["prompt"], head["labels"], **options) for name, head in heads.items()}


def _check_names(heads: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in heads:
            raise click.UsageError(f"--heads has no head of {name!r}{nearest(name, list(heads))} It has {list(heads)}.")


@contextmanager
def _usage_errors(heads: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(f"{heads}: {error}") from error


@contextmanager
def _from_here() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
