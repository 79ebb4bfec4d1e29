"""What the fuzz tests share: small files of every format, and what must hold for whatever is made of them."""

import json
import shutil
import warnings

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from lorakit import load_adapter, save_adapter
from lorakit.adapters import Adapter, ModuleKind
from lorakit.exceptions import LorakitError
from lorakit.factors import LoraFactors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
LOHA = {f"hada_w{i}_{side}": shape for i in "12" for side, shape in {"a": (3, 2), "b": (2, 5)}.items()}


def samples(folder):
    """Return the files of a small adapter of every format, by format and name."""
    rng = torch.Generator().manual_seed(0)

    def factors(r, d_in, d_out):
        return LoraFactors(torch.randn(r, d_in, generator=rng), torch.randn(d_out, r, generator=rng))

    kinds = {"h.0.conv": ModuleKind("conv", (3, 3))}
    peft = Adapter({"h.0.q": factors(2, 5, 3), "h.1.q": factors(1, 5, 3), "h.0.conv": factors(2, 18, 4)}, kinds=kinds)
    one_rank = Adapter({"model.layers.0.q_proj": factors(2, 5, 3), "model.layers.1.q_proj": factors(2, 5, 3)})
    made = {
        "peft": (peft, "peft"),
        "mlx": (one_rank, "mlx"),
        "kohya": (peft.rename_modules(lambda m: "lora_unet_" + m.replace(".", "_")), "kohya.safetensors"),
        "diffusers": (peft.rename_modules(lambda m: f"unet.{m}"), "diffusers.safetensors"),
        "comfyui": (peft.rename_modules(lambda m: f"diffusion_model.{m}"), "comfyui.safetensors"),
    }
    found = {}
    for name, (adapter, place) in made.items():
        layout = {"layout": "compact"} if name in ("peft", "kohya") else {}
        path = save_adapter(adapter.with_provenance(format=name), folder / place, overwrite=True, **layout)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found[name] = {file.name: file.read_bytes() for file in files if file.suffix != ".md"}
    found["peft kinds"] = {
        WEIGHTS: save_tensors({f"{PREFIX}h.0.q.{part}": torch.randn(s, generator=rng) for part, s in LOHA.items()}),
        CONFIG: encoded({"peft_type": "LOHA", "r": 2, "alpha": 3, "rank_pattern": {}, "alpha_pattern": {"h.0.q": 5}}),
    }
    found["kinds"] = {"kinds.safetensors": save_tensors(other_kinds(rng))}
    return _Quiet(found)


def other_kinds(rng):
    """The tensors of modules of other kinds than plain LoRA, as LyCORIS writes them."""
    lokr = {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5), "alpha": ()}
    conv = {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (1, 4), "lokr_w2_b": (1, 5), "lokr_t2": (1, 1, 3, 3)}
    shapes = {"lora_unet_a": LOHA | {"alpha": ()}, "lora_unet_b": lokr, "lora_unet_c": conv}
    return {f"{m}.{part}": torch.randn(s, generator=rng) for m, parts in shapes.items() for part, s in parts.items()}


class _Quiet(dict):
    def __repr__(self):  # hypothesis shows arguments
        return "the samples"


def check(files, folder):
    """Write files, read them, and demand a typed error or a right result; return which: 'refused' or 'read'."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    path = folder if len(files) > 1 or WEIGHTS in files else folder / next(iter(files))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of fields that are not known
            adapter = load_adapter(path)
            read = {module: adapter[module] for module in adapter}
    except LorakitError as error:
        assert str(folder) in str(error), f"the message names no file: {error}"  # noqa: PT017
        assert str(error).isprintable(), f"the message could not be printed: {error!r}"  # noqa: PT017
        assert len(str(error)) < 2000, f"the message has {len(str(error))} characters"  # noqa: PT017
        return "refused"
    for module, factors in read.items():
        info = adapter.infos[module]
        assert factors.A.shape == (info.rank, info.d_in), module
        assert factors.B.shape == (info.d_out, info.rank), module
        assert module.isprintable(), ascii(module)
    if adapter.provenance.format == "peft" and WEIGHTS in files:
        _compare(read, files)
    return "read"


def _compare(read, files):
    """Compare with PEFT's rule, written down a second time: linear modules and convolutions."""
    try:
        tensors = load_tensors(files[WEIGHTS])
    except SafetensorError as error:  # it is not stricter than lorakit
        raise AssertionError(f"safetensors refuses what was read: {error}") from error
    config = json.loads(files[CONFIG].decode("utf-8-sig"))
    patterns = {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    if any(set(key) - set("hq.01conv") for keys in patterns.values() for key in keys):
        return  # a regular expression, which Python's re might never finish
    for key, a in tensors.items():
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if not key.endswith(".lora_A.weight") or module not in read:
            continue
        b = tensors[key.removesuffix("A.weight") + "B.weight"]
        alpha = next((v for k, v in patterns["alpha_pattern"].items() if _means(k, module)), config["lora_alpha"])
        r = a.shape[0]
        scale = alpha / (r**0.5 if config.get("use_rslora") else r)
        expected = scale * (b.double().flatten(1) @ a.double().flatten(1))
        error = (read[module].delta().double() - expected).abs().max()
        bound = abs(scale) * (b.double().abs().flatten(1) @ a.double().abs().flatten(1)).max()
        # Sums that float32 cannot hold, and products below its smallest number, are the user's numbers.
        assert error <= 1e-5 * bound + 1e-30 or bound > 1e30, f"{module}: off by {error} of {bound}"


def _means(key, module):
    tail = module[-len(key) :]
    whole = len(module) == len(key) or module[: -len(key)].endswith(".")
    return bool(key) and len(tail) == len(key) and whole and all(k in (c, ".") for k, c in zip(key, tail, strict=True))


def split(raw):
    """Return the header of a safetensors file as text, and its data."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end], raw[end:]


def joined(header, data, length=None):
    """Return a safetensors file of a header and data; of another length than the header's if one is given."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def encoded(tree):
    """Return JSON: text of lone surrogates as JSON writes it, NaN and infinity as Python does."""
    return json.dumps(tree).encode()


def places(tree):
    """Return all places of what JSON holds, as the object or list that a place is in and its key there."""
    found = []
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            found += places(tree[key])
    return found
