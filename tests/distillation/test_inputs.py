"""Texts that belong to no task, and those that adapters give away."""

import numpy as np
import pytest
import torch

from lorakit import Adapter, LoraFactors, generic_inputs, pseudo_inputs
from lorakit.distillation._inputs import in_order, key_of, lengths_of, shuffled, take
from lorakit.distillation.generic import KINDS, corpus
from lorakit.exceptions import UnsupportedAdapterError

transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH = 300, 64


def encoder():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def decoder():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.LlamaForCausalLM(config).eval()


def first_input(model, tokens):
    """What the first attention gets of some tokens, by hand, (tokens, width)."""
    with torch.no_grad():
        if isinstance(model, transformers.BertModel):
            e, ids = model.embeddings, torch.tensor(tokens)
            kinds, places = e.token_type_embeddings.weight[0], e.position_embeddings.weight
            return torch.stack([e.LayerNorm(e.word_embeddings(ids) + kinds + places[p]) for p in range(1, 9)]).mean(0)
        layer = model.model.layers[0]
        return layer.input_layernorm(model.model.embed_tokens(torch.tensor(tokens)))


QUERY = {encoder: "encoder.layer.{}.attention.self.query", decoder: "model.layers.{}.self_attn.q_proj"}
VALUE = {encoder: "encoder.layer.{}.attention.self.value", decoder: "model.layers.{}.self_attn.v_proj"}


def adapter_for(make, model, tokens, name):
    """An adapter whose first layer sees the directions of some tokens, and whose second sees anything."""
    torch.manual_seed(len(name))
    everything = first_input(model, list(range(VOCABULARY))).mean(0)
    common = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0)) / 8
    a = torch.cat([first_input(model, tokens) - everything, common])
    b = torch.eye(WIDTH)[:, : len(a)]
    modules = {
        QUERY[make].format(1): LoraFactors(torch.randn(2, WIDTH), torch.randn(WIDTH, 2) * 9),
        QUERY[make].format(0): LoraFactors(a, b),
        VALUE[make].format(0): LoraFactors(a, b),
    }
    return Adapter(modules, name=name)


@pytest.mark.parametrize("make", [encoder, decoder])
def test_an_adapter_gives_its_tokens_away(make):
    model = make()
    tokens = {"law": [7, 90, 211], "medicine": [33, 120, 280]}
    adapters = [adapter_for(make, model, found, name) for name, found in tokens.items()]
    texts = pseudo_inputs(model, adapters, 40, length=(4, 6), share=1.0, n_top=3)
    assert len(texts) == 80
    assert all(4 <= len(text) <= 6 for text in texts)
    assert all(isinstance(token, int) for token in texts[0])
    for found, own in zip((texts[:40], texts[40:]), tokens.values(), strict=True):
        assert len({t for text in found for t in text} & set(own)) >= 2
    assert texts == pseudo_inputs(model, adapters, 40, length=(4, 6), share=1.0, n_top=3)
    assert texts != pseudo_inputs(model, adapters, 40, length=(4, 6), share=1.0, n_top=3, random_state=1)
    alone = pseudo_inputs(model, adapters[:1], 20, share=1.0, n_top=3)
    assert {t for text in alone for t in text} & {7, 90, 211}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_tokens_are_the_first_of_the_vocabulary():
    model = encoder()
    adapter = adapter_for(encoder, model, [250, 260], "law")
    texts = pseudo_inputs(model, [adapter], 300, share=0.0)
    counts = np.bincount([t for text in texts for t in text], minlength=VOCABULARY)
    assert counts[:50].sum() > 2 * counts[150:200].sum() > 0


class Tokenizer:
    """What is asked of a tokenizer; tokens below 20 are special, reserved, or no words."""

    all_special_ids = (0, 1)

    def __len__(self):
        return VOCABULARY

    def decode(self, tokens):
        return " ".join(self._word(token) for token in tokens)

    def batch_decode(self, texts):
        return [self.decode(text) for text in texts]

    def _word(self, token):
        if token < 20:
            return ["[CLS]", "<s>", "[unused3]", "<extra_id_0>", "..", "7", "a", "��"][token % 8]
        return f"word{token}"


def test_with_a_tokenizer_there_are_texts_of_words():
    model = encoder()
    adapters = [adapter_for(encoder, model, [3, 5, 40], "law"), adapter_for(encoder, model, [50, 60], "medicine")]
    texts = pseudo_inputs(model, adapters, 30, tokenizer=Tokenizer(), share=0.5, n_top=5)
    assert len(texts) == 60
    assert all(word.startswith("word") for text in texts for word in text.split())


def test_models_without_words_are_refused():
    adapter = Adapter({"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1))}, name="law")
    with pytest.raises(UnsupportedAdapterError, match="Sequential has no get_input_embeddings"):
        pseudo_inputs(torch.nn.Sequential(torch.nn.Linear(3, 2)), [adapter])
    with pytest.raises(UnsupportedAdapterError, match="law: none of its linear layers runs in BertModel"):
        pseudo_inputs(encoder(), [adapter])


def test_fragments_are_of_the_texts():
    texts = ["one two three four five six", "seven eight", ""]
    made = generic_inputs(texts, 200, words=(3, 5))
    assert {len(text.split()) for text in made} == {3, 4, 5}
    words = {word for text in texts for word in text.split()}
    assert {word for text in made for word in text.split()} == words
    assert made == generic_inputs(texts, 200, words=(3, 5), random_state=0)
    for bad in ({"texts": ["", " "]}, {"n": 0}, {"words": (3, 2)}, {"words": (0, 2)}):
        with pytest.raises(ValueError, match="expected texts with words"):
            generic_inputs(**bad)


def test_the_texts_that_come_with_the_package():
    texts = {kind: corpus(kind) for kind in KINDS}
    assert {kind: len(found) for kind, found in texts.items()} == {
        "sentences": 172,
        "code": 62,
        "words": 69,
        "languages": 62,
        "notes": 29,
    }
    every = [text for found in texts.values() for text in found]
    assert len(every) == len(set(every))
    assert all(text == text.strip() and text.isprintable() and text.split() for text in every)
    assert all(text.isascii() for kind, found in texts.items() for text in found if kind != "languages")
    assert all(4 <= len(text.split()) <= 20 for text in texts["sentences"])
    assert len(set(generic_inputs())) > 680


def test_a_fragment_is_of_one_kind():
    words = {kind: {word for text in corpus(kind) for word in text.split()} for kind in KINDS}
    for fragment in generic_inputs(random_state=1):
        assert any(set(fragment.split()) <= known for known in words.values())
    for kind in KINDS:
        made = generic_inputs(n=100, kinds=[kind])
        assert {word for text in made for word in text.split()} <= words[kind]
    both = generic_inputs(n=300, kinds=["code", "words"])
    assert {word for text in both for word in text.split()} <= words["code"] | words["words"]


@pytest.mark.parametrize("bad", [{"kinds": ["prose"]}, {"kinds": []}, {"kinds": ["code"], "texts": ["one text"]}])
def test_kinds_that_there_are_not_are_refused(bad):
    with pytest.raises(ValueError, match="expected kinds of sentences, code, words, languages, notes"):
        generic_inputs(**bad)


def test_batches_are_of_about_one_length():
    lengths = np.random.RandomState(0).randint(1, 100, 333)
    rows = np.arange(333)
    for batches in (in_order(lengths, rows, 16), shuffled(lengths, rows, 16, np.random.RandomState(1))):
        assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
        assert max(map(len, batches)) == 16
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 30
    again = shuffled(lengths, rows, 16, np.random.RandomState(1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_inputs_of_any_kind_are_taken_and_told_apart():
    rows = np.array([2, 0])
    assert take(["a", "b", "c"], rows) == ["c", "a"]
    assert torch.equal(take(torch.arange(3), rows), torch.tensor([2, 0]))
    assert take({"x": np.arange(3)}, rows)["x"].tolist() == [2, 0]
    assert lengths_of(["a", "bcd"]).tolist() == [1, 3]
    assert lengths_of(torch.zeros(3, 4)) is None
    assert lengths_of([1, 2]) is None
    assert key_of(torch.ones(3)) == key_of(torch.ones(3))
    assert key_of([torch.ones(3)]) != key_of([torch.zeros(3)])
    assert key_of({"x": torch.ones(3)}) == key_of({"x": torch.ones(3)})
    assert key_of([lambda: 0]) is None
