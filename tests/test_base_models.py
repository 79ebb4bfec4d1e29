"""Which names of base models count as one model."""

import pytest

from lorakit import SVDMerger, load_adapters, save_adapter
from lorakit._base_models import differing_bases
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.testing import make_adapters

LLAMA = "meta-llama/Llama-3.2-1B"
SAME = [
    (LLAMA, LLAMA + "/"),
    (LLAMA, "Meta-Llama/llama-3.2-1b"),
    (LLAMA, LLAMA + "-bnb-4bit"),
    (LLAMA, "unsloth/Llama-3.2-1B-unsloth-bnb-4bit"),
    ("unsloth/Llama-3.2-1B-bnb-4bit", "unsloth/Llama-3.2-1B-unsloth-bnb-4bit"),
    (LLAMA, "/models/Llama-3.2-1B"),
    (LLAMA, "./Llama-3.2-1B/"),
    (LLAMA, "D:\\models\\Llama-3.2-1B"),
    (
        LLAMA,
        "/home/me/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430cd3b72f300e6b0f18e50",
    ),
    ("gpt2", "openai-community/gpt2"),
    ("/models/x", "/models/x-bnb-8bit"),
]
DIFFERENT = [
    (LLAMA, "meta-llama/Llama-3.2-3B"),
    (LLAMA, "someone/Llama-3.2-1B"),
    (LLAMA, "meta-llama/Llama-3.2-1B-Instruct"),
    ("/runs/a/checkpoint-500", "/runs/b/checkpoint-500"),
    ("gpt2", "openai-community/gpt2-medium"),
]


def two(first, second):
    one, other = make_adapters(2, ranks=2, random_state=0)
    return [one.with_provenance(base_model=first), other.with_provenance(base_model=second)]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_names_of_one_model(first, second):
    assert differing_bases(two(first, second)) is None
    assert differing_bases(two(second, first)) is None
    SVDMerger().fit(two(first, second))  # a warning would be an error here


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_names_of_different_models(first, second):
    assert differing_bases(two(first, second)) == f"{first!r} ('task0'), {second!r} ('task1')"
    with pytest.warns(UserWarning, match="name different base models"):
        SVDMerger().fit(two(second, first))


def test_no_name_says_nothing():
    assert differing_bases(two(None, LLAMA)) is None
    assert differing_bases([]) is None


def test_one_local_copy_does_not_make_two_models_one():
    third = make_adapters(1, ranks=2, random_state=1)[0].with_provenance(base_model="/m/Llama-3.2-1B")
    assert differing_bases([*two(LLAMA, "someone/Llama-3.2-1B"), third]) is not None


def test_strict_loading_refuses(tmp_path):
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in two(LLAMA, "org/other")]
    assert len(load_adapters(paths)) == 2
    with pytest.raises(IncompatibleAdaptersError, match=r"3.2-1B' \('task0'\), 'org/other' \('task1'\)"):
        load_adapters(paths, same_base="strict")
    same = [save_adapter(adapter, tmp_path / f"{adapter.name}s") for adapter in two(LLAMA, LLAMA + "-bnb-4bit")]
    assert len(load_adapters(same, same_base="strict")) == 2
    with pytest.raises(ValueError, match="same_base must be 'warn' or 'strict', got 'ignore'"):
        load_adapters(paths, same_base="ignore")
