"""``lorakit merge --method distill``: an encoder with label texts, a causal model with prompts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click import UsageError
from click.testing import CliRunner

from lorakit import (
    Adapter,
    DistillMerger,
    LoraFactors,
    applied,
    generic_inputs,
    load_adapter,
    load_adapters,
    pseudo_inputs,
    save_adapter,
)
from lorakit.cli import main
from lorakit.cli._distill import read_heads
from lorakit.cli._estimators import make_estimator
from lorakit.distillation.text_heads import PromptHead, label_heads
from lorakit.metrics import relative_error

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

WORDS = ["the", "judge", "court", "law", "doctor", "nurse", "illness", "goal", "match", "team", "is", "good", "bad"]
WORDS += ["yes", "no", ":", "?"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LABELS = {"law": ["the court law", "the good judge", "no law"], "medicine": ["nurse illness", "doctor good"]}
PROMPTS = {
    "law": {"prompt": "the team : {text} ?", "labels": ["yes", "no"]},
    "medicine": {"prompt": "the team : {text} ?", "labels": ["good", "bad"]},
}


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def encoder():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(vocab_size=20, **SIZES), add_pooling_layer=False).eval()


def causal():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **SIZES)).eval()


MODULES = {
    encoder: [f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")],
    causal: [f"model.layers.{i}.self_attn.{part}" for i in (0, 1) for part in ("q_proj", "v_proj")],
}


@pytest.fixture(params=[encoder, causal], ids=["encoder", "causal"])
def world(request, tmp_path):
    """A folder with a base model, two adapters, heads and texts; and the function that makes the model."""
    make = request.param
    make().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    for i, name in enumerate(("law", "medicine")):
        torch.manual_seed(i + 1)
        modules = {m: LoraFactors(torch.randn(2, 16), torch.randn(16, 2)) for m in MODULES[make]}
        save_adapter(Adapter(modules, name=name), tmp_path / name)
    kind = "encoder" if make is encoder else "causal"
    heads = {name: {"labels": labels} for name, labels in LABELS.items()} if make is encoder else PROMPTS
    (tmp_path / "heads.json").write_text(json.dumps({"kind": kind, "max_tokens": 12, "heads": heads}))
    texts = [f"{a} {b} {c}" for a in WORDS[:6] for b in WORDS[6:10] for c in ("is", "good")]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n\n")
    (tmp_path / "law.txt").write_text("the judge is good\nthe law is bad\n")
    return make, tmp_path, texts


def run(folder, *options, code=0, method="distill"):
    adapters = [str(folder / name) for name in ("law", "medicine")]
    words = ["merge", *adapters, "-o", str(folder / "out"), "-m", method, *map(str, options)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result


def heads_of(make, base):
    if make is encoder:
        return label_heads(base, tokenizer(), LABELS, max_tokens=12)
    return {name: PromptHead(tokenizer(), p["prompt"], p["labels"], max_tokens=12) for name, p in PROMPTS.items()}


def test_it_is_the_estimator(world):
    make, folder, texts = world
    prompts = ("--prompts", folder / "texts.txt", "--prompts", f"law={folder / 'law.txt'}")
    given = ("--model", folder / "base", "--heads", folder / "heads.json", "-k", 3, "-p", "epochs=2", "--seed", 5)
    report = json.loads(run(folder, *given, *prompts, "--json").stdout)
    assert report["method"] == "distill"
    assert report["parameters"]["scale"] == 1.0
    assert report["parameters"]["inputs"] == f"<list of {len(texts) + 2}>"
    base = make()
    merger = DistillMerger(
        k=3,
        model=base,
        forwards=heads_of(make, base),
        inputs=[*texts, "the judge is good", "the law is bad"],
        owners=[None] * len(texts) + ["law"] * 2,
        epochs=2,
        random_state=5,
    ).fit(load_adapters([folder / "law", folder / "medicine"]))
    assert relative_error(load_adapter(folder / "out"), merger.merged_) < 1e-5


def test_texts_of_a_task_are_added_to_those_that_are_made(world):
    make, folder, _ = world
    options = ("--model", folder / "base", "--heads", folder / "heads.json", "-k", 2, "-p", "epochs=1", "--seed", 5)
    prompts = ("--prompts", f"law={folder / 'law.txt'}", "-p", "batch_size=200")
    report = json.loads(run(folder, *options, *prompts, "--json").stdout)
    made = [
        *generic_inputs(),
        *pseudo_inputs(make(), load_adapters([folder / "law", folder / "medicine"]), tokenizer=tokenizer()),
    ]
    assert report["parameters"]["inputs"] == f"<list of {len(made) + 2}>"
    base = make()
    merger = DistillMerger(
        k=2,
        model=base,
        forwards=heads_of(make, base),
        inputs=[*made, "the judge is good", "the law is bad"],
        owners=[None] * len(made) + ["law"] * 2,
        epochs=1,
        batch_size=200,
        random_state=5,
    ).fit(load_adapters([folder / "law", folder / "medicine"]))
    assert relative_error(load_adapter(folder / "out"), merger.merged_) < 1e-5


def test_without_prompts_texts_are_made_from_the_adapters(world):
    _, folder, _ = world
    given = ("--model", folder / "base", "--heads", folder / "heads.json", "-p", "epochs=1", "-p", "batch_size=200")
    report = json.loads(run(folder, *given, "--json").stdout)
    assert report["parameters"]["inputs"] == "<list of 1760>"
    assert "start" in report["parameters"]
    report = json.loads(run(folder, *given, "--json", "--dry-run", "--overwrite").stdout)
    assert report["parameters"]["inputs"] == "<list of 20>"
    assert report["dry_run"] is True


def test_a_function_and_yaml(world, monkeypatch):
    make, folder, _ = world
    pytest.importorskip("yaml")
    described = json.loads((folder / "heads.json").read_text())
    lines = [f"kind: {described['kind']}", "max_tokens: 12", f"heads: {json.dumps(described['heads'])}"]
    (folder / "heads.yaml").write_text("\n".join(lines))
    load = "AutoModel" if make is encoder else "AutoModelForCausalLM"
    (folder / "mybase.py").write_text(
        "import transformers\n\ndef load():\n"
        f"    return transformers.{load}.from_pretrained('base'), transformers.AutoTokenizer.from_pretrained('base')\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "mybase", raising=False)
    given = ("--prompts", "texts.txt", "-k", 2, "-p", "epochs=1", "--model", "mybase:load", "--heads", "heads.yaml")
    run(folder, *given)
    assert load_adapter(folder / "out").ranks == (2,)


def test_a_text_scores_as_by_hand():
    base, tok = causal(), tokenizer()
    head = PromptHead(tok, "the team : {text} ?", ["yes", "no"], max_tokens=9)
    texts = ["judge", "the good doctor is the bad nurse"]  # the second is cut to five tokens
    with torch.no_grad():
        found = head(base, texts)
        for row, words in zip(found, ("judge", "the good doctor is the"), strict=True):
            ids = torch.tensor([tok(f"the team : {words} ?")["input_ids"]])
            logits = base(input_ids=ids).logits[0, -1]
            expected = logits[tok("yes no")["input_ids"]]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    adapter = Adapter({m: LoraFactors(torch.randn(2, 16), torch.randn(16, 2)) for m in MODULES[causal]})
    with torch.no_grad(), applied(base, adapter):
        assert not torch.allclose(head(base, texts), found)


def test_a_label_scores_by_its_cosine():
    base, tok = encoder(), tokenizer()
    texts = ["the judge", "a law that nobody knows is bad"]
    for pooling in ("mean", "first"):
        scores = label_heads(base, tok, LABELS, pooling=pooling, scale=3.0)(base, texts)["law"]
        with torch.no_grad():

            def embedded(text, pooling=pooling):
                hidden = base(**tok(text, return_tensors="pt")).last_hidden_state[0]
                return hidden.mean(0) if pooling == "mean" else hidden[0]

            for i, text in enumerate(texts):
                for j, label in enumerate(LABELS["law"]):
                    cosine = torch.cosine_similarity(embedded(text), embedded(label), dim=0)
                    assert scores[i, j].item() == pytest.approx(3 * cosine.item(), abs=1e-4)
        assert scores.requires_grad


def test_what_is_refused(world):
    _, folder, _ = world
    heads, base = folder / "heads.json", ("--model", folder / "base")
    cases = [
        (("--heads", heads), "needs the base model and the adapters' heads: --model FOLDER --heads FILE"),
        ((*base, "--heads", heads, "--prompts", "none.txt"), "none.txt cannot be read"),
        ((*base, "--heads", heads, "--prompts", f"lav={heads}"), "--prompts names 'lav'; did you mean 'law'?"),
        (("--model", folder / "nowhere", "--heads", heads), "there is no such folder"),
        (("--model", folder, "--heads", heads), "transformers cannot load it"),
        (("--model", "nothing:load", "--heads", heads), "No module named 'nothing'"),
    ]
    for options, message in cases:
        assert message in " ".join(run(folder, *options, code=2).output.split()), options
    assert "only for --method distill, not for 'svd'" in run(folder, *base, method="svd", code=2).output
    described = json.loads(heads.read_text())
    (folder / "empty.txt").write_text("\n")
    bad = [
        ("no json", "is no JSON"),
        (json.dumps({"kind": "vision"}), "kind must be one of encoder, causal"),
        (json.dumps(described | {"max_token": 3}), "did you mean 'max_tokens'?"),
        (json.dumps(described | {"heads": {}}), "must name a head for each adapter"),
        (json.dumps(described | {"heads": {"law": ["a"]}}), "the head of 'law' must have"),
        (json.dumps(described | {"heads": {"law": described["heads"]["law"]}}), "no head of 'medicine'"),
    ]
    for text, message in bad:
        heads.write_text(text)
        assert message in " ".join(run(folder, *base, "--heads", heads, code=2).output.split()), text
    one = {name: head | {"labels": ["yes"]} for name, head in described["heads"].items()}
    heads.write_text(json.dumps(described | {"heads": one}))
    assert "must have two or more labels" in run(folder, *base, "--heads", heads, code=2).output
    heads.write_text(json.dumps(described))
    output = run(folder, *base, "--heads", heads, "--prompts", folder / "empty.txt", code=2).output
    assert "has no text; expected one a line" in " ".join(output.split())


def test_prompts_are_checked():
    for prompt, words, message in (
        ("no place", ["yes", "no"], r"must have \{text\} in it once"),
        ("{text}", ["yes"], "two or more labels"),
        ("{text}", ["yes no", "yes"], "begin with one token"),
    ):
        with pytest.raises(ValueError, match=message):
            PromptHead(tokenizer(), prompt, words)


def test_the_heads_of_the_examples_are_the_anchors_of_their_tasks():
    examples = Path(__file__).parents[2] / "examples"
    heads = read_heads(examples / "heads.json")["heads"]
    for name, head in heads.items():
        task = json.loads((examples / "tasks" / f"{name}.json").read_text(encoding="utf-8"))
        assert head["labels"] == task["anchors"]
    assert len(heads) == 5


def test_the_start_is_another_merger():
    params = {"start": "tsv", "start__scale": "match", "start__scale_target": 1.4, "epochs": 2}
    made = make_estimator("merger", "distill", given={"k": 4}, params=params, seed=3)
    assert repr(made.start) == "TSVMerger(scale='match', scale_target=1.4)"
    assert (made.k, made.epochs, made.random_state) == (4, 2, 3)
    with pytest.raises(UsageError, match="start__scale needs a method to belong to: --param start=METHOD"):
        make_estimator("merger", "distill", given={}, params={"start__scale": "match"}, seed=0)
