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
    return _Quiet(found | {name: with_config(*made) for name, made in more_samples(rng).items()})


BASE = {"h.0.q.weight": torch.eye(3, 5) + 1, "h.1.q.weight": torch.ones(3, 5)}
BEFORE = "before"  # the adapter that training began with, beside the folder of the sample
# What reading the samples of a name needs beside their files
OPTIONS = {
    "vera": {"base": BASE},
    "miss": {"base": BASE},
    "dora": {"base": BASE},
    "pissa": {"base": BASE},
    "initial": {"initial": BEFORE},
    "differences": {"differences": "keep"},
    "biases": {"differences": "keep"},
    "biases of diffusers": {"differences": "keep"},
    "experts": {},
    "control_lora": {"modules_to_save": "first"},
}


def random_tensors(rng, prefix, dtype=torch.float32, **shapes):
    """Return tensors of these shapes; two underscores stand for a dot."""
    return {
        prefix + part.replace("__", "."): torch.randn(shape, generator=rng).to(dtype) for part, shape in shapes.items()
    }


def with_config(tensors, config):
    """Return the files of an adapter: a PEFT directory if there is a config, else one file."""
    if config is None:
        return {"file.safetensors": save_tensors(tensors)}
    return {WEIGHTS: save_tensors(tensors), CONFIG: encoded({"r": 2, "lora_alpha": 3} | config)}


def more_samples(rng):
    """Return tensors and config of adapters whose readers need more, or that are of other formats or dtypes."""
    module = f"{PREFIX}h.0.q."
    plain = {"lora_A__weight": (2, 5), "lora_B__weight": (3, 2)}
    shared = {"vera_A": (2, 5), "vera_B": (3, 2), "model__h__0__q__vera_lambda_b": (3,),
              "model__h__0__q__vera_lambda_d": (2,)}  # fmt: skip
    added = {"q__lora_A__weight": (2, 5), "q__lora_B__weight": (3, 2), "q__diff_b": (3,), "n__w_norm": (5,),
             "n__b_norm": (5,), "m__diff": (3, 4)}  # fmt: skip
    control = {"input_blocks__1__1__proj_in__down": (2, 5), "input_blocks__1__1__proj_in__up": (3, 2),
               "zero_convs__0__weight": (2, 2)}  # fmt: skip
    xlabs = {"double_blocks__0__processor__qkv_lora1__down__weight": (2, 5),
             "double_blocks__0__processor__qkv_lora1__up__weight": (15, 2)}  # fmt: skip
    lora = {"peft_type": "LORA"}
    return {
        "bare": (random_tensors(rng, "transformer_blocks.0.attn.to_q.", **plain), None),
        "kinds of diffusers": (random_tensors(rng, "transformer.blocks.0.q.", **LOHA, alpha=()), None),
        "xlabs": (random_tensors(rng, "", **xlabs), None),
        "control_lora": (random_tensors(rng, "", **control) | {"lora_controlnet": torch.zeros(0)}, None),
        "vera": (random_tensors(rng, "base_model.", **shared), {"peft_type": "VERA", "save_projection": True}),
        "miss": (random_tensors(rng, module, miss_block=(2, 3)), {"peft_type": "MISS"}),
        "dora": (random_tensors(rng, module, **plain, lora_magnitude_vector=(3,)), lora | {"use_dora": True}),
        "pissa": (random_tensors(rng, module, **plain), lora | {"init_lora_weights": "pissa"}),
        "initial": (random_tensors(rng, module, **plain), lora | {"init_lora_weights": "corda"}),
        "fp8": (random_tensors(rng, module, torch.float8_e4m3fn, **plain), lora),
        "differences": (random_tensors(rng, "diffusion_model.", **added), None),
        "biases": (random_tensors(rng, module, **plain, lora_B__bias=(3,)), lora | {"lora_bias": True}),
        "biases of diffusers": (random_tensors(rng, "transformer.blocks.0.q.", **plain, lora_B__bias=(3,)), None),
        "experts": (
            random_tensors(rng, f"{PREFIX}h.0.experts.", lora_A__weight=(4, 5), lora_B__weight=(3, 4)),
            lora | {"target_parameters": ["experts.down_proj"]},
        ),
    }


def given(name, folder):
    """Return the options of :func:`lorakit.load_adapter` for a sample, and make what they name."""
    options = OPTIONS.get(name, {})
    if "initial" not in options:
        return options
    before = folder.parent / BEFORE
    if not before.exists():
        before.mkdir()
        rng = torch.Generator().manual_seed(1)
        tensors = random_tensors(rng, f"{PREFIX}h.0.q.", lora_A__weight=(2, 5), lora_B__weight=(3, 2))
        for file, data in with_config(tensors, {"peft_type": "LORA"}).items():
            (before / file).write_bytes(data)
    return {"initial": before}


def other_kinds(rng):
    """The tensors of modules of other kinds than plain LoRA, as LyCORIS writes them."""
    lokr = {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5), "alpha": ()}
    conv = {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (1, 4), "lokr_w2_b": (1, 5), "lokr_t2": (1, 1, 3, 3)}
    shapes = {"lora_unet_a": LOHA | {"alpha": ()}, "lora_unet_b": lokr, "lora_unet_c": conv}
    return {f"{m}.{part}": torch.randn(s, generator=rng) for m, parts in shapes.items() for part, s in parts.items()}


class _Quiet(dict):
    def __repr__(self):  # hypothesis shows arguments
        return "the samples"


def check(files, folder, sample=""):
    """Write files, read them, and demand a typed error or a right result; return which: 'refused' or 'read'."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    path = folder if len(files) > 1 or WEIGHTS in files else folder / next(iter(files))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of fields that are not known
            adapter = load_adapter(path, **given(sample, folder))
            read = {module: adapter[module] for module in adapter}
            added = {} if adapter.differences is None else adapter.differences.infos
            vectors = {parameter: adapter.differences.read(parameter) for parameter in added}
    except LorakitError as error:
        where = (str(folder), str(folder.parent / BEFORE), "the state dict")
        assert any(place in str(error) for place in where), f"the message names no file: {error}"  # noqa: PT017
        assert str(error).isprintable(), f"the message could not be printed: {error!r}"  # noqa: PT017
        assert len(str(error)) < 2000, f"the message has {len(str(error))} characters"  # noqa: PT017
        return "refused"
    for module, factors in read.items():
        info = adapter.infos[module]
        assert factors.A.shape == (info.rank, info.d_in), module
        assert factors.B.shape == (info.d_out, info.rank), module
        assert module.isprintable(), ascii(module)
    for parameter, vector in vectors.items():
        assert vector.shape == added[parameter][1], parameter
        assert vector.isfinite().all(), parameter
    if adapter.provenance.format == "peft" and WEIGHTS in files and sample not in OPTIONS:
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
