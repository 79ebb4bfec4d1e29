"""Small files that ask for much work: make one, answer it in this process, and say what that took.

``python tests/io/small_files.py CASE FOLDER`` prints seconds of processor time, megabytes of memory, and the answer.
"""

import json
import os
import resource
import sys
import warnings
from pathlib import Path

MOST_BYTES = 500_000_000


def directory(folder, shapes, data=None, **config):
    """Write a PEFT directory of half-precision tensors without a copy of their data in memory."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return raw_directory(folder, json.dumps(header, separators=(",", ":")).encode(), end, **config)


def raw_directory(folder, header, n_bytes, **config):
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes(n_bytes))
    fields = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def modules(names, r=1, d_in=1, d_out=1):
    keys = {}
    for name in names:
        keys[f"base_model.model.{name}.lora_A.weight"] = [r, d_in]
        keys[f"base_model.model.{name}.lora_B.weight"] = [d_out, r]
    return keys


def dotted(n, length):
    """Names of one length whose dots are in different places; as keys they have to be compared one by one."""
    return ["a" * i + "." + "b" * (length - i - 1) for i in range(1, min(n, length - 1))]


def target_parameters(folder):
    names = [f"m{i}.w" for i in range(60_000)]
    return directory(folder, modules(names), target_parameters=[f"x{i}" for i in range(150_000)], r=1)


def long_class(folder):
    key = "[" + "".join(chr(0x4E00 + i) for i in range(20_000)) + "]"
    return directory(folder, modules(f"m{i}" for i in range(40_000)), rank_pattern={key: 2})


def many_expressions(folder):
    keys = {f"a{i}(b|c)*(d|e{{1,3}})+f.*{'(x?y)*' * 40}": 1 for i in range(4_000)}
    return directory(folder, modules(f"m{i}" for i in range(20_000)), rank_pattern=keys, alpha_pattern=keys)


def short_expressions(folder):
    keys = {f".*(a|b)*a(a|b){{9}}(c|{i})": 1 for i in range(900)}
    names = (f"{'ab' * 20}{i}" for i in range(20_000))
    return directory(folder, modules(names), rank_pattern=keys, alpha_pattern=keys)


def plain_keys(folder):
    keys = {f"model.layers.{i}.q_proj": 1 for i in range(100_000)}
    return directory(folder, modules(f"model.layers.{i}.q_proj" for i in range(25_000)), rank_pattern=keys)


def dotted_keys(folder):
    names = dotted(2_200, 900)
    keys = dict.fromkeys(names, 1)
    return directory(folder, modules(f"{'c' * 899}{i % 10}.{i}" for i in range(10)) | modules(
        "b" * i + "a" * (900 - i) for i in range(800)), rank_pattern=keys, alpha_pattern=keys)  # fmt: skip


def objects_in_header(folder):
    """The largest header that is allowed; as a list of objects it took 2.9 GB."""
    return raw_directory(folder, b"[" + b",".join([b'{"":0}'] * 13_800_000) + b"]", 0)


def lists_in_header(folder):
    return raw_directory(folder, b"[" + b",".join([b"[]"] * 3_300_000) + b"]", 0)


def texts_in_config(folder):
    return directory(folder, modules(["a"]), target_modules=["xy"] * 1_900_000)


def tiny_tensors(folder):
    return directory(folder, modules(f"layers.{i}.q" for i in range(50_000)))


def too_many_experts(folder):
    names = [f"l{i}.experts" for i in range(250)]
    return directory(folder, modules(names, r=10_000), target_parameters=["experts.w"])


def experts(folder):
    names = [f"l{i}.experts" for i in range(49)]
    return directory(folder, modules(names, r=10_000), target_parameters=["experts.w"])


def wide_rank(folder):
    return directory(folder, modules(["q"], r=1_000_000), r=1_000_000)


def locon(folder):
    path = folder / "locon.safetensors"
    shapes = {}
    for i in range(4):
        shapes |= {f"lora_unet_m{i}.lora_down.weight": [1, 25_000, 1, 1], f"lora_unet_m{i}.lora_mid.weight": [
            25_000, 1, 1, 1], f"lora_unet_m{i}.lora_up.weight": [1, 25_000, 1, 1]}  # fmt: skip
    directory(folder, shapes)
    (folder / "adapter_model.safetensors").rename(path)
    (folder / "adapter_config.json").unlink()
    return path


CASES = {
    function.__name__: function
    for function in (
        target_parameters,
        long_class,
        many_expressions,
        short_expressions,
        plain_keys,
        dotted_keys,
        objects_in_header,
        lists_in_header,
        texts_in_config,
        tiny_tensors,
        too_many_experts,
        experts,
        wide_rank,
        locon,
    )
}


def answer(path):
    """Open an adapter and read its first modules; or return why not."""
    from lorakit import load_adapter
    from lorakit.exceptions import LorakitError

    try:
        adapter = load_adapter(path)
        for module, _ in zip(adapter, range(4), strict=False):
            adapter[module]
    except LorakitError as error:
        return f"{type(error).__name__}: {error}"
    return f"{len(adapter)} modules"


def main(case, folder):
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    (Path(folder) / "warm").mkdir()
    answer(directory(Path(folder) / "warm", modules(["q"])))  # all that is imported is, and torch has its threads
    (Path(folder) / "case").mkdir()
    path = CASES[case](Path(folder) / "case")
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * os.sysconf("SC_PAGESIZE") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (200, 200))
    before = resource.getrusage(resource.RUSAGE_SELF)
    said = answer(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(file.stat().st_size for file in Path(folder, "case").iterdir())
    print(f"{seconds:.1f} s {(after.ru_maxrss - before.ru_maxrss) // 1000} MB {size / 1e6:.1f} MB {said[:300]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
