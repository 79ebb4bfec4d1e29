"""More bad inputs than the numbered ones of test_bad_inputs.py: each gets its typed error, and the message says what to do."""

# ruff: noqa: E501 (the tables read better with one case on a line)
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft_files import pair, write_directory
from safetensors.torch import load_file, save_file

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, UnsafeFileError, UnsupportedAdapterError


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
P = "base_model.model.enc.0.q"


def rewrite_header(path, change):
    raw = (path / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = change(raw[8:end].decode())
    (path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header.encode() + raw[end:])


def put(data):
    return lambda path: (path / WEIGHTS).write_bytes(data)


FILES = {
    "tiny": (put(b"abc"), CorruptFileError, r"3 bytes.*again"),
    "header not JSON": (put((9).to_bytes(8, "little") + b"{nonsense"), CorruptFileError, r"not JSON.*again"),
    "header a list": (put((2).to_bytes(8, "little") + b"[]"), CorruptFileError, r"expected an object"),
    "wrong shape": (lambda p: rewrite_header(p, lambda t: t.replace("[2,5]", "[2,6]")), CorruptFileError, r"40 bytes of data for shape \(2, 6\)"),
    "bad entry": (lambda p: rewrite_header(p, lambda t: t.replace("[2,5]", "[2,-5]")), CorruptFileError, r"expected dtype, shape"),
    "hole": (lambda p: rewrite_header(p, lambda t: t.replace("[40,64]", "[44,68]")), CorruptFileError, r"overlap or hole"),
    "complex": (lambda p: rewrite_header(p, lambda t: t.replace('"F32","shape":[2,5]', '"C64","shape":[1,5]')), UnsupportedAdapterError, r"module 'enc.0.q'.*stored as C64, expected"),
    "config a list": (lambda p: (p / CONFIG).write_text("[]"), CorruptFileError, r"expected an object"),
    "config not text": (lambda p: (p / CONFIG).write_bytes(b"\xff\xfe{}"), CorruptFileError, r"not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_damaged_files(write_peft, case):
    damage, error, message = FILES[case]
    path = write_peft()
    damage(path)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


FIELDS = [
    ({"peft_type": ...}, UnsupportedAdapterError, "peft_type is None, expected 'LORA'"),
    ({"peft_type": "OFT"}, UnsupportedAdapterError, "peft_type is 'OFT'"),
    ({"peft_type": ["LORA"]}, UnsupportedAdapterError, "peft_type is"),
    ({"peft_type": "LOHA", "alpha": 4}, CorruptFileError, "holds no tensors of LoHa"),
    ({"lora_alpha": ...}, UnsupportedAdapterError, "no lora_alpha.*add the value.*assume_alpha="),
    ({"lora_alpha": "16"}, CorruptFileError, "lora_alpha is '16', expected a number"),
    ({"lora_alpha": float("nan")}, CorruptFileError, "lora_alpha is nan"),
    ({"lora_alpha": True}, CorruptFileError, "lora_alpha is True"),
    ({"r": 0}, UnsupportedAdapterError, "r is 0, expected 1 or more"),
    ({"r": -8}, UnsupportedAdapterError, "r is -8"),
    ({"r": 2.5}, CorruptFileError, "a whole number"),
    ({"r": 4}, CorruptFileError, r"module 'enc.0.q' has rank 2, adapter_config.json says 4.*correct"),
    ({"rank_pattern": {"q": 3}}, CorruptFileError, "module 'enc.0.q' has rank 2, adapter_config.json says 3"),
    ({"rank_pattern": {"q": 0}}, UnsupportedAdapterError, r"rank_pattern\['q'\] is 0"),
    ({"rank_pattern": [1]}, CorruptFileError, "rank_pattern is"),
    ({"alpha_pattern": {"(": 1}}, CorruptFileError, "no regular expression"),
    ({"use_dora": True}, UnsupportedAdapterError, "use_dora is set: DoRA.*merge_and_unload"),
    ({"kasa_config": {"beta": 1}}, UnsupportedAdapterError, "KaSA.*merge_and_unload"),
    ({"use_bdlora": {"nblocks": 2}}, UnsupportedAdapterError, "BD-LoRA"),
    ({"use_qalora": True}, UnsupportedAdapterError, "QALoRA"),
    ({"alora_invocation_tokens": [1]}, UnsupportedAdapterError, "aLoRA"),
    ({"arrow_config": {"top_k": 2}}, UnsupportedAdapterError, "Arrow"),
    ({"monteclora_config": {"x": 2}}, UnsupportedAdapterError, "MonteCLoRA"),
    ({"lora_bias": True}, UnsupportedAdapterError, "lora_bias is set.*differences='drop'"),
    ({"bias": "all"}, UnsupportedAdapterError, "bias is 'all', expected 'none'.*train with"),
    ({"layer_replication": [[0, 2]]}, UnsupportedAdapterError, "repeated"),
    ({"target_parameters": "mlp.experts.w"}, CorruptFileError, "expected a list of texts"),
    ({"modules_to_save": [1]}, CorruptFileError, "expected a list of texts"),
    ({"trainable_token_indices": ["x"]}, CorruptFileError, "expected a list of token numbers"),
    ({"modules_to_save": ["score"]}, UnsupportedAdapterError, r"modules_to_save=\['score'\].*'drop'"),
    ({"trainable_token_indices": [3]}, UnsupportedAdapterError, "trainable_token_indices.*'drop'"),
    *(
        ({"init_lora_weights": init}, UnsupportedAdapterError, f"'{init}': the base model was changed.*convert")
        for init in ("pissa", "pissa_niter_16", "olora", "corda", "lora_ga")
    ),
    ({"init_lora_weights": "loftq"}, UnsupportedAdapterError, "'loftq': the base model was changed.*merge_and_unload"),
]


@pytest.mark.parametrize(("changes", "error", "message"), FIELDS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_refused_configs(write_peft, changes, error, message):
    path = write_peft(**changes)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("init", [True, False, "eva", "orthogonal", "gaussian", "mica"])
def test_harmless_inits_are_read(write_peft, init):
    assert len(load_adapter(write_peft(init_lora_weights=init))) == 1


def shaped(a, b, dtype=torch.float32):
    return {f"{P}.lora_A.weight": torch.ones(a).to(dtype), f"{P}.lora_B.weight": torch.ones(b).to(dtype)}


BARE = shaped((2, 5), (3, 2))
TENSORS = {
    "A without B": ({f"{P}.lora_A.weight": torch.ones(2, 5)}, CorruptFileError, r"module 'enc.0.q'.*lacks \['B'\]"),
    "mixed kinds": ({f"{P}.lora_A.weight": torch.ones(2, 5), f"{P}.lora_embedding_B": torch.ones(3, 2)}, CorruptFileError, "module 'enc.0.q'.*expected the pair"),
    "inner": (shaped((2, 5), (3, 4)), CorruptFileError, r"module 'enc.0.q'.*A \(2, 5\) and B \(3, 4\).*inner dimensions"),
    "three axes": (shaped((2, 5, 1), (3, 2)), CorruptFileError, r"module 'enc.0.q'.*expected \(r, in\)"),
    "grouped": (shaped((2, 8, 3, 3), (4, 1, 1, 1)), UnsupportedAdapterError, "module 'enc.0.q'.*grouped convolution"),
    "zero size": (shaped((2, 0), (3, 2)), CorruptFileError, r"module 'enc.0.q'.*empty, shape \(2, 0\)"),
    "rank 0": (shaped((0, 5), (3, 0)), CorruptFileError, "module 'enc.0.q'.*empty"),
    "int": (shaped((2, 5), (3, 2), torch.int8), UnsupportedAdapterError, "module 'enc.0.q'.*stored as I8.*dequantize"),
    "scaled fp8": ({**shaped((2, 5), (3, 2), torch.float8_e4m3fn), f"{P}.lora_A.weight_scale": torch.ones(2)}, UnsupportedAdapterError, "weight_scale' belongs to quantized weights.*dequantize"),
    "none": ({}, UnsupportedAdapterError, r"no LoRA factors: its first keys are \[\]"),
    "a model": ({f"h.{i}.weight": torch.ones(1) for i in range(5)}, UnsupportedAdapterError, r"\['h.0.weight', 'h.1.weight', 'h.2.weight'\]"),
    "dora": ({**BARE, f"{P}.lora_magnitude_vector": torch.ones(3)}, UnsupportedAdapterError, "DoRA.*plain LoRA"),
    "lora_bias": ({**BARE, f"{P}.lora_B.bias": torch.ones(3)}, UnsupportedAdapterError, "lora_bias"),
    "variant": ({**BARE, f"{P}.lora_diag": torch.ones(3)}, UnsupportedAdapterError, "lora_diag' belongs to a kind of LoRA not"),
    "several adapters": ({**BARE, **{k.replace("q.lora_A", "k.lora_A.x").replace("q.lora_B", "k.lora_B.x"): v.clone() for k, v in BARE.items()}}, UnsupportedAdapterError, "several adapters"),
    "mixed prefix": ({**BARE, "k.lora_A.weight": torch.ones(2, 5), "k.lora_B.weight": torch.ones(3, 2)}, UnsupportedAdapterError, "lacks the prefix"),
    "parameters": ({k.replace(".q.", ".q.base_layer."): v for k, v in BARE.items()}, UnsupportedAdapterError, "target_parameters"),
    "beside": ({**BARE, "base_model.model.score.weight": torch.ones(3)}, UnsupportedAdapterError, "score.weight.*'drop'"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_refused_tensors(write_peft, case):
    tensors, error, message = TENSORS[case]
    path = write_peft(tensors)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("slot", "value"), [("A", torch.nan), ("B", torch.inf), ("B", -torch.inf)])
def test_non_finite_weights_are_counted(write_peft, slot, value):
    tensors = pair()
    tensors[f"{P}.lora_{slot}.weight"].view(-1)[:3] = value
    adapter = load_adapter(write_peft(tensors))
    with pytest.raises(CorruptFileError, match=rf"module 'enc.0.q': '{P}.lora_{slot}.weight' has 3 NaN or infinite"):
        adapter["enc.0.q"]


def test_missing_paths_name_what_is_near(write_peft, tmp_path):
    path = write_peft()
    with pytest.raises(FileNotFoundError, match=r"tasc: does not exist; .* has 'task'"):
        load_adapter(tmp_path / "tasc")
    with pytest.raises(FileNotFoundError, match="neither does the folder"):
        load_adapter(tmp_path / "no" / "where")
    with pytest.raises(UnsupportedAdapterError, match="adapters are in task"):
        load_adapter(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="symbolic link to nothing"):
        load_adapter(tmp_path / "link")
    with pytest.raises(UnsupportedAdapterError, match="expected a directory"):
        load_adapter(path / CONFIG)
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(UnsafeFileError, match=r"w.bin: weights are a pickle"):
        load_adapter(tmp_path / "w.bin")
    with pytest.raises(UnsafeFileError, match="character device"):
        load_adapter("/dev/null")


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path):
    save_file(pair(), tmp_path / WEIGHTS)
    rewrite_header(tmp_path, lambda text: text.ljust(0x280))  # its length, 640, is the bytes 80 02
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    assert (tmp_path / WEIGHTS).read_bytes()[:2] == b"\x80\x02"
    assert load_adapter(tmp_path)["enc.0.q"].rank == 2


def test_truncated_while_open(write_peft):
    path = write_peft()
    adapter = load_adapter(path)
    times = (path / WEIGHTS).stat()
    os.truncate(path / WEIGHTS, times.st_size - 4)
    seen = (times.st_size - 4, (path / WEIGHTS).stat().st_mtime_ns)
    adapter._reader.stamps = ((path / WEIGHTS, seen), *adapter._reader.stamps[1:])
    with pytest.raises(CorruptFileError, match=r"cannot read .*lora_A"):
        adapter["enc.0.q"]


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from lorakit import load_adapter
adapters = [load_adapter(path) for path in sys.argv[1:]]
read = [adapter["enc.0.q"] for adapter in adapters]
held = []
try:
    while True:
        held.append(open(sys.argv[0]))
except OSError:
    pass
try:
    for adapter in adapters:
        adapter["enc.0.q"]
except OSError as error:
    print(len(read), error)
"""


@pytest.mark.slow
def test_more_adapters_than_open_files(write_peft, tmp_path):
    """Fewer are kept open where few may be open; and if none may, the message does not say that a file is missing."""
    pytest.importorskip("resource")
    (tmp_path / "many.py").write_text(MANY)
    paths = [write_peft(folder=f"task{i}") for i in range(100)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, tmp_path / "many.py", *paths], capture_output=True, text=True, env=env, check=False
    )
    assert run.stdout.startswith("100 [Errno 24] too many files are open: raise the limit (ulimit -n)"), (
        run.stdout + run.stderr
    )


FIRST = """
import resource, sys
from lorakit import load_adapter
load_adapter(sys.argv[1], allow_pickle=True)["enc.0.q"]  # imports what is imported late
adapters = [load_adapter(path, allow_pickle=True) for path in sys.argv[2:]]
from lorakit.files.pickled import _contents
_contents.cache_clear()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(open(sys.argv[0]))
except OSError:
    pass
for read in (lambda: adapters[0]["enc.0.q"], lambda: load_adapter(sys.argv[1], allow_pickle=True)):
    try:
        read()
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_pickle_or_a_config_when_no_file_can_be_opened(write_peft, tmp_path):
    pytest.importorskip("resource")
    (tmp_path / "first.py").write_text(FIRST)
    paths = [write_peft(folder=f"task{i}") for i in range(2)]
    for path in paths:
        torch.save(load_file(path / WEIGHTS), path / "adapter_model.bin")
        (path / WEIGHTS).unlink()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, tmp_path / "first.py", *paths], capture_output=True, text=True, env=env, check=False
    )
    said = run.stdout.splitlines()
    assert len(said) == 2, run.stdout + run.stderr
    assert all(line.startswith("[Errno 24] ") and "too many" in line.lower() for line in said), said
    assert "raise the limit (ulimit -n)" in said[0]
