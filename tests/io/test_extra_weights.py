"""Weights beside the factors: refused, dropped, or carried along with the first adapter that has some."""

import json
import pickle
from functools import partial

import joblib
import pytest
import torch
from click.testing import CliRunner
from peft_files import pair, write_directory
from safetensors import safe_open
from safetensors.torch import load_file

from lorakit import LegoPruner, ModuleSelector, SVDMerger, load_adapter, load_adapters, results_on_disk, save_adapter
from lorakit.cli import main
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError

P = "base_model.model."
TOKENS = "model.embed_tokens.token_adapter.trainable_tokens_delta"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def with_head(seed=0, dtype=torch.float32, **more):
    rng = torch.Generator().manual_seed(seed)
    head = {"score.weight": torch.randn(2, 5, generator=rng).to(dtype), "score.bias": torch.randn(2, generator=rng)}
    return {**pair(seed=seed), **{P + key: value for key, value in {**head, **more}.items()}}


def load_first(path, **options):
    with pytest.warns(UserWarning, match=r"carried along, because of modules_to_save='first': .*does not merge them"):
        return load_adapter(path, modules_to_save="first", **options)


@pytest.fixture
def three(write_peft):
    """Adapters without a head, with one, with another."""
    paths = [write_peft(folder="plain")]
    paths += [write_peft(with_head(i), folder=f"head{i}", modules_to_save=["score"]) for i in (1, 2)]
    with pytest.warns(UserWarning, match="carried along"):
        return load_adapters(paths, modules_to_save="first")


def test_carried_and_written(write_peft, tmp_path):
    tensors = with_head(dtype=torch.bfloat16, **{TOKENS: torch.randn(2, 3)})
    settings = {"modules_to_save": ["score"], "trainable_token_indices": {"embed_tokens": [4, 7]}}
    adapter = load_first(write_peft(tensors, **settings))
    assert list(adapter) == ["enc.0.q"]
    assert set(adapter.provenance.extra_weights.names) == {"score.weight", "score.bias", TOKENS}
    path = save_adapter(adapter, tmp_path / "out", dtype=torch.float16)
    written = load_file(path / WEIGHTS)
    for key, tensor in tensors.items():
        if ".lora_" not in key:  # as they were, in their own dtype
            assert torch.equal(written[key], tensor)
            assert written[key].dtype == tensor.dtype
    config = json.loads((path / "adapter_config.json").read_text())
    assert {key: config[key] for key in settings} == settings
    assert "Taken as they are from task, not merged: `model.embed_tokens" in (path / "README.md").read_text()
    again = load_first(path)
    assert (save_adapter(again, tmp_path / "twice", dtype=torch.float16) / WEIGHTS).stat().st_size == (
        path / WEIGHTS
    ).stat().st_size


def test_those_of_the_first_that_has_some(three, tmp_path):
    merged = SVDMerger(k=2).fit(three).merged_
    path = save_adapter(merged, tmp_path / "out")
    assert torch.equal(load_file(path / WEIGHTS)[f"{P}score.weight"], with_head(1)[f"{P}score.weight"])
    assert "from head1, not merged: `score.bias`, `score.weight`." in (path / "README.md").read_text()
    other = SVDMerger(k=2).fit([three[2], three[1]]).merged_
    assert torch.equal(other.provenance.extra_weights.read("score.weight"), with_head(2)[f"{P}score.weight"])
    assert SVDMerger(k=2).fit([three[0]]).merged_.provenance.extra_weights is None


def test_it_survives_every_step(three, tmp_path):
    adapter = three[1]
    steps = [
        adapter.select(["enc.0.q"]),
        adapter.renamed("other"),
        adapter.rename_modules(lambda module: f"x.{module}"),
        adapter.with_provenance(task_type="SEQ_CLS"),
        pickle.loads(pickle.dumps(adapter)),
        *LegoPruner(k=1).fit_transform([adapter]),
        *ModuleSelector(include="*.q").fit_transform([adapter]),
    ]
    with results_on_disk():
        steps.append(SVDMerger(k=1).fit([adapter]).merged_)
    for i, made in enumerate(steps):
        written = load_file(save_adapter(made, tmp_path / str(i)) / WEIGHTS)
        assert torch.equal(written[f"{P}score.weight"], with_head(1)[f"{P}score.weight"])


def test_it_travels_by_path(write_peft):
    large = {"score.weight": torch.randn(1000, 500)}
    adapter = load_first(write_peft(with_head(**large), modules_to_save=["score"]))
    assert len(pickle.dumps(adapter)) < 2500
    assert joblib.hash(pickle.loads(pickle.dumps(adapter))) == joblib.hash(adapter)
    assert pickle.loads(pickle.dumps(adapter)).provenance == adapter.provenance


def test_read_when_written(write_peft, tmp_path):
    tensors = with_head()
    tensors[f"{P}score.weight"][0, 0] = torch.nan
    path = write_peft(tensors, modules_to_save=["score"])
    adapter = load_first(path)
    adapter["enc.0.q"]
    with pytest.raises(
        CorruptFileError, match=r"task.*score\.weight', which is carried along as an extra weight, has NaN.*'drop'"
    ):
        save_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (path / WEIGHTS).write_bytes(b"")
    with pytest.raises(CorruptFileError, match="has changed since"):
        adapter.provenance.extra_weights.read("score.bias")


def test_refused_even_so(write_peft, tmp_path):
    integers = write_peft(with_head(steps=torch.arange(3)), folder="integers")
    with pytest.raises(UnsupportedAdapterError, match=r"steps' is stored as I64.*'drop' to leave them out"):
        load_adapter(integers, modules_to_save="first")
    nothing = write_peft(folder="nothing", modules_to_save=["score"])
    with pytest.raises(
        UnsupportedAdapterError, match=r"sets modules_to_save, but the file holds no extra weights beside"
    ):
        load_adapter(nothing, modules_to_save="first")
    for options in ({}, {"modules_to_save": "refuse"}):
        with pytest.raises(UnsupportedAdapterError, match=r"modules_to_save='drop'.*modules_to_save='first'"):
            load_adapter(nothing, **options)


def test_other_formats_have_no_place_for_it(three, tmp_path):
    with pytest.raises(OutputError, match=r"carries score\.bias, score\.weight beside its factors, which a kohya file"):
        save_adapter(three[1], tmp_path / "out.safetensors", format="kohya")


def test_on_the_command_line(write_peft, tmp_path):
    paths = [str(write_peft(with_head(i), folder=f"head{i}", modules_to_save=["score"])) for i in (1, 2)]
    run = CliRunner().invoke
    arguments = ["merge", *paths, "-o", str(tmp_path / "out"), "--method", "svd", "-k", "2"]
    refused = run(main, arguments)
    assert refused.exit_code == 2
    assert "--modules-to-save drop to leave them out, or pass --modules-to-save first to carry" in refused.stderr
    done = run(main, [*arguments, "--modules-to-save", "first"])
    assert done.exit_code == 0, done.output
    assert "warning: " in done.stderr
    with safe_open(tmp_path / "out" / WEIGHTS, "pt") as file:
        assert torch.equal(file.get_tensor(f"{P}score.bias"), with_head(1)[f"{P}score.bias"])
    dropped = run(main, [*arguments, "--overwrite", "--modules-to-save", "drop"])
    assert dropped.exit_code == 0
    assert set(load_file(tmp_path / "out" / WEIGHTS)) == set(pair())
    assert run(main, ["inspect", paths[0], "--modules-to-save", "first"]).exit_code == 0
