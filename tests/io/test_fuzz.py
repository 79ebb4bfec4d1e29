"""Files that are changed at random are refused with a typed error, or read right; they never hang or eat memory."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fuzzing import CONFIG, WEIGHTS, check, encoded, joined, places, samples, split
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
FORMATS = ("peft", "mlx", "kohya", "diffusers", "comfyui", "kinds", "peft kinds")
MORE = ("bare", "xlabs", "control_lora", "vera", "miss", "dora", "pissa", "initial", "fp8", "differences", "biases",
        "kinds of diffusers", "biases of diffusers", "experts")  # fmt: skip
IN_PEFT = ("vera", "miss", "dora", "pissa", "initial", "fp8", "biases", "experts")
# Whatever hangs meets the time limit of every test; a deadline would count what a busy machine does besides.
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.sampled_from(
    ["", ".", "..", "../../x", "/etc/x", "a" * 2000, "\x00", "\n", "\x1b[31m", "\ud800", "\u202e", "é", "q", "h.0.q",
     "lora_A.weight", ".lora_A.weight", "x.lora_B.weight", "unet.x.lora_A.weight", "lora_unet_x.alpha",
     "lora_unet_x.lora_mid.weight", "x.lora_embedding_A", "x.dora_scale", "x.hada_w1_a",
     "base_model.vera_A", "base_model.model.h.0.q.vera_lambda_d", "base_model.model.h.0.q.miss_block",
     "base_model.model.h.0.q.lora_B.bias", "base_model.model.h.0.q.lora_magnitude_vector", "diffusion_model.q.diff_b",
     "diffusion_model.q.diff", "diffusion_model.n.w_norm", "lora_controlnet", "input_blocks.1.1.proj_in.up",
     "lora_unet_a.hada_t1", "lora_unet_b.lokr_w2", "lora_unet_c.lokr_w1", "__metadata__", "0"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, 1e400, -0.0, 1e-320, float("nan"), True]
)
PATTERNS = st.sampled_from(
    ["(a+)+b", "(.*)*x", "(", "h.0.q", "q", "^h.0.q", r"h\.\d+\.q", "(?i)q", "(?=q)q", "q{9999999999}", ""]
)
VALUES = st.recursive(
    NAMES
    | NUMBERS
    | PATTERNS
    | st.none()
    | st.sampled_from(["LORA", "F32", "F16", "BF16", "I8", "F8_E4M3", "X", "pissa", "VERA", "MISS", "corda"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | PATTERNS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def files():
    with tempfile.TemporaryDirectory() as folder:
        return samples(Path(folder))


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "in"


def weights_of(files):
    return next(name for name in files if name.endswith(".safetensors"))


@pytest.mark.parametrize("format", [*FORMATS, *MORE])
def test_the_samples_are_read(files, folder, format):
    assert check(files[format], folder, format) == "read"


def changed(data, tree):
    """Change one place of what JSON holds: another value, another name, or nothing there."""
    there = places(tree)
    if not there:
        return
    node, key = data.draw(st.sampled_from(there))
    change = data.draw(st.sampled_from(["value", "value", "name", "remove", "add"]))
    if change == "remove":
        del node[key]
    elif change == "add" and isinstance(node, dict):
        node[data.draw(NAMES)] = data.draw(VALUES)
    elif change == "name" and isinstance(node, dict):
        node[data.draw(NAMES)] = node.pop(key)
    else:
        node[key] = data.draw(VALUES)


@FUZZ
@given(data=st.data(), format=st.sampled_from((*FORMATS, *MORE)), changes=st.integers(1, 3))
def test_headers(files, folder, data, format, changes):
    name = weights_of(files[format])
    header, body = split(files[format][name])
    tree = json.loads(header)
    for _ in range(changes):
        changed(data, tree)
    length = data.draw(st.sampled_from([None, None, None, 0, 7, 10**8 + 1, 2**63, len(body)]))
    event(check({**files[format], name: joined(encoded(tree), body, length)}, folder, format))


@FUZZ
@given(data=st.data(), format=st.sampled_from(("diffusers", "comfyui", "kohya", "kinds")))
def test_metadata(files, folder, data, format):
    """Formats of one file have their config in the header, as text that holds JSON."""
    name = weights_of(files[format])
    header, body = split(files[format][name])
    tree = json.loads(header)
    metadata = tree.setdefault("__metadata__", {})
    key = data.draw(
        st.sampled_from([*metadata, "lora_adapter_metadata", "lorakit", "ss_network_dim", "ss_network_args"])
    )
    try:
        inner = json.loads(metadata.get(key, "{}"))
        changed(data, inner if isinstance(inner, (dict, list)) and inner else {"unet.r": 2, "unet.lora_alpha": 2})
        metadata[key] = encoded(inner).decode()
    except json.JSONDecodeError:
        metadata[key] = data.draw(NAMES | PATTERNS)
    event(check({**files[format], name: joined(encoded(tree), body)}, folder))


@FUZZ
@given(
    data=st.data(),
    format=st.sampled_from((*FORMATS, *MORE)),
    change=st.sampled_from(["flip", "cut", "insert", "repeat", "random"]),
)
def test_bytes(files, folder, data, format, change):
    name = data.draw(st.sampled_from(sorted(files[format])))
    raw = bytearray(files[format][name])
    at = data.draw(st.integers(0, len(raw) - 1))
    if change == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del raw[at:]
    elif change == "insert":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=16))
    elif change == "repeat":
        raw[at:at] = raw[at : at + data.draw(st.integers(1, 64))]
    else:
        raw[at : at + 16] = data.draw(st.binary(max_size=64))
    event(check({**files[format], name: bytes(raw)}, folder, format))


@FUZZ
@given(data=st.data(), format=st.sampled_from(("peft", "mlx", *IN_PEFT)), changes=st.integers(1, 3))
def test_configs(files, folder, data, format, changes):
    tree = json.loads(files[format][CONFIG])
    for _ in range(changes):
        changed(data, tree)
    event(check({**files[format], CONFIG: encoded(tree)}, folder, format))


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@given(pattern=PATTERNS | st.text("hq.01(){}[]*+?|^$\\d,-:<P=!", max_size=20), value=NUMBERS)
def test_patterns(files, folder, key, pattern, value):
    tree = json.loads(files["peft"][CONFIG])
    tree[key] = {pattern: value, **tree[key]}
    event(check({**files["peft"], CONFIG: encoded(tree)}, folder))


FOUND = {  # by fuzzing, each refused wrongly or not at all when it was found
    "no dtype": ("peft", WEIGHTS, lambda raw: raw.replace(b'"dtype":"F32",', b"", 1)),
    "a dtype that cannot be printed": ("kohya", "kohya.safetensors", lambda raw: raw.replace(b"F32", b"\\u0085", 1)),
    "unhashable kind": ("mlx", CONFIG, lambda raw: raw.replace(b'"lora",', b"[],")),
    "huge scale": ("mlx", CONFIG, lambda raw: raw.replace(b'"scale": 1.0', b'"scale": 1' + b"0" * 400)),
    "long kind": ("peft", CONFIG, lambda raw: raw.replace(b'"LORA"', b'"' + b"L" * 3000 + b'"')),
    "long names beside": ("peft", CONFIG, lambda raw: raw.replace(b'save": null', b'save": ["' + b"s" * 3000 + b'"]')),
    "long pattern": ("peft", CONFIG, lambda raw: raw.replace(b'"h.1.q": 1', b'"' + b"a" * 2000 + b'": []')),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found(files, folder, case):
    format, name, change = FOUND[case]
    raw = files[format][name]
    if name.endswith(".safetensors"):
        header, body = split(raw)
        raw = joined(header, body)
        altered = joined(change(header), body)
    else:
        altered = change(raw)
    assert altered != raw
    assert check({**files[format], name: altered}, folder) == "refused"


MEMORY = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from fuzzing import CONFIG, WEIGHTS, check, joined, samples
from test_fuzz import crafted
folder = Path(sys.argv[2])
files = samples(folder)["peft"]
check(files, folder / "in")  # what is imported and allocated once
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 64 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, changed in crafted(files).items():
    assert sum(map(len, changed.values())) < 20_000, name
    begin = time.process_time()
    assert check(changed, folder / "in") == "refused", name
    print(name, round(time.process_time() - begin, 3))
"""


def crafted(files):
    """Small files that ask for a lot: of memory, of stack, of time."""

    def header(**entries):
        named = {f"base_model.model.q.lora_{key}.weight": value for key, value in entries.items()}
        return {**files, WEIGHTS: joined(encoded(named), b"")}

    def config(**fields):
        return {**files, CONFIG: encoded(json.loads(files[CONFIG]) | fields)}

    def tensor(shape, size=0):
        return {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}

    text = files[CONFIG].decode()
    return {
        "huge tensor": header(A=tensor([2**31, 2**31], 2**64 - 4)),
        "huge tensor of nothing": header(A=tensor([2**62, 0]), B=tensor([0, 2**62])),
        "huge number": header(A=tensor([10**4000, 0])),
        "many axes": header(A=tensor([1] * 3000)),
        "product of many": header(A=tensor([2**62] * 600)),
        "long header": {**files, WEIGHTS: joined(b"{}", b"", 99_999_999)},
        "deep header": {**files, WEIGHTS: joined(b'{"a":' * 3000 + b"1" + b"}" * 3000, b"")},
        "deep config": {**files, CONFIG: b"[" * 9000 + b"]" * 9000},
        "long number in config": {**files, CONFIG: text.replace('"r": 2', f'"r": {"9" * 5000}').encode()},
        "rank": config(r=2**62, rank_pattern={}),
        "alpha": config(lora_alpha=10**300),
        "nested repetition": config(rank_pattern={"((((a{9999}){9999}){9999}){9999})": 1}),
        "many repetitions": config(rank_pattern={f"a{{19{i:02}}}": 1 for i in range(99)}),
        "backtracking": config(rank_pattern={"(h|h.)*(.*)*(.*)*(.*)*x": 3, "h.0.q": 9}),
        "backtracking on a long name": {
            **header(**{"A": tensor([1, 0])}),
            CONFIG: encoded(json.loads(text) | {"rank_pattern": {"(a+)+b": 1}}),
        },
    }


def test_small_files_need_little_memory_and_time(tmp_path):
    """64 MB over what the process had, for all of them; of addresses, so that what is asked for counts too."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-c", MEMORY, str(HERE), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    seconds = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in run.stdout.splitlines()}
    assert len(seconds) == 15
    assert max(seconds.values()) < 20, seconds


def test_a_config_of_a_gigabyte_is_not_read(files, folder):
    check(files["peft"], folder)
    with (folder / CONFIG).open("wb") as file:
        file.truncate(10**9)  # a hole: no disk is used
    from lorakit import load_adapter
    from lorakit.exceptions import CorruptFileError

    with pytest.raises(CorruptFileError, match="has 1000000000 bytes, expected a config of 20000000 at most"):
        load_adapter(folder)
