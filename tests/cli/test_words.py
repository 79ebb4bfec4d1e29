"""The command line speaks of options and methods, and never of Python's arguments and classes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorakit
from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.cli import main
from lorakit.exceptions import LorakitWarning, Setting, Words
from lorakit.testing import make_adapters

PACKAGE = Path(lorakit.__file__).parent
# name='value', name=None, `name`, a lambda, a class or a function of lorakit
PYTHON = re.compile(
    r"\b[a-z_]+=(?:['\"]|True\b|False\b|None\b|\{[a-z]+!r\})|\blambda\b|(?<!`)`[a-z_]+`(?!`)|\b\w+_\w+\(\w*\)|\blorakit\.\w+"
    r"|\b(?:[A-Z]\w+(?:Merger|Pruner|Calibrator|Selector|Damper|Balancer|Scaler)|Isotropizer|AdapterSet|RankBudget)\b"
)
# What the command line cannot reach: live models, data, scikit-learn's interface, fits that are not of one call
ELSEWHERE = (
    "testing", "metrics", "model_selection", "retrieval.py", "plotting", "io/live.py", "io/_live_layers.py",
    "io/_given.py", "activations.py", "applying.py", "gradients.py", "adapter_set.py", "_groups.py", "distillation",
    "cluster/kmeans.py", "cluster/units.py", "base/_estimator.py", "merging/_running.py", "merging/_start.py",
    "preparing/select.py", "recipes/steps.py", "reporting/report.py",
)  # fmt: skip
# Said of training or of other libraries, of what only Python can do and says so, or of what a recipe or a file has
RIGHT = (
    "train with bias='none'", "save_embedding_layers=False", "tie_word_embeddings=False", "safe_serialization=True",
    "save_pretrained(selected_adapters", "in Python: adapter.rename_modules", "tensor.to_dense()", "lorakit.from_peft",
    "lorakit.convert_adapter", "(random_state=None), other ones each time", "pass model= and forwards=",
    "init_weights=", "in_channels * prod(kernel)", "got both weights=", "blocks={X!r}", "fisher[", "vera_lambda_b (",
    "partial_fit adds updates", "has no partial_fit", "use one ModuleScaler for all",
    "lorakit.split_experts(",
)  # fmt: skip


def said(call):
    """The texts of a call, without what a Words has for Python; what is put into them is X."""
    for node in ast.iter_child_nodes(call):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Words":
            yield from said(ast.Tuple(elts=node.args[1:]))
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "{X!r}" if part.conversion == 114 else "{X}"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        else:
            yield from said(node)


def messages(path):
    """The texts of what a file raises and warns of."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield from ((node.lineno, text) for text in said(node.exc))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "warn":
            yield from ((node.lineno, text) for text in said(node))


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(ELSEWHERE):
            yield name, path


def test_the_search_sees_what_it_looks_for(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "raise ValueError(f\"pass rest='drop' to {x}\")\n"
        "raise E(seen, remedy=Words('pass rest=None', '--rest drop'))\n"
        "warnings.warn(f'leave `device` out', UserWarning)\n"
    )
    found = list(messages(file))
    assert [PYTHON.search(text) is not None for _, text in found] == [True, False, True]
    assert found[1][1] == "--rest drop"


def test_no_message_speaks_python():
    wrong = [
        f"{name}:{line}: {text}"
        for name, path in files()
        for line, text in messages(path)
        if PYTHON.search(text) and not any(right in text for right in RIGHT)
    ]
    assert wrong == []


@pytest.mark.parametrize("right", RIGHT)
def test_each_exception_is_needed(right):
    assert any(right in text for _, path in files() for _, text in messages(path))


def commands(command, ctx):
    yield ctx
    for name in getattr(command, "commands", {}):
        sub = command.commands[name]
        yield from commands(sub, click.Context(sub, info_name=name, parent=ctx))


@pytest.mark.parametrize(
    "ctx", list(commands(main, click.Context(main, info_name="lorakit"))), ids=lambda c: c.command_path
)
def test_no_help_speaks_python(ctx):
    text = " ".join(ctx.get_help().split())
    # one sentence of merge is about Python, and says so; the name of a Python function is in backticks
    for right in ("In Python the default scale is 1, so a merge gives the same adapter only with scale='match'.",
                  "or `save_adapter` in Python"):  # fmt: skip
        text = text.replace(right, "")
    assert PYTHON.search(text) is None, PYTHON.search(text)
    for odd in ("<=None", "None]", " RANGE", "INTEGER", "TEXT", "Default:"):
        assert odd not in text, odd


def test_warnings_and_errors_of_runs(lorakit_, tasks, equal_tasks, tmp_path):
    """What commands say that go wrong in ways that Python's arguments would mend."""
    out = tmp_path / "out"
    factors = dict(load_adapter(tasks[0]))
    save_adapter(Adapter({f"x.{m}": f for m, f in factors.items()}), tmp_path / "renamed")
    zero = save_adapter(Adapter({m: LoraFactors(f.A, 0 * f.B) for m, f in factors.items()}), tmp_path / "zero")
    head = tmp_path / "head"
    save_adapter(load_adapter(tasks[0]), head)
    weights = head / "adapter_model.safetensors"
    save_file({**load_file(weights), "base_model.model.head.weight": torch.ones(2, 3)}, weights)
    config = head / "adapter_config.json"
    config.write_text(config.read_text().replace('"modules_to_save": null', '"modules_to_save": ["head"]'))
    huge = make_adapters(2, dtype=torch.float16, random_state=0)
    big = [
        save_adapter(Adapter({m: f.scaled(1e4) for m, f in a.items()}), tmp_path / f"big{i}")
        for i, a in enumerate(huge)
    ]
    for args, code, words in (
        (("merge", *tasks, "-m", "average"), 2, "--method lego, svd and concat"),
        (("merge", *tasks, "-m", "svd", "-k", 900), 2, "-k 900 is above 20, the largest k of the method svd"),
        (("merge", tasks[0], tmp_path / "renamed"), 2, "lorakit fit BASE ADAPTER --rename OUT"),
        (("merge", *tasks, "-w", "1,-1,1", "-m", "ties"), 2, "law/:0.7 medicine/:-0.3"),
        (("merge", *equal_tasks, "-m", "fisher"), 2, "--method average"),
        (("merge", *tasks, "-m", "regmean"), 2, "--method svd"),
        (("merge", *tasks, "-m", "regmean_plus"), 2, "--method tsv"),
        (("merge", *tasks, "--layout", "compact", "--pad-to", 16), 2, "--pad-to goes with --layout portable"),
        (("merge", zero, zero, "-m", "svd", "-k", 2), 0, "--method svd -k 2: the merged update is"),
        (("merge", head, tasks[1], "--modules-to-save", "drop"), 0, "because of --modules-to-save drop"),
        (("merge", head, tasks[1], "--modules-to-save", "first"), 0, "because of --modules-to-save first"),
        (("merge", head, tasks[1]), 2, "pass --modules-to-save drop"),
        (("merge", *big, "--scale", 1e5), 2, "or lower the scale"),
        (("merge", *tasks, "-k", "mean:0.1"), 2, "a budget of ranks needs mean and max_rank of 1 or more"),
        (("prune", tasks[0], "-k", 900), 2, "-k 900 is above 4, the largest k to prune these adapters to"),
    ):  # fmt: skip
        stderr = lorakit_(*args, "-o", out, "--overwrite", code=code).stderr
        assert words in stderr, stderr
        assert PYTHON.search(stderr.replace("save_embedding_layers=False", "")) is None, stderr


def test_words_travel():
    import pickle

    warning = LorakitWarning("a ", Words("b='c'", "--b c"), ", ", Setting("d", True))
    again = pickle.loads(pickle.dumps(warning))
    assert str(again) == str(warning) == "a b='c', pass d=True"
    assert again.worded(lambda part: part.command_line if isinstance(part, Words) else part.name) == "a --b c, d"
