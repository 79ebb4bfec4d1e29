"""What a merge says of its sources: kohya's training metadata united, and links in a PEFT model card."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lorakit import Adapter, LoraFactors, SVDMerger, SVDPruner, load_adapter, load_adapters, save_adapter
from lorakit.adapters import Provenance
from lorakit.io.formats.kohya.uniting import united
from lorakit.io.formats.peft.card import model_card
from lorakit.io.formats.record import make_record
from lorakit.testing import make_adapters

TABLES = st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9)))
CAT = {
    "ss_tag_frequency": json.dumps({"10_sks cat": {"cat": 3, "sofa": 1}}),
    "ss_dataset_dirs": json.dumps({"10_sks cat": {"n_repeats": 10, "img_count": 4}}),
    "ss_resolution": "(512, 512)",
    "ss_base_model_version": "sd_v1",
    "ss_sd_model_name": "v1-5.safetensors",
    "ss_learning_rate": "0.1",
    "ss_optimizer": "Adam",
    "modelspec.trigger_phrase": "sks cat",
}
DOG = {
    "ss_tag_frequency": json.dumps({"5_dog": {"dog": 2}, "10_sks cat": {"cat": 1}}),
    "ss_dataset_dirs": json.dumps({"5_dog": {"n_repeats": 5, "img_count": 2}, "10_sks cat": {"img_count": 1}}),
    "ss_resolution": "(768, 768)",
    "ss_base_model_version": "sd_v1",
    "ss_learning_rate": "0.2",
    "ss_optimizer": "Adam",
    "modelspec.trigger_phrase": "a hund dog",
}
PLAIN = {"ss_optimizer": "Adam", "ss_tag_frequency": "no JSON", "modelspec.trigger_phrase": "sks cat"}


@pytest.fixture
def paths(tmp_path):
    return [trained(tmp_path, name, metadata) for name, metadata in (("cat", CAT), ("dog", DOG), ("plain", PLAIN))]


def trained(folder, name, metadata):
    factors = {"lora_unet_mid": LoraFactors(torch.full((2, 3), float(len(name))), torch.ones(4, 2))}
    adapter = Adapter(factors, name=name, provenance=Provenance(format="kohya", metadata=metadata))
    return save_adapter(adapter, folder / f"{name}.safetensors")


def written(adapter, folder):
    with safe_open(save_adapter(adapter, folder / "merged.safetensors", overwrite=True), "pt") as file:
        return file.metadata()


def check(found):
    assert json.loads(found["ss_tag_frequency"]) == {"10_sks cat": {"cat": 4, "sofa": 1}, "5_dog": {"dog": 2}}
    assert json.loads(found["ss_dataset_dirs"]) == {
        "10_sks cat": {"n_repeats": 10, "img_count": 5},
        "5_dog": {"n_repeats": 5, "img_count": 2},
    }
    assert found["modelspec.trigger_phrase"] == "sks cat, a hund dog"
    assert (found["ss_base_model_version"], found["ss_sd_model_name"]) == ("sd_v1", "v1-5.safetensors")
    assert found["ss_optimizer"] == "Adam"
    assert not {"ss_resolution", "ss_learning_rate"} & set(found)
    assert json.loads(found["lorakit.differs"]) == {"ss_resolution": {"cat": "(512, 512)", "dog": "(768, 768)"}}


def test_a_merge_unites_what_its_sources_say(paths, tmp_path):
    check(written(SVDMerger().fit(load_adapters(paths)).merged_, tmp_path))


def test_steps_before_and_merges_of_merges_count_each_source_once(paths, tmp_path):
    adapters = SVDPruner(k=1).fit_transform(load_adapters(paths))
    first = SVDMerger().fit(adapters[:2]).merged_
    check(written(SVDMerger().fit([first, adapters[2]]).merged_, tmp_path))
    (pruned,) = SVDPruner(k=1).fit_transform([first])
    assert json.loads(written(pruned, tmp_path)["ss_tag_frequency"])["10_sks cat"]["cat"] == 4


def test_one_source_stays_as_it_is(paths, tmp_path):
    (pruned,) = SVDPruner(k=1).fit_transform([load_adapter(paths[1])])
    assert {key: written(pruned, tmp_path)[key] for key in DOG} == DOG


def test_the_command_line_unites_too_and_writes_the_same_bytes(paths, tmp_path):
    from click.testing import CliRunner

    from lorakit.cli import main

    out = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in out:
        run = CliRunner().invoke(main, ["merge", *map(str, paths), "-o", str(path)])
        assert run.exit_code == 0, run.output
    assert out[0].read_bytes() == out[1].read_bytes()
    with safe_open(out[0], "pt") as file:
        check(file.metadata())
    assert CliRunner().invoke(main, ["replay", str(out[0])]).exit_code == 0


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_counts_are_summed(tables):
    found = united([(str(i), {"ss_tag_frequency": json.dumps(table)}) for i, table in enumerate(tables)])
    expected = {
        folder: dict(sum((Counter(table.get(folder, {})) for table in tables), Counter()))
        for table in tables
        for folder in table
    }
    assert json.loads(found["ss_tag_frequency"]) == expected


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": {"b": "c"}}', "[" * 100_000, '{"a": {"b": true}}'])
def test_strange_tables_are_no_obstacle(text):
    good = json.dumps({"a": {"b": 2}})
    found = united([("one", {"ss_tag_frequency": good}), ("other", {"ss_tag_frequency": text})])
    assert json.loads(found["ss_tag_frequency"])["a"]["b"] == 2


def test_sources_of_one_name_are_told_apart():
    found = united([("a", {"ss_resolution": "1"}), ("a", {"ss_resolution": "2"}), ("b", {})])
    assert json.loads(found["lorakit.differs"]) == {"ss_resolution": {"a (1)": "1", "a (2)": "2"}}


@pytest.mark.parametrize(
    ("hub", "shown"),
    [
        (
            "hf://org/my.name@0123abc",
            r"| task\|0 ([hf://org/my.name@0123abc](https://huggingface.co/org/my.name/tree/0123abc)) |",
        ),
        ("hf://org/name@0123abc/law/b", "](https://huggingface.co/org/name/tree/0123abc/law/b)) |"),
        ("hf://org/name@x) [evil](y", r"| task\|0 (hf://org/name@x) [evil](y) |"),
        (None, r"| task\|0 |"),
    ],
)
def test_a_model_card_links_to_the_hub(hub, shown):
    (adapter,) = make_adapters(1, random_state=0)
    record = make_record(adapter, layout="portable", dtype=torch.float32)
    record["sources"] = [{"name": "task|0", "sha256": "f" * 64, "hub": hub}]
    assert shown in model_card(adapter, record, rank=4)
