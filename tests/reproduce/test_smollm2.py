"""The language model's code: labels' words, decoding with a cache, loss over answers; one merge of the real one."""

import evaluation
import numpy as np
import packing
import pytest
import torch
import training
from evaluation import Evaluator
from generation import greedy
from packages import PackageError
from smollm2 import LINEAR, MERGED, UNSEEN, WIDE, SmolLM2
from smollm2 import training as smol_training
from tiny_language import ANSWERS, VOCABULARY, TinyLanguage, language_tasks, model, tokenized
from torch.nn.functional import cross_entropy
from training import Training, key_of, metrics_of, trained

from lorakit import load_adapter

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def known_tasks(monkeypatch):
    tokenized(monkeypatch)
    known = language_tasks()
    for cached in (evaluation._base, evaluation._head, evaluation._tokens):
        cached.cache_clear()
    for module in (evaluation, training):
        monkeypatch.setattr(module, "load_task", known.__getitem__)
    return known


def alone(net, prompt, n, stop):
    """Greedy decoding of one prompt without padding and without a cache."""
    made = []
    while len(made) < n:
        made.append(int(net(input_ids=torch.tensor([prompt + made])).logits[0, -1].argmax()))
        if made[-1] == stop:
            return made[:-1]
    return made


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 5])
def test_decoding_in_a_batch_is_decoding_alone(n):
    net, backbone = model(), TinyLanguage()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, len(VOCABULARY), (size,), generator=generator).tolist() for size in (1, 2, 4, 7, 3, 9)]
    free = [alone(net, prompt, n, -1) for prompt in prompts]
    stop = free[0][-1]  # a token that one of them comes to
    expected = [alone(net, prompt, n, stop) for prompt in prompts]
    assert greedy(net, **backbone.collate(prompts), n=n, stop=stop) == expected
    assert len({len(tokens) for tokens in expected}) > 1


@torch.no_grad()
def test_scores_are_the_logits_of_the_words_whatever_the_padding(known_tasks):
    net, backbone, task = model(), TinyLanguage(), known_tasks["colour"]
    head = backbone.head(net, task)
    tokens = backbone.encode(task, ["red", "blue cold warm sea"])
    found = backbone.scores(net, head, backbone.collate(tokens))
    for row, prompt in zip(found, tokens, strict=True):
        torch.testing.assert_close(row, net(input_ids=torch.tensor([prompt])).logits[0, -1, head])


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 9, 1000])
def test_prompts_in_one_row_are_the_prompts_alone(known_tasks, monkeypatch, size):
    net, backbone, task = model(), TinyLanguage(), known_tasks["colour"]
    monkeypatch.setattr(packing, "TOKENS", size)
    head = backbone.head(net, task)
    tokens = backbone.encode(task, ["red", "blue cold warm sea", "blue", "sea sun ice", "blue cold"])
    made = list(packing.rows(tokens, size))
    assert len(made) == {1: 5, 9: 3, 1000: 1}[size]
    assert sum(row.ids.numel() for row in made) == sum(map(len, tokens)) - (5 - len(made))  # 'say' is read once a row
    found = torch.cat([row.states(net) for row in made])
    for state, prompt in zip(found, tokens, strict=True):
        alone = net.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)
    expected = torch.cat([backbone.scores(net, head, backbone.collate([prompt])) for prompt in tokens])
    torch.testing.assert_close(backbone.scores_of(net, head, tokens), expected, rtol=1e-4, atol=1e-5)


def test_a_common_beginning_leaves_a_token_of_each():
    assert packing.common([[1, 2, 3]]) == 2
    assert packing.common([[1, 2], [1, 2, 3]]) == 1
    assert packing.common([[1, 2, 3], [1, 2, 4]]) == 2
    assert packing.common([[1, 2], [3, 4]]) == 0


@torch.no_grad()
def test_answers_are_right_only_if_they_are_the_answer(known_tasks, monkeypatch):
    import smollm2

    net, backbone, task = model(), TinyLanguage(), known_tasks["opposite"]
    head = backbone.head(net, task)
    made = [[VOCABULARY.index(word) for word in text.split()] for text in ("sea sun", "sea", "sea sun ice", "red")]
    monkeypatch.setattr(smollm2, "greedy", lambda *given, **options: made)
    scores = backbone.scores(net, head, backbone.collate([[3]] * 4))
    assert [ANSWERS[label] for label in scores.argmax(dim=1)] == ["sea sun", "sea", "", ""]


def test_the_loss_is_that_of_the_answers_tokens(known_tasks):
    net, backbone, task = model(), TinyLanguage(), known_tasks["opposite"]
    head = backbone.head(net, task)
    tokens, labels = backbone.encode(task, ["red", "blue cold warm"]), torch.tensor([1, 2])
    losses = []
    for prompt, label in zip(tokens, labels.tolist(), strict=True):
        answer = head.tokens[label]
        assert answer[-1] == head.stop == VOCABULARY.index("\n")
        logits = net(input_ids=torch.tensor([prompt + answer])).logits[0]
        for i, token in enumerate(answer):
            losses.append(-logits[len(prompt) + i - 1].log_softmax(dim=0)[token])
    torch.testing.assert_close(backbone.loss(net, head, tokens, labels), torch.stack(losses).mean())


def test_two_labels_with_one_token_are_refused(known_tasks, monkeypatch):
    import smollm2

    monkeypatch.setitem(smollm2.PROMPTS, "colour", ("say ", " is", (" red", " red", " cold")))
    with pytest.raises(ValueError, match="colour: two labels' words begin with one token"):
        TinyLanguage().head(model(), known_tasks["colour"])
    with pytest.raises(KeyError, match="no prompt for 'langid'"):
        TinyLanguage()._prompt(type("Task", (), {"name": "langid"}))


@pytest.mark.parametrize("name", ["colour", "opposite"])
def test_training_learns_labels_and_answers(name):
    wanted = Training(name, rank=4, steps=80, batch_size=10, learning_rate=2e-2, targets=("v_proj", "up_proj"))
    adapter = load_adapter(trained(wanted, TinyLanguage()))
    assert {module.split(".")[-1] for module in adapter} == {"v_proj", "up_proj"}
    metrics = metrics_of(wanted, TinyLanguage())
    assert metrics["validation"] > max(0.7, metrics["base_validation"] + 0.2)
    test = Evaluator("test", 40, TinyLanguage())
    assert test.accuracy(adapter, name) > test.accuracy(None, name) + 0.2


def test_modules_are_part_of_what_identifies_an_adapter():
    one, other = (Training("colour", targets=targets) for targets in (None, ("q_proj",)))
    assert key_of(one, TinyLanguage()) != key_of(other, TinyLanguage())
    assert key_of(one, TinyLanguage()) == key_of(Training("colour", targets=SmolLM2.targets), TinyLanguage())


def test_ranks_and_modules_are_mixed_and_nothing_is_both_merged_and_left_out():
    trainings = [smol_training(task) for task in MERGED]
    assert sorted(t.rank for t in trainings) == [8] * 4 + [16] * 4
    assert {t.targets for t in trainings if t.task in WIDE} == {LINEAR}
    assert not set(MERGED) & set(UNSEEN)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_merge_of_the_real_language_model(tmp_path_factory, monkeypatch):
    """An hour's leaderboard in small: a short training, a merge of what it made with a copy, one task."""
    import smollm2
    import tasks
    from adapters import permuted

    from lorakit import AdapterSet, TSVMerger

    monkeypatch.undo()  # weights and texts come from the user's cache, or are fetched into it
    pytest.importorskip("gguf")
    cleared = (smollm2._folder, smollm2._tokenizer, evaluation._base, evaluation._head, evaluation._tokens)
    for cached in cleared:
        cached.cache_clear()
    try:
        smollm2._folder()
        task = tasks.load_task("wn_rel")
    except PackageError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LORAKIT_REPRODUCE", str(tmp_path_factory.mktemp("real")))  # adapters and scores do not
    monkeypatch.setattr(SmolLM2, "n_checked", 4)  # validation texts of the training, which nothing is chosen by here
    backbone = SmolLM2()
    adapter = load_adapter(trained(Training("wn_rel", steps=10, batch_size=8), backbone))
    merged = (
        TSVMerger(k=8, scale="match").fit(AdapterSet([adapter, permuted(adapter, np.random.RandomState(0))])).merged_
    )
    assert len(merged) == 120  # four modules of each of 30 layers
    test = Evaluator("test", 24, backbone)
    base, found = test.scores(None, task.name), test.scores(merged, task.name)
    assert np.abs(found - base).max() > 0.1
    labels = test.labels(task.name)
    before, after = (cross_entropy(torch.tensor(scores), torch.tensor(labels)).item() for scores in (base, found))
    assert after < before - 0.1  # the right words are likelier; their number alone would be a matter of a text or two
    for cached in cleared:
        cached.cache_clear()
