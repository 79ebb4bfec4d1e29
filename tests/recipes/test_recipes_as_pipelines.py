"""Recipes and pipelines: there and back, the same result, and what each error names."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.pipeline import Pipeline, make_pipeline

from lorakit import (
    DistillMerger,
    IsoMerger,
    Isotropizer,
    LegoMerger,
    LegoPruner,
    ModuleSelector,
    MSUKMeans,
    NormBalancer,
    PicoDamper,
    RankBudget,
    RankRule,
    SVCCalibrator,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    TSVMerger,
    load_adapters,
    load_recipe,
    save_adapter,
    save_recipe,
)
from lorakit.discovery import all_estimators
from lorakit.exceptions import InvalidRecipeError, OutputError
from lorakit.recipes.recipe import read_recipe
from lorakit.testing import make_adapters

ESTIMATORS = [cls for kind in ("merger", "pruner", "transformer") for cls in all_estimators(kind).values()]


def there_and_back(estimator, folder):
    return load_recipe(save_recipe(estimator, folder / "recipe.yaml", overwrite=True))


def seeded(cls):
    return cls(random_state=0) if "random_state" in cls().get_params() else cls()


@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.__name__)
def test_every_estimator_comes_back(cls, tmp_path):
    (found,) = [step for _, step in there_and_back(seeded(cls), tmp_path).steps]
    assert repr(found) == repr(seeded(cls))


@pytest.mark.parametrize(
    "estimator",
    [
        SVDMerger(k=RankBudget(mean=12.5, max_rank=32), weights={"law": 2, "tuple": 1}, scale="match"),
        SVDMerger(k=RankBudget(size="50MiB")),
        SVDMerger(k=RankRule(sv_ratio=10.0, max_rank=32)),
        SVDMerger(k=RankRule(sv_fro=0.9)),
        TiesMerger(k=RankRule(sv_cumulative=0.5)),
        SVDMerger(k=0.9, weights=[1, 2.5], scale=1e-5),
        SVDMerger(k="auto", weights={"float": 1.0}),
        TiesMerger(weights={"class": 1.0, "b": 2.0}),
        LegoMerger(k=4, clusterer=MSUKMeans(n_clusters=4, random_state=3, n_init=2), random_state=5),
        LegoMerger(random_state=None),
        SVCCalibrator(merger=TiesMerger(density=0.25), k=4, alpha=1.0),
        Isotropizer(merger=SVCCalibrator(merger=TSVMerger(k=8)), k=4),
        ModuleSelector(include=["a.*", "b"], exclude="no"),
    ],
    ids=repr,
)
def test_parameters_come_back(estimator, tmp_path):
    (found,) = [step for _, step in there_and_back(estimator, tmp_path).steps]
    assert clone(found).get_params(deep=False).keys() == estimator.get_params(deep=False).keys()
    for name, value in estimator.get_params().items():  # repr tells estimators, and None from none
        assert found.get_params()[name] == value or repr(found.get_params()[name]) == repr(value), name


def test_a_pipeline_comes_back_step_by_step(tmp_path):
    steps = [ModuleSelector(include="*"), LegoPruner(k=4, random_state=1), NormBalancer(), PicoDamper(), SVDPruner(k=3)]
    made = Pipeline([("inner", make_pipeline(*steps)), ("nothing", "passthrough"), ("last", IsoMerger(k=8))])
    found = there_and_back(made, tmp_path)
    assert [name for name, _ in found.steps] == ["select", "prune", "balance", "pico", "prune-2", "merge"]
    assert [repr(step) for _, step in found.steps] == [repr(step) for step in [*steps, IsoMerger(k=8)]]


def test_a_saved_pipeline_gives_the_same_adapter(tmp_path):
    adapters = make_adapters(3, n_modules=4, ranks=(4, 8), random_state=0)
    made = make_pipeline(
        ModuleSelector(exclude="layer.3"),
        SVDPruner(k=3),
        NormBalancer(),
        SVCCalibrator(merger=LegoMerger(k=5, random_state=2), scale="match"),
    )
    (one,), (other,) = made.fit_transform(adapters), there_and_back(made, tmp_path).fit_transform(adapters)
    assert list(one) == list(other) == ["layer.0", "layer.1", "layer.2"]
    assert all((one[m].A == other[m].A).all() and (one[m].B == other[m].B).all() for m in one)


def test_what_is_left_out_is_as_on_the_command_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("steps:\n- balance\n- prune:\n- merge: {method: lego}\n- calibrate: {method: isotropizer}\n")
    balance, prune, calibrated = (step for _, step in load_recipe(file).steps)
    assert (repr(balance), repr(prune)) == ("NormBalancer()", "SVDPruner()")
    assert (calibrated.scale, calibrated.merger.scale, calibrated.merger.random_state) == ("match", 1.0, 0)
    file.write_text("steps: [merge]")
    assert repr(load_recipe(file).steps) == "[('merge', TSVMerger(scale='match'))]"
    file.write_text("steps: [merge: {method: distill}]")
    assert load_recipe(file)[0].scale == DistillMerger().scale


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("step: []", 1, "step", "there is no 'step'.*did you mean 'steps'"),
        ("sources: []", 1, "", "has no 'steps'"),
        ("steps: []", 1, "steps", "is empty, expected one step or more"),
        ("recipe: 2\nsteps: [merge]", 1, "recipe", "is 2, expected 1"),
        ("steps:\n- merge\n- mrge:", 3, "steps[1].mrge", "did you mean 'merge'"),
        ("steps:\n- merge: {}\n  prune: {}", 2, "steps[0]", "has merge, prune, expected one kind"),
        ("steps:\n- merge:\n    method: tie", 3, "steps[0].merge.method", "there is no 'tie'.*did you mean 'ties'"),
        ("steps:\n- merge:\n    k: 4\n    desity: 1", 4, "steps[0].merge.desity", "there is no 'desity'"),
        ("steps:\n- merge:\n    method: ties\n    density: 2", 4, "steps[0].merge.density", "must be a float in"),
        ("steps:\n- merge:\n    method: ties\n    density: many", 4, "steps[0].merge.density", "Got 'many'"),
        ("steps:\n- merge:\n    n_jobs: 4", 3, "steps[0].merge.n_jobs", "is of the run"),
        (
            "steps:\n- merge:\n    k: sv_fro:2",
            3,
            "steps[0].merge.k",
            "is 'sv_fro:2', expected sv_fro:N.*between 0 and 1",
        ),
        ("steps:\n- merge:\n    k: mean:0", 3, "steps[0].merge.k", "is 'mean:0', expected mean:N"),
        (
            "steps:\n- merge:\n    k: {class: RankBudgit, mean: 3}",
            3,
            "steps[0].merge.k.class",
            "mean 'RankBudget'",
        ),
        ("steps:\n- merge:\n    k: {class: RankBudget}", 3, "steps[0].merge.k", "needs either mean or size"),
        ("steps:\n- merge: {class: Popen}", 2, "steps[0].merge.class", "there is no 'class'"),
        (
            "steps:\n- merge: {method: lego, clusterer: {class: os.system}}",
            2,
            "steps[0].merge.clusterer.class",
            "no 'os",
        ),
        ("steps:\n- merge\n- merge", 3, "steps[1]", "is a second merge"),
        ("steps:\n- calibrate\n- merge", 2, "steps[0]", "does not follow a merge"),
        ("steps:\n- merge\n- prune\n- calibrate", 4, "steps[2]", "does not follow a merge"),
        ("steps:\n- merge\n- bake", 3, "steps[1]", "bake is a recipe by itself"),
        ("steps: merge", 1, "steps", "is 'merge', expected a list"),
        ("steps: [merge]\nsources: [{name: a}]", 2, "sources[0]", "has no 'path'"),
        ("steps: [merge]\nsources:\n- {path: a, sha: b}", 3, "sources[0].sha", "did you mean 'sha256'"),
        ("steps: [merge]\nsources:\n- {path: a, sha256: b}", 3, "sources[0].sha256", "64 digits"),
        ("steps: [merge]\nsources:\n- {path: a, name: n}\n- {path: b, name: n}", 4, "sources[1]", "is called 'n'"),
        ("steps: [merge]\nbase: {path: b, sha256: 0}", 2, "base.sha256", "did you mean 'headers_sha256'"),
        ("steps: [extract: {k: 1}]\nsources: [{path: b, initial: c}]", 2, "sources[0].initial", "no 'initial'"),
        ("steps: [merge]\noutput: {path: o, dtype: float8}", 2, "output.dtype", "there is no 'float8'"),
        ("steps: [merge]\noutput: {pad_to: 0}", 2, "output.pad_to", "is 0, expected server"),
        ("steps: [merge]\nreading: {assume_alpha: x}", 2, "reading.assume_alpha", "is 'x', expected a number"),
        ("steps: [merge]\nreading: {allow_pickle: true}", 2, "reading.allow_pickle", "for who runs the recipe"),
        ("steps: [extract: {}]", 1, "steps[0].extract", "has no 'k'"),
        ("steps: [extract: {k: 4, exact: 1}]", 1, "steps[0].extract.exact", "expected true or false"),
        ("steps: [convert: {k: 0}]", 1, "steps[0].convert.k", "must be an int in the range"),
        ("steps: [convert]\nsources: [a, b]", 2, "sources", "are 2, expected one"),
    ],
)
def test_an_error_names_line_and_key(text, line, key, says, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRecipeError, match=says) as caught:
        read_recipe(file)
    assert (caught.value.path, caught.value.line, caught.value.key) == (str(file), line, key)
    assert str(caught.value).startswith(f"{file}: line {line}: {key}")


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (KMeans(), "KMeans is no step of lorakit"),
        (make_pipeline(SVDMerger(), KMeans()), "KMeans is no step of lorakit"),
        (LegoMerger(clusterer=KMeans(3)), "LegoMerger has clusterer=KMeans"),
        (LegoMerger(random_state=np.random.RandomState(0)), "LegoMerger has random_state=RandomState"),
        (ModuleSelector(include=str.isupper), "ModuleSelector has include="),
    ],
)
def test_what_a_recipe_cannot_hold_is_refused(estimator, says, tmp_path):
    with pytest.raises(InvalidRecipeError, match=says):
        save_recipe(estimator, tmp_path / "r.yaml")
    assert not list(tmp_path.iterdir())


def test_data_of_a_method_is_named_in_the_file(tmp_path):
    file = save_recipe(DistillMerger(model=object(), inputs=[object()], k=4, random_state=0), tmp_path / "r.yaml")
    assert file.read_text().startswith("# Not held by a recipe, and to be given again: model, inputs\n")
    assert load_recipe(file)[0].k == 4


def test_a_recipe_of_another_command_is_no_pipeline(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("steps: [bake]")
    with pytest.raises(InvalidRecipeError, match=r"no pipeline.*lorakit bake --recipe"):
        load_recipe(file)


def test_sources_are_written_from_the_folder_of_the_recipe(tmp_path):
    paths = [save_adapter(a, tmp_path / "in" / a.name) for a in make_adapters(2, random_state=0)]
    adapters = load_adapters(paths)
    file = save_recipe(SVDMerger(), tmp_path / "r.yaml", sources=adapters, output=tmp_path / "out")
    moved = (tmp_path / "in").rename(tmp_path / "elsewhere") and file
    assert "path: in/task0\n" in moved.read_text()
    assert "path: out\n" in moved.read_text()
    with pytest.raises(OutputError, match="exists"):
        save_recipe(SVDMerger(), file)
    with pytest.raises(InvalidRecipeError, match="'task0' was made in memory"):
        save_recipe(SVDMerger(), file, sources=make_adapters(1), overwrite=True)
    assert file.read_text() == moved.read_text()
