"""Training is seeded, cached and resumable, and gives adapters that PEFT and lorakit read alike."""

import json

import pytest
import torch
import train_all
import training
from tiny import Tiny, tiny_task
from training import Training, folder_of, key_of, metrics_of, trained

import lorakit

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

FAST = {"rank": 2, "steps": 60, "batch_size": 16, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def known_tasks(monkeypatch):
    known = {"first": tiny_task(), "second": tiny_task("second", 1)}
    monkeypatch.setattr(training, "load_task", known.__getitem__)


def test_it_learns_and_says_what_it_did():
    folder = trained(Training("first", **FAST), Tiny())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"] > max(0.8, metrics["base_validation"])
    assert metrics == metrics_of(Training("first", **FAST), Tiny())
    assert metrics["training"]["rank"] == 2
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert config["base_model_name_or_path"] == "made/for-tests"
    adapter = lorakit.load_adapter(folder)
    assert set(adapter) == {"dense", "query"}
    assert adapter.ranks == (2,)


def test_a_seed_decides_everything():
    def factors(seed, folder):
        training.train(Training("first", seed=seed, **FAST), Tiny(), folder)
        return lorakit.load_adapter(folder)["dense"]

    folder = training.cache_folder("by hand")
    one, again, other = (factors(seed, folder / name) for seed, name in ((0, "a"), (0, "b"), (1, "c")))
    assert torch.equal(one.A, again.A)
    assert torch.equal(one.B, again.B)
    assert not torch.allclose(one.A, other.A)


def test_an_adapter_is_trained_once():
    folder = trained(Training("first", **FAST), Tiny())
    before = Tiny.loaded
    assert trained(Training("first", **FAST), Tiny()) == folder
    assert Tiny.loaded == before


def test_a_run_that_is_stopped_leaves_nothing_and_goes_on(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    wanted = Training("first", **FAST)
    with monkeypatch.context() as patch:
        patch.setattr(training, "write_json", stop)  # metrics.json comes after PEFT's files
        with pytest.raises(KeyboardInterrupt):
            trained(wanted, Tiny())
    assert not folder_of(wanted, Tiny()).exists()
    assert not list(folder_of(wanted, Tiny()).parent.iterdir())
    assert (trained(wanted, Tiny()) / "metrics.json").exists()


@pytest.mark.parametrize(
    "changed", [{"task": "second"}, {"rank": 3}, {"seed": 1}, {"steps": 5}, {"alpha": 1.0}, {"on": Training("first")}]
)
def test_what_changes_the_adapter_changes_its_key(changed):
    assert key_of(Training(**{"task": "first", **FAST} | changed), Tiny()) != key_of(Training("first", **FAST), Tiny())


def test_a_unit_on_a_frozen_adapter_adds_to_it():
    shared = Training("first", **FAST)
    wanted = Training("second", **FAST | {"rank": 1}, on=shared)
    unit = lorakit.load_adapter(trained(wanted, Tiny()))
    frozen = lorakit.load_adapter(trained(shared, Tiny()))
    assert unit.ranks == (1,)
    # the score it reports is that of the base model with both on it, and the shared one alone cannot do its task
    tiny, task = Tiny(), training.load_task("second")
    model = tiny.load()
    head = tiny.head(model, task)
    with lorakit.applied(model, frozen):
        alone = training.accuracy(model, tiny, head, task, "validation")
        with lorakit.applied(model, unit):
            both = training.accuracy(model, tiny, head, task, "validation")
    assert both == pytest.approx(metrics_of(wanted, tiny)["validation"], abs=0.06)  # bfloat16 may move one text
    assert both > alone + 0.3


def test_every_text_is_seen_as_often_as_any_other():
    tokens = [[1] * (1 + i % 5) for i in range(100)]
    batches = training._batches(tokens, Training("first", batch_size=10))
    seen = torch.bincount(torch.tensor([i for _, rows in zip(range(30), batches, strict=False) for i in rows]))
    assert seen.tolist() == [3] * 100


def test_the_list_of_trainings_has_each_once_and_seed_0_first():
    wanted = list(train_all.trainings(list(train_all.TRAINED)))
    assert len(set(wanted)) == len(wanted)
    assert wanted[: len(train_all.TRAINED)] == [Training(task) for task in train_all.TRAINED]
    assert {t.seed for t in wanted if t.rank == 8 and t.task == "wn_pos"} == {0, 1, 2}
    assert {t.task for t in wanted if t.rank == 16} == set(train_all.USUAL)
    assert all(t.task in ("movie", "icd10") for t in train_all.trainings(["movie", "icd10"]))
