"""The course of a distilled merge: where it starts, that it can be stopped and goes on, and when it ends."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from tiny_heads import merger, same_bits, toy_forward, toy_inputs, toy_model

from lorakit import Adapter, AdapterSet, AgreementScorer, SVDPruner, TSVMerger, collect_targets
from lorakit._execution import report_progress
from lorakit.exceptions import CorruptFileError, IncompatibleAdaptersError, ParameterError
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 5), dtype=torch.float64, random_state=0))


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_goes_on_bit_for_bit(X, tmp_path):
    whole = merger(epochs=5).fit(X)
    path = tmp_path / "training.pt"

    def stop(done, total):
        if total == 15 and done == 8:  # in the third of five epochs of three steps
            raise Stopped

    with pytest.raises(Stopped), report_progress(stop):
        merger(epochs=5, checkpoint=path).fit(X)
    steps = []
    with report_progress(lambda done, total: steps.append(done) if total == 15 else None):
        resumed = merger(epochs=5, checkpoint=str(path)).fit(X)
    assert steps == list(range(7, 16))
    assert same_bits(resumed.merged_, whole.merged_)
    assert resumed.loss_curve_ == whole.loss_curve_
    assert resumed.agreement_curve_ == whole.agreement_curve_
    assert resumed.temperatures_ == whole.temperatures_
    with pytest.raises(ValueError, match="of a merge of other adapters, inputs or parameters"):
        merger(epochs=6, checkpoint=path).fit(X)
    with pytest.raises(ValueError, match="of a merge of other adapters, inputs or parameters"):
        merger(epochs=5, checkpoint=path, inputs=toy_inputs(seed=1)).fit(X)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CorruptFileError, match=r"training\.pt: is no checkpoint"):
        merger(checkpoint=path).fit(X)


def test_patience_stops_and_the_best_epoch_is_kept(X):
    fitted = merger(epochs=40, patience=2, learning_rate=0.5).fit(X)
    agreement = fitted.agreement_curve_
    assert len(agreement) < 41
    assert max(agreement[-2:]) <= max(agreement[:-2])
    scorer_inputs = toy_inputs()
    held_out = np.sort(np.random.RandomState(fitted._seed()).permutation(60)[:6])
    targets = collect_targets(toy_model(), X, scorer_inputs[held_out], toy_forward)
    scorer = AgreementScorer(toy_model(), scorer_inputs[held_out], toy_forward, targets)
    assert scorer(fitted) == max(agreement)


def test_a_bar_over_the_steps(X, capsys):
    merger(verbose=1, epochs=1).fit(X)
    assert "distill: steps" in capsys.readouterr().err


def test_a_merge_that_there_is_is_cut_and_trained_on(X, tmp_path):
    whole = merger(k=10, epochs=2).fit(X).merged_
    given = merger(k=4, epochs=2, start=whole)
    fitted = clone(given).fit(X)
    assert fitted.start is whole
    assert fitted.merged_.ranks == (4,)
    cut = SVDPruner(k=4).fit_transform([whole])[0]
    inputs = toy_inputs()
    targets = collect_targets(toy_model(), X, inputs, toy_forward)
    held_out = np.sort(np.random.RandomState(given._seed()).permutation(60)[:6])
    part = collect_targets(toy_model(), X, inputs[held_out], toy_forward)
    scorer = AgreementScorer(toy_model(), inputs[held_out], toy_forward, part)
    assert fitted.agreement_curve_[0] == scorer.evaluate(cut)
    assert clone(given).set_params(k=None, targets=targets, inputs=inputs).fit(X).merged_.ranks == (10,)
    assert given.invariances == TSVMerger().invariances
    assert not given.needs_equal_ranks
    assert "start=<Adapter of 2>" in fitted.merged_.provenance.operations[-1]
    assert same_bits(pickle.loads(pickle.dumps(fitted)).merged_, fitted.merged_)
    with pytest.raises(ParameterError, match=r"got k=0\.9, and start='distill', an Adapter"):
        merger(k=0.9, start=whole).fit(X)
    lacking = Adapter({m: f for m, f in whole.items() if m == next(iter(whole))}, name="half")
    with pytest.raises(IncompatibleAdaptersError, match=r"lacks the module 'layer\.1'"):
        merger(k=4, start=lacking).fit(X)
