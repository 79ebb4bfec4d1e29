"""A format that is added as the page on contributing says: one package with two files, and one entry in the list."""

import re
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from lorakit import Adapter, LoraFactors, SVDMerger, convert_adapter, load_adapter, load_adapters, save_adapter
from lorakit.adapters import Provenance
from lorakit.cli import main
from lorakit.io import convert, load, save
from lorakit.io.formats import registry
from lorakit.io.servers import check_servers
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters

ABOUT = """
from lorakit.io.formats.about import About

ABOUT = About(name="toy", title="the toy's single file", layouts=("compact", "portable"), weights=("toy.safetensors",))
"""
CODEC = """
from lorakit.adapters import Provenance
from lorakit.files.checks import stamp
from lorakit.io.formats._modules import FileModules, Stored, plain, stored_dtype
from lorakit.io.formats._padding import written_ranks
from lorakit.io.formats._pairs import Place, read_pairs, write_pairs
from lorakit.io.formats._servers import Server
from lorakit.io.formats.codec import Codec, Opened
from lorakit.io.formats.record import header_metadata, make_record

from .about import ABOUT


def recognises(location, weights):
    return any(map(place_of, location.header(weights).tensors))


def place_of(key):
    toy, _, rest = key.partition("~")
    module, _, slot = rest.partition("~")
    return Place(module, slot) if toy == "toy" and slot in ("A", "B") else None


def open_toy(location, weights, options):
    opened, header = location.stamp(weights), location.header(weights)
    pairs, _ = read_pairs(weights, opened, header.tensors, options, place_of)
    stored = {module: Stored((pair.key_a, pair.key_b), pair.info, 1.0, plain) for module, pair in pairs.items()}
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    return Opened(modules, Provenance(format="toy"), ("toys are not for work",))


def write(adapter, file, options):
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype)
    write_pairs(file, adapter, ranks, options.dtype, keys_of, header_metadata(record))


def keys_of(module, info):
    return f"toy~{module}~A", f"toy~{module}~B"


def upper(request, modules):
    return {module: module.upper() for module in modules}


def lower(request, modules):
    return {module: module.lower() for module in modules}


def breaks(file, check):
    check.mistake("leaves out every second module")


CODEC = Codec(
    ABOUT,
    recognises,
    open_toy,
    write,
    ways={("peft", "toy"): upper, ("toy", "peft"): lower},
    detours={("mlx", "toy"): "peft"},
    servers=(Server("toybox", "1", breaks, ("toy",)),),
)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "a_toy_format"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("about", ABOUT), ("codec", CODEC)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(registry, "FORMATS", ("a_toy_format", *registry.FORMATS))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("a_toy_format")]:
        del sys.modules[name]
    registry._about.cache_clear()
    registry._codec.cache_clear()


def toys():
    adapters = make_adapters(n_adapters=2, ranks=(2, 3), random_state=0)
    return [adapter.rename_modules(str.upper).with_provenance(format="toy") for adapter in adapters]


def test_load_merge_and_save(toy):
    paths = [save_adapter(adapter, toy / f"{adapter.name}.safetensors") for adapter in toys()]
    assert set(load_file(paths[0])) == {f"toy~LAYER.{i}~{slot}" for i in range(2) for slot in "AB"}
    with pytest.warns(UserWarning, match="toys are not for work"):
        adapters = load_adapters(paths)
    assert {adapter.provenance.format for adapter in adapters} == {"toy"}
    merged = SVDMerger(k=4).fit(adapters).merged_
    out = save_adapter(merged, toy / "merged.safetensors")
    with pytest.warns(UserWarning, match="toys"):
        again = load_adapter(out)
    assert again.provenance.format == "toy"
    assert relative_error(again, merged) < 1e-6


def test_convert(toy):
    adapter = toys()[0]
    there = convert_adapter(adapter, "peft")
    assert list(there) == ["layer.0", "layer.1"]
    back = convert_adapter(there, "toy")
    assert relative_error(back, adapter) == 0
    factors = LoraFactors(torch.ones(1, 3), torch.ones(2, 1))
    mlx = Adapter({"model.layers.0.mlp.up_proj": factors}, provenance=Provenance(format="mlx"))
    assert list(convert_adapter(mlx, "toy")) == ["MODEL.LAYERS.0.MLP.UP_PROJ"]  # through PEFT's names


def test_found_in_a_folder_under_its_name(toy):
    save_adapter(toys()[0], toy / "folder" / "toy.safetensors")
    with pytest.warns(UserWarning, match="toys"):
        adapter = load_adapter(toy / "folder")
    assert (adapter.name, adapter.provenance.format) == ("folder", "toy")


def test_the_command_line_knows_it(toy):
    run = CliRunner().invoke
    save_adapter(toys()[0].rename_modules(str.lower).with_provenance(format="peft"), toy / "in")
    done = run(main, ["convert", str(toy / "in"), "-o", str(toy / "out.safetensors"), "--to", "toy"])
    assert done.exit_code == 0, done.output
    refused = run(main, ["convert", str(toy / "in"), "-o", str(toy / "out"), "--to", "toyy"])
    assert refused.exit_code == 2
    assert "'toy'" in refused.stderr


def test_servers(toy):
    path = save_adapter(toys()[0], toy / "x.safetensors")
    with pytest.warns(UserWarning, match="toys"):
        checks = {check.server: check for check in check_servers(load_adapter(path))}
    assert (checks["toybox"].loads, checks["toybox"].reasons) == ("wrong", ["leaves out every second module"])
    assert (checks["PEFT"].loads, checks["PEFT"].reasons) == (
        "no",
        ["does not read toy files: lorakit convert --to peft"],
    )


def test_what_it_lacks_is_refused(toy):
    factors = LoraFactors(torch.ones(1, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match="layout must be 'compact' or 'portable' for toy"):
        save_adapter(Adapter({"A": factors}), toy / "x.safetensors", format="toy", layout="square")


@pytest.mark.parametrize(
    "documented", [load.load_adapter, save.save_adapter, convert.convert_adapter], ids=lambda f: f.__name__
)
def test_docstrings_list_the_formats(documented):
    listed = re.search(r"format : \{(.*?)\}", documented.__doc__)[1]
    assert sorted(re.findall(r"'(\w+)'", listed)) == sorted(about.name for about in registry.abouts())
