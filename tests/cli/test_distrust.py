"""Files that were made to deceive: what verify and diff must not be talked into."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraFactors, SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.exceptions import CancellingUnitsWarning
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import KEY
from lorakit.linalg.rounding import units_cancel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def merged(lorakit_, tasks, out):
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4)
    return out


def edit(folder, *, tensors=lambda t: None, record=lambda r: None, config=lambda c: None):
    """Change parts of an output, and nothing else of it."""
    path, settings = Path(folder) / WEIGHTS, Path(folder) / CONFIG
    metadata, weights = read_header(path).metadata, load_file(path)
    found, fields = json.loads(metadata[KEY]), json.loads(settings.read_text())
    tensors(weights)
    record(found)
    config(fields)
    save_file(weights, path, {**metadata, KEY: json.dumps(found)})
    settings.write_text(json.dumps(fields))


def forged(path, payload, *, size, dtype=torch.float32):
    """Write a payload to which two huge units are added that cancel."""
    modules = {}
    for module, factors in payload.items():
        a, b = (torch.randn(size_, dtype=torch.float64) for size_ in (factors.d_in, factors.d_out))
        modules[module] = LoraFactors(
            torch.cat([factors.A.double(), size * a[None], size * a[None]]),
            torch.cat([factors.B.double(), b[:, None], -b[:, None]], dim=1),
        )
    return save_adapter(Adapter(modules), path, dtype=dtype)


@pytest.mark.parametrize(("size", "dtype"), [(1e7, torch.float32), (1e4, torch.bfloat16), (1e7, torch.bfloat16)])
def test_units_that_cancel_excuse_nothing(lorakit_json, lorakit_, merged, tasks, tmp_path, size, dtype):
    torch.manual_seed(0)
    payload = load_adapter(tasks[0])
    fake = forged(tmp_path / "fake", payload, size=size, dtype=dtype)
    record = read_header(Path(merged) / WEIGHTS).metadata
    save_file(load_file(fake / WEIGHTS), fake / WEIGHTS, record)
    report = lorakit_json("verify", fake, "--sources", *tasks, code=1)
    assert report["verdict"] == "no"
    assert all(row["tolerance"] < 0.13 for row in report["differences"])
    report = lorakit_json("diff", fake, merged, code=3)
    assert report["same"] is False
    assert report["unsure"] is True
    assert lorakit_("diff", fake, merged, code=3).stdout.splitlines()[-1].startswith("Cannot tell: ")
    assert "cancel" in lorakit_("inspect", fake).stderr  # warned of when it is read
    assert "cancel" in lorakit_("convert", fake, "-o", tmp_path / "converted").stderr


def warned(caught):
    return [str(w.message) for w in caught if issubclass(w.category, CancellingUnitsWarning)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_units_that_cancel_are_said_when_they_are_read(lorakit_, tasks, tmp_path, dtype):
    torch.manual_seed(0)
    size = 1e6 if dtype == torch.float32 else 300.0
    fake = forged(tmp_path / "fake", load_adapter(tasks[0]), size=size, dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = load_adapter(fake)
        assert not warned(caught)  # nothing of it has been read
        for module in (*adapter, *adapter):
            adapter[module]
        (said,) = warned(caught)  # one for all modules
        assert said.startswith(f"{fake / WEIGHTS}: units are so large, and cancel to so small an update")
        caught.clear()
        SVDMerger(k=4).fit(load_adapters([fake, tasks[1]]))
        assert len(warned(caught)) == 1
    out = tmp_path / "out"
    for command in (
        ("merge", fake, tasks[1], "-o", out, "-k", 4, "--overwrite"),
        ("merge", fake, tasks[1], "-o", out, "-k", 4, "--overwrite", "-j", 2),
        ("prune", fake, "-o", out, "-k", 2, "--overwrite"),
    ):
        assert lorakit_(*command).stderr.count("cancel to so small an update") == 1
    both = lorakit_("inspect", fake, tasks[1]).stderr
    assert both.count("cancel to so small an update") == 1
    assert "fake: units" in both
    assert "in 2 of 2 modules, such as 'layer.0'" in both


@pytest.mark.slow
def test_units_that_cancel_are_said_once_by_all_processes(lorakit_, tasks, tmp_path):
    torch.manual_seed(0)
    fake = forged(tmp_path / "fake", load_adapter(tasks[0]), size=1e7)
    command = ("merge", fake, tasks[1], "-o", tmp_path / "out", "-k", 4, "--engine", "loky", "-j", 2)
    assert lorakit_(*command).stderr.count("cancel to so small an update") == 1


def test_ordinary_units_cancel_nothing():
    """Also of high rank and rounded to bfloat16, and where the update is zero."""
    torch.manual_seed(0)
    a, b = (torch.linalg.qr(torch.randn(600, 512))[0] for _ in range(2))
    assert not units_cancel((a.mT, b), torch.bfloat16)
    low = torch.randn(1, 600), torch.randn(500, 1)
    assert not units_cancel(low, torch.bfloat16)
    assert not units_cancel((torch.cat([low[0]] * 2), torch.cat([low[1], -low[1]], dim=1)), torch.float32)
    assert not units_cancel((low[0], torch.zeros(500, 1)), torch.float32)
    assert not units_cancel((1e30 * low[0], 1e30 * low[1]), torch.float32)


@pytest.mark.parametrize("times", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2**4), (torch.float16, 2**7), (torch.float32, 2**12)])
@pytest.mark.parametrize("shape", [(40, 50), (1, 3)])
def test_how_far_units_may_cancel(dtype, most, times, shape):
    """Two opposite units of norm s each, beside one of norm 1 at right angles: ``sqrt(2) s`` to 1."""
    d_in, d_out = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(d, dtype=torch.float64, generator=generator) for d in (d_in, d_out))
    for s, cancels in ((0.9 * most / 2**0.5, False), (1.1 * most / 2**0.5, True)):
        lines = torch.stack([a, a, a]) / a.norm() * times
        columns = torch.stack([b / s, b, -b], dim=1) / b.norm() * s * times
        assert units_cancel((lines, columns), dtype) is cancels


def test_identical_factors_are_the_same_however_large(lorakit_json, tasks, tmp_path):
    torch.manual_seed(0)
    fake = forged(tmp_path / "fake", load_adapter(tasks[0]), size=1e7)
    assert lorakit_json("diff", fake, fake)["identical"] is True


def head(path, value):
    """An adapter on disk that carries a whole weight beside its factors."""
    tensors = load_file(path / WEIGHTS)
    save_file({**tensors, "base_model.model.head.weight": torch.full((2, 3), value)}, path / WEIGHTS)
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({**config, "modules_to_save": ["head"]}))


def test_extra_weights(lorakit_, lorakit_json, tasks, out):
    for i, path in enumerate(tasks):
        head(Path(path), float(i))
    first = ("--modules-to-save", "first")
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "-k", 4, *first)
    assert lorakit_json("verify", out, "--sources", *tasks, *first)["verdict"] == "yes"
    edit(out, tensors=lambda t: t["base_model.model.head.weight"].fill_(666.0))
    report = lorakit_json("verify", out, "--sources", *tasks, *first, code=1)
    assert report["other_than_made"] == ["the extra weight 'head.weight' is another than that of its sources"]
    assert "extra weight" in lorakit_("verify", out, "--sources", *tasks, *first, code=1).stdout
    drop = ("--modules-to-save", "drop")
    assert lorakit_json("verify", out, "--sources", *tasks, *drop)["verdict"] == "yes"  # what was asked for


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base_model_name_or_path": "other/base"}, "base_model is 'other/base'"),
        ({"task_type": "CAUSAL_LM"}, "task_type"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["layer.0"]}, "target_modules"),
        ({"exclude_modules": ["layer.1"]}, "exclude_modules"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
    ],
)
def test_what_the_config_says(lorakit_json, merged, tasks, changes, named):
    edit(merged, config=lambda c: c.update(changes))
    (finding,) = lorakit_json("verify", merged, "--sources", *tasks, code=1)["other_than_made"]
    assert named in finding


def test_settings_without_effect(lorakit_json, merged, tasks):
    edit(merged, config=lambda c: c.update(inference_mode=False, revision=None, exclude_modules=None))
    assert lorakit_json("verify", merged, "--sources", *tasks)["verdict"] == "yes"


def test_another_version_is_no_excuse(lorakit_json, merged, tasks):
    def other(record):
        record["versions"]["lorakit"] = "0.0.0"
        record["operations"][0]["params"]["k"] = 2

    edit(merged, record=other)
    report = lorakit_json("verify", merged, "--sources", *tasks, code=1)
    assert "ask that version" in report["remark"]


def test_other_files_are_named(lorakit_, lorakit_json, merged, tasks, tmp_path):
    again = save_adapter(load_adapter(tasks[1]), tmp_path / "task1")
    report = lorakit_json("verify", merged, "--sources", tasks[0], again, tasks[2])
    assert report["sources_differ"] == ["task1"]
    text = lorakit_("verify", merged, "--sources", tasks[0], again, tasks[2]).stdout
    assert "'task1' by other files than the record names" in text


def twice(name, of):
    return {"class": name, "params": {}, "inputs": [{"name": "a", **of}, {"name": "b", **of}]}


BOMBS = {
    "each step doubles": lambda r: r.update(
        operations=[
            twice("ConcatMerger", {"operation": i - 1, "output": 0} if i else {"source": 0}) for i in range(24)
        ],
        result={"operation": 23, "output": 0},
    ),
    "one source thousands of times": lambda r: r["operations"][0].update(
        inputs=[{"name": f"a{i}", "source": 0} for i in range(3000)]
    ),
    "thousands of steps": lambda r: r.update(
        operations=[
            {"class": "SVDPruner", "params": {"k": 4}, "inputs": [{"name": "a", "source": 0}]} for _ in range(3000)
        ]
    ),
    "many starts": lambda r: r["operations"][0].update(
        {"class": "LegoMerger", "params": {"k": 4, "random_state": 0, "n_init": 10**9}}
    ),
    "a regular expression": lambda r: r["operations"][0].update(
        {"class": "ModuleSelector", "params": {"include": "([a-z0-9]+[.]?)+!", "syntax": "regex"}}
    ),
}


@pytest.mark.parametrize("edit_record", BOMBS.values(), ids=BOMBS)
def test_a_record_cannot_ask_for_endless_work(lorakit_json, merged, tasks, edit_record):
    edit(merged, record=edit_record)
    started = time.process_time()
    lorakit_json("verify", merged, "--sources", *tasks, code=3)
    assert time.process_time() - started < 30


def test_a_long_pipeline_is_not_endless(lorakit_json, tasks, out):
    from sklearn.pipeline import make_pipeline

    from lorakit import NormBalancer, PicoDamper, SVDPruner

    steps = [SVDPruner(k=8), NormBalancer(), PicoDamper(), NormBalancer(), SVDPruner(k=7), SVDMerger(k=6)]
    (merged,) = make_pipeline(*steps).fit_transform(load_adapters(tasks))
    assert lorakit_json("verify", save_adapter(merged, out), "--sources", *tasks)["verdict"] == "yes"


EVIL = "law\x1b[1A\x1b[2K\ryes: all the same\x07\u202e"


def test_control_characters_of_a_record(lorakit_, merged, tasks, tmp_path):
    def evil(record):
        record["sources"][0]["name"] = EVIL
        record["versions"]["lorakit"] = EVIL
        record["operations"][0] = {"text": EVIL, "inputs": record["operations"][0]["inputs"]}

    edit(merged, record=evil)
    result = lorakit_("verify", merged, "--sources", *tasks, code=3)
    again = save_adapter(load_adapter(merged), tmp_path / "again")
    for text in (result.stdout, result.stderr, (again / "README.md").read_text()):
        assert not set(text) & set("\x1b\r\x07\u202e")
    assert r"\x1b[1A" in result.stdout
    assert sum(line.startswith("yes") for line in result.stdout.splitlines()) == 0


@pytest.mark.parametrize("name", ["ss_base_model_version", "ss_sd_model_name"])
def test_control_characters_of_metadata(lorakit_, tmp_path, name):
    from lorakit.adapters import Provenance

    module = "lora_unet_mid_block_attentions_0_proj_in"
    adapter = Adapter({module: LoraFactors(torch.ones(1, 12), torch.ones(8, 1))}, provenance=Provenance(format="kohya"))
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    save_file(load_file(path), path, {name: EVIL})
    result = lorakit_("inspect", path)
    assert not set(result.output) & set("\x1b\r\x07\u202e")
