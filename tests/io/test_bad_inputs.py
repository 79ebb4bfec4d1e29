"""Every bad input that was thought of, numbered, and what the user gets for it.

Each message names the file (or the adapter, once it is read), the module if there is one, and what to do.
"""

# ruff: noqa: E501 (the table reads better with one case on a line)
import contextlib
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft_files import pair, write_directory

from lorakit import Adapter, LegoMerger, LoraFactors, SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.exceptions import (
    CorruptFileError,
    IncompatibleAdaptersError,
    OutputError,
    UnsafeFileError,
    UnsupportedAdapterError,
)
from lorakit.testing import make_adapters

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
P = "base_model.model.enc.0.q"
A, B = f"{P}.lora_A.weight", f"{P}.lora_B.weight"
FILE, MODULE = "task/adapter_model.safetensors", "module 'enc.0.q'"


def bytes_of(data):
    """A weights file that holds these bytes, or what a function makes of the right ones."""

    def act(folder):
        path = write_directory(folder)
        raw = (path / WEIGHTS).read_bytes()
        (path / WEIGHTS).write_bytes(data(raw) if callable(data) else data)
        load_adapter(path)

    return act


def header_of(change):
    """A weights file whose header is changed as text."""

    def changed(raw):
        end = 8 + int.from_bytes(raw[:8], "little")
        header = change(raw[8:end].decode()).encode()
        return len(header).to_bytes(8, "little") + header + raw[end:]

    return bytes_of(changed)


def tensors(**changes):
    """A weights file of other tensors, by the end of their names; None leaves one out. The first module is read."""

    def act(folder):
        named = pair() | {
            A.replace("lora_A.weight", "") + key.replace("__", "."): value for key, value in changes.items()
        }
        path = write_directory(folder, {key: value for key, value in named.items() if value is not None})
        load_adapter(path)["enc.0.q"]

    return act


def config(**changes):
    return lambda folder: load_adapter(write_directory(folder, **changes))


def files(change, **options):
    """A directory with its files changed by a function of its path."""

    def act(folder):
        path = write_directory(folder)
        change(path)
        load_adapter(path, **options)

    return act


def pickled(obj, **options):
    def change(path):
        (path / WEIGHTS).unlink()
        if isinstance(obj, bytes):
            (path / "adapter_model.bin").write_bytes(obj)
        else:
            torch.save(obj, path / "adapter_model.bin")

    return files(change, **options)


class Malicious:
    """Makes a file in the working directory when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def fit(estimator, *adapters):
    return lambda folder: estimator.fit(list(adapters))


def factors(d_out=3, d_in=5, rank=2):
    return LoraFactors(torch.ones(rank, d_in), torch.ones(d_out, rank))


def named(name, **modules):
    return Adapter({module.replace("_", "."): value for module, value in modules.items()}, name=name)


def save(adapter, place="out", *, make=None, **options):
    def act(folder):
        if make is not None:
            make(folder / place)
        save_adapter(adapter, folder / place, **options)

    return act


def twice(text):
    """Name one tensor two times, on the same bytes: safetensors itself accepts that."""
    entry = re.search(rf'"{re.escape(A)}":\{{[^}}]*\}}', text)[0]
    return text.replace(entry, f"{entry},{entry}")


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(folder):
    path = save_adapter(TASKS[0], folder / "out")
    with files_of_at_most(700):
        save_adapter(TASKS[1], path, overwrite=True)


def device(folder):
    save_adapter(TASKS[0], "/dev/null", overwrite=True)


def bases(same_base):
    def act(folder):
        first, second = (a.with_provenance(base_model=b) for a, b in zip(TASKS, ("org/one", "org/two"), strict=False))
        load_adapters([save_adapter(first, folder / "a"), save_adapter(second, folder / "b")], same_base=same_base)

    return act


TASKS = make_adapters(3, ranks=2, random_state=0)
HUGE = named("huge", m=LoraFactors(torch.full((1, 2), 1e5), torch.ones(2, 1)))
KOHYA = TASKS[1].with_provenance(format="kohya")
Corrupt, Unsafe, Unsupported, Incompatible = (
    CorruptFileError,
    UnsafeFileError,
    UnsupportedAdapterError,
    IncompatibleAdaptersError,
)
F32 = torch.ones


class Case(NamedTuple):
    row: int
    what: str
    act: object  # what goes wrong, in a folder
    error: type
    says: tuple[str, ...]  # file, module if any, what was seen, what to do: regular expressions


CASES = [
    Case(1, "missing", lambda f: [write_directory(f), load_adapter(f / "tasc")], FileNotFoundError, ("tasc: does not exist", "has 'task'")),
    Case(1, "missing folder", lambda f: load_adapter(f / "no" / "task"), FileNotFoundError, ("no/task: does not exist", "neither does the folder")),
    Case(2, "no weights", files(lambda p: (p / WEIGHTS).unlink()), Unsupported, ("task: holds no adapter", f"expected .*{WEIGHTS} and {CONFIG}", "it has adapter_config.json")),
    Case(3, "several", files(lambda p: [(p / WEIGHTS).rename(p / "a.safetensors"), (p / "b.safetensors").touch()]), Unsupported, ("task: ", "a.safetensors, b.safetensors", "pick one")),
    Case(4, "empty", bytes_of(b""), Corrupt, (FILE, "0 bytes", "download it again")),
    Case(5, "truncated", bytes_of(lambda raw: raw[:-4]), Corrupt, (FILE, r"have \d+ bytes, header says \d+", "download the file again")),
    Case(5, "truncated header", bytes_of(lambda raw: raw[:60]), Corrupt, (FILE, "have 60 bytes", "download the file again")),
    Case(6, "trailing", bytes_of(lambda raw: raw + b"xy"), Corrupt, (FILE, "2 bytes follow the data", "download it again")),
    Case(7, "git lfs", bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), Corrupt, (FILE, "Git LFS pointer", "git lfs pull")),
    Case(8, "html", bytes_of(b"\n<!DOCTYPE html><html>Sign in</html>"), Corrupt, (FILE, "HTML page", "download the file itself again")),
    Case(9, "pickle", bytes_of(pickle.dumps({"a": 1})), Unsafe, (FILE, "is a pickle", "Convert it")),
    Case(9, "zipped pickle", bytes_of(b"PK\x03\x04" + b"x" * 90), Unsafe, (FILE, "is a pickle", "save_file")),
    Case(10, "long header", bytes_of((2 * 10**8).to_bytes(8, "little") + b"{" + b" " * 90), Corrupt, (FILE, "limit is 100000000", "download it again")),
    Case(11, "duplicate keys", header_of(twice), Corrupt, (FILE, r"'base_model.model.enc.0.q.lora_A.weight' twice", "download the file again")),
    Case(12, "bin", pickled(pair()), Unsafe, ("task: ", "adapter_model.bin, are a pickle", "save_file.*allow_pickle=True")),
    Case(13, "malicious bin", pickled(pickle.dumps(Malicious()), allow_pickle=True), Unsafe, ("task/adapter_model.bin", "asks for more than tensors, and nothing of it was run", "get a safetensors file of it instead")),
    Case(13, "malicious bin, zipped", pickled({"a": Malicious()}, allow_pickle=True), Unsafe, ("task/adapter_model.bin", "asks for more than tensors, and nothing of it was run", "get a safetensors file of it instead")),
    Case(14, "bin of a list", pickled([torch.ones(2)], allow_pickle=True), Unsupported, ("task/adapter_model.bin", "list", "expected")),
    Case(14, "bin of numbers", pickled({A: 1.0, B: torch.ones(3, 2)}, allow_pickle=True), Unsupported, ("task/adapter_model.bin", "float", "expected")),
    Case(15, "fifo", files(lambda p: [(p / WEIGHTS).unlink(), os.mkfifo(p / WEIGHTS)]), Unsafe, (FILE, r"not a regular file \(a FIFO\)", "copy it to one first")),
    Case(15, "config fifo", files(lambda p: [(p / CONFIG).unlink(), os.mkfifo(p / CONFIG)]), Unsafe, (f"task/{CONFIG}", "a FIFO", "copy it")),
    Case(15, "device", lambda f: load_adapter("/dev/zero"), Unsafe, ("/dev/zero", "character device", "copy it")),
    Case(16, "config not JSON", files(lambda p: (p / CONFIG).write_text('{"r": 1,\n "x" 2}')), Corrupt, (f"task/{CONFIG}", "line 2, column 6", "download it again")),
    Case(17, "config missing", files(lambda p: (p / CONFIG).unlink()), Unsupported, (f"task/{CONFIG}: is missing", "lora_alpha / r", "assume_alpha=")),
    Case(18, "no alpha", config(lora_alpha=...), Unsupported, (f"task/{CONFIG}", "has no lora_alpha", "assume_alpha=")),
    Case(19, "r 0", config(r=0), Unsupported, (f"task/{CONFIG}", "r is 0, expected 1 or more", "correct the file")),
    Case(19, "r negative", config(r=-8), Unsupported, (f"task/{CONFIG}", "r is -8", "correct the file")),
    Case(20, "other rank", config(r=4), Corrupt, (FILE, MODULE, "has rank 2, adapter_config.json says 4", "correct r or rank_pattern")),
    Case(21, "no peft_type", config(peft_type=...), Unsupported, (f"task/{CONFIG}", "peft_type is None, expected 'LORA'", "cannot be merged")),
    Case(21, "OFT", config(peft_type="OFT"), Unsupported, (f"task/{CONFIG}", "peft_type is 'OFT'", "cannot be merged")),
    Case(21, "unknown", config(peft_type="NEXT"), Unsupported, (f"task/{CONFIG}", "peft_type is 'NEXT'", "cannot be merged")),
    Case(22, "DoRA", config(use_dora=True), Unsupported, (f"task/{CONFIG}", "use_dora is set: DoRA", "merge_and_unload")),
    Case(22, "lora_bias", config(lora_bias=True), Unsupported, (f"task/{CONFIG}", "lora_bias is set", "differences='keep', for methods that add updates up")),
    Case(22, "aLoRA", config(alora_invocation_tokens=[1]), Unsupported, (f"task/{CONFIG}", "aLoRA", "merge_and_unload")),
    Case(22, "KaSA", config(kasa_config={"beta": 1}), Unsupported, (f"task/{CONFIG}", "KaSA", "merge_and_unload")),
    Case(22, "DoRA by its tensors", tensors(lora_magnitude_vector=F32(3)), Unsupported, (FILE, "lora_magnitude_vector", "DoRA", "train a plain LoRA|merge")),
    *(
        Case(23, init, config(init_lora_weights=init), Unsupported, (f"task/{CONFIG}", f"'{init}': the base model was changed", remedy))
        for init, remedy in (("pissa", "convert it"), ("pissa_niter_4", "convert it"), ("olora", "convert it"), ("corda", "convert it"), ("loftq", "merge_and_unload"))
    ),
    Case(24, "modules_to_save", config(modules_to_save=["score"]), Unsupported, (FILE, r"modules_to_save=\['score'\]", "modules_to_save='drop'")),
    Case(24, "trainable tokens", config(trainable_token_indices=[3]), Unsupported, (FILE, "trainable_token_indices", "modules_to_save='drop'")),
    Case(25, "A without B", tensors(lora_B__weight=None), Corrupt, (FILE, MODULE, "lacks .*B", "save or download it again")),
    Case(26, "inner dimensions", tensors(lora_B__weight=F32(3, 4)), Corrupt, (FILE, MODULE, r"A \(2, 5\) and B \(3, 4\)", "download the file again")),
    Case(27, "NaN", tensors(lora_B__weight=torch.full((3, 2), torch.nan)), Corrupt, (FILE, MODULE, "6 NaN or infinite values of 6", "use an earlier checkpoint")),
    Case(27, "infinite", tensors(lora_A__weight=torch.full((2, 5), -torch.inf)), Corrupt, (FILE, MODULE, "10 NaN or infinite", "use an earlier checkpoint")),
    Case(28, "zero size", tensors(lora_A__weight=F32(2, 0)), Corrupt, (FILE, MODULE, r"empty, shape \(2, 0\)", "download the file again")),
    Case(28, "rank 0", tensors(lora_A__weight=F32(0, 5), lora_B__weight=F32(3, 0)), Corrupt, (FILE, MODULE, r"empty, shape \(0, 5\)", "download the file again")),
    Case(29, "int8", tensors(lora_A__weight=F32(2, 5).to(torch.int8)), Unsupported, (FILE, MODULE, "stored as I8, expected one of F64", "dequantize")),
    Case(29, "fp8 with a scale", tensors(lora_A__weight=F32(2, 5).to(torch.float8_e4m3fn), lora_A__scale_weight=F32(1)), Unsupported, (FILE, "scale_weight' belongs to quantized weights", "dequantize")),
    Case(29, "exponents", header_of(lambda t: t.replace('"F32","shape":[2,5]', '"F8_E8M0","shape":[2,20]')), Unsupported, (FILE, MODULE, "stored as F8_E8M0", "dequantize")),
    Case(29, "fp8 with NaN", tensors(lora_A__weight=F32(2, 5).fill_(torch.nan).to(torch.float8_e4m3fn)), Corrupt, (FILE, MODULE, "has 10 NaN or infinite values of 10", "an earlier checkpoint")),
    Case(29, "fp8 that is truncated", header_of(lambda t: t.replace('"F32","shape":[2,5]', '"F8_E5M2","shape":[2,5]')), Corrupt, (FILE, r"40 bytes of data for shape \(2, 5\) of F8_E5M2", "copy or download")),
    Case(29, "complex", header_of(lambda t: t.replace('"F32","shape":[2,5]', '"C64","shape":[1,5]')), Unsupported, (FILE, MODULE, "stored as C64", "convert it")),
    Case(29, "fp4", header_of(lambda t: t.replace('"F32","shape":[2,5]', '"F4","shape":[2,40]')), Unsupported, (FILE, MODULE, "stored as F4", "convert it")),
    Case(30, "a model", tensors(lora_A__weight=None, lora_B__weight=None, w=F32(1), v=F32(1), u=F32(1), x=F32(1)), Unsupported, (FILE, r"first keys are \['\S+', '\S+', '\S+'\]", "is it another kind of adapter")),
    Case(30, "nothing", tensors(lora_A__weight=None, lora_B__weight=None), Unsupported, (FILE, r"first keys are \[\]", "expected names like")),
    Case(31, "shapes", fit(SVDMerger(), named("a", q=factors(3)), named("b", q=factors(4))), Incompatible, ("module 'q'", "3 x 5 .*'a'", "4 x 5 .*'b'", "different base models")),
    Case(32, "disjoint", fit(SVDMerger(), named("a", q=factors()), named("b", v=factors())), Incompatible, ("'a' shares no module", "has 'q'", "they have 'v'", "rename_modules")),
    Case(32, "prefix", fit(SVDMerger(), named("a", q=factors()), named("b", model_q=factors())), Incompatible, ("'a'", "with 'model.' in front they match", "rename_modules")),
    Case(33, "bases, strict", bases("strict"), Incompatible, ("'org/one' .'a'.", "'org/two' .'b'.", "same_base='warn'")),
    Case(34, "families", fit(SVDMerger(), TASKS[0], KOHYA), Incompatible, ("'task0' is peft", "'task1' is kohya", "convert")),
    Case(35, "weights: too few", fit(SVDMerger(weights=[1, 2]), *TASKS), ValueError, (r"weights must hold one number for each of 3 adapters; got shape \(2,\)",)),
    Case(35, "weights: NaN", fit(SVDMerger(weights=[1, float("nan"), 1]), *TASKS), ValueError, ("weights must be finite and not all zero; got .*nan",)),
    Case(35, "weights: zero", fit(SVDMerger(weights=[0, 0, 0]), *TASKS), ValueError, (r"not all zero; got \[0.0, 0.0, 0.0\]",)),
    Case(35, "weights: a name missing", fit(SVDMerger(weights={"task0": 1}), *TASKS), ValueError, (r"no weight for the adapters \['task1', 'task2'\]",)),
    Case(36, "k 0", fit(LegoMerger(k=0), *TASKS), ValueError, ("'k' parameter of LegoMerger must be", "Got 0")),
    Case(36, "k above all MSUs", fit(LegoMerger(k=7), *TASKS), ValueError, ("k=7 is above 6", "module 'layer.0'", "choose a smaller k")),
    Case(36, "k above the limit", fit(SVDMerger(k=9), named("a", q=factors(rank=4)), named("b", q=factors(rank=4))), ValueError, ("k=9 is above 8", "module 'q'", "choose a smaller k")),
    Case(37, "overflow", save(HUGE, dtype=torch.float16), OutputError, ("huge: module 'm'", r"1e\+05", r"6.55e\+04", "torch.bfloat16")),
    Case(38, "full disk", full_disk, OutputError, ("out: cannot be written: File too large", "nothing was changed", "free some space")),
    Case(39, "exists", save(TASKS[0], make=Path.mkdir), OutputError, ("out: exists", "overwrite=True")),
    Case(39, "other files in it", save(TASKS[0], make=lambda p: [p.mkdir(), (p / "notes.txt").touch()], overwrite=True), OutputError, ("out: also contains notes.txt", "another path")),
    Case(41, "device", device, OutputError, ("/dev/null: exists and is not a directory", "another path")),
    Case(41, "link", save(TASKS[0], make=lambda p: p.symlink_to(p.parent), overwrite=True), OutputError, ("out: is a symbolic link", "write to /")),
    Case(41, "dangling link", save(TASKS[0], make=lambda p: p.symlink_to(p.parent / "x"), overwrite=True), OutputError, ("out: is a symbolic link", "write to /.*/x")),
    Case(41, "fifo", save(TASKS[0], make=os.mkfifo, overwrite=True), OutputError, ("out: exists and is not a directory", "another path")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row:02}-{case.what}")
def test_row(tmp_path, monkeypatch, case):
    folder, here = tmp_path / "in", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(case.error) as caught:
        case.act(folder)
    text = str(caught.value)
    assert type(caught.value) is case.error or case.error is ValueError, text
    assert case.error is not ValueError or not hasattr(caught.value, "errno")
    for part in case.says:
        assert re.search(part, text), f"{part!r} is not in {text!r}"
    assert not list(here.iterdir())  # nothing was run or written by the way


def test_every_row_of_the_table_is_here():
    elsewhere = {33, 40, 42}  # 33 a warning too; the other two are no errors of a call, and stand below
    assert {case.row for case in CASES} | elsewhere == set(range(1, 43))


def test_row_33_is_a_warning_by_default():
    first, second = (a.with_provenance(base_model=b) for a, b in zip(TASKS, ("org/one", "org/two"), strict=False))
    with pytest.warns(UserWarning, match="different base models: 'org/one' .'task0'., 'org/two' .'task1'."):
        SVDMerger().fit([first, second])


def test_row_38_leaves_the_old_output(tmp_path):
    with pytest.raises(OutputError):
        full_disk(tmp_path)
    assert load_adapter(tmp_path / "out")["layer.0"].A.equal(TASKS[0]["layer.0"].A)
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208


@pytest.mark.parametrize("way", ["whole", "interrupted"])
def test_row_40_an_output_that_is_an_input_is_replaced_at_the_end(tmp_path, monkeypatch, way):
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in TASKS]
    expected = SVDMerger(k=2).fit(TASKS).merged_["layer.0"].delta()
    before = (paths[0] / WEIGHTS).read_bytes()
    merged = SVDMerger(k=2).fit(load_adapters(paths)).merged_
    if way == "interrupted":
        monkeypatch.setattr("lorakit.io.formats.peft.codec.model_card", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(merged, paths[0], overwrite=True)
        assert (paths[0] / WEIGHTS).read_bytes() == before
    else:
        save_adapter(merged, paths[0], overwrite=True)
        torch.testing.assert_close(load_adapter(paths[0])["layer.0"].delta(), expected)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it
import lorakit.io.formats.peft.codec as peft
from lorakit.cli import main
write = peft.write_tensors
def writes_half(path, *args, **kwargs):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGINT)
    write(path, *args, **kwargs)
peft.write_tensors = writes_half
main(["merge", *sys.argv[2:], "-o", sys.argv[1], "-k", "2", "-m", "svd", "--overwrite"])
"""


def test_row_42_ctrl_c_while_writing(tmp_path):
    out, *paths = (save_adapter(adapter, tmp_path / adapter.name) for adapter in TASKS)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", INTERRUPTED, out, *paths]
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 128 + signal.SIGINT
    assert run.stderr.strip() == "lorakit: interrupted"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert {entry.name for entry in tmp_path.iterdir()} == {adapter.name for adapter in TASKS}


def test_strict_on_the_command_line(tmp_path):
    from click.testing import CliRunner

    from lorakit.cli import main

    paths = [
        str(save_adapter(adapter.with_provenance(base_model=base), tmp_path / adapter.name))
        for adapter, base in zip(TASKS, ("org/one", "org/two", None), strict=True)
    ]
    result = CliRunner().invoke(main, ["merge", *paths, "-o", str(tmp_path / "out"), "-q", "--strict"])
    assert result.exit_code == 2
    assert "name different base models" in result.output
    assert "leave out --strict" in result.output
    assert not (tmp_path / "out").exists()
