"""ModuleSelector: what is kept, what is refused, and that nothing is read."""

import pytest
from sklearn.pipeline import make_pipeline

from lorakit import Adapter, AdapterSet, ModuleSelector, SVDMerger, load_adapters
from lorakit.testing import make_adapters

NAMES = ("enc.0.query", "enc.0.value", "enc.1.query", "enc.10.query", "head")


def named_set(*per_adapter):
    modules = make_adapters(1, ranks=2, n_modules=1, random_state=0)[0]["layer.0"]
    return AdapterSet(Adapter(dict.fromkeys(names, modules), name=f"a{i}") for i, names in enumerate(per_adapter))


def is_query(module):
    return module.endswith("query")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, NAMES),
        ({"include": "*.query"}, ("enc.0.query", "enc.1.query", "enc.10.query")),
        ({"include": "enc.?.*"}, ("enc.0.query", "enc.0.value", "enc.1.query")),
        ({"include": ["head", "*.value"]}, ("enc.0.value", "head")),
        ({"include": "*.query", "exclude": "enc.1*"}, ("enc.0.query",)),
        ({"exclude": ["*query", "*value"]}, ("head",)),
        ({"include": is_query, "exclude": "enc.0.*"}, ("enc.1.query", "enc.10.query")),
        ({"include": r"enc\.\d\.(query|value)", "syntax": "regex"}, ("enc.0.query", "enc.0.value", "enc.1.query")),
        ({"include": "enc.0", "exclude": None}, None),  # a part of a name is no match
        ({"include": "QUERY*"}, None),
        ({"exclude": "*"}, None),
        ({"include": []}, None),
    ],
)
def test_what_is_kept(options, kept):
    X = named_set(NAMES)
    if kept is None:
        for refuse in (ModuleSelector(**options).fit, ModuleSelector(**options).transform):
            with pytest.raises(ValueError, match=r"leave no module of adapter 'a0'.*'enc\.0\.query'"):
                refuse(X)
    else:
        (out,) = ModuleSelector(**options).fit_transform(X)
        assert tuple(out) == kept
        assert all(out[module] is X[0][module] for module in out)


def test_no_adapter_may_be_left_empty():
    X = named_set(NAMES, ("enc.0.query", "head"))
    assert [len(a) for a in ModuleSelector("*query").fit_transform(X)] == [3, 1]
    with pytest.raises(ValueError, match="of adapter 'a1'"):
        ModuleSelector("*value").fit(X)


@pytest.mark.parametrize("bad", [{"include": 3}, {"syntax": "shell"}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=r"parameter of ModuleSelector"):
        ModuleSelector(**bad).fit(named_set(NAMES))


def test_nothing_is_read(real_adapter_paths, monkeypatch):
    X = load_adapters([real_adapter_paths["wn_pos"], real_adapter_paths["langid_r16"]])
    read = []
    reader = next(cls for cls in type(X[0]._reader).__mro__ if "read" in vars(cls))
    original = reader.read
    monkeypatch.setattr(reader, "read", lambda self, m: (read.append(m), original(self, m))[1])
    out = ModuleSelector("*layer.2.attention.self.*").fit_transform(X)
    assert read == []
    assert out.names == X.names
    merged = SVDMerger(k=4).fit(out).merged_
    assert set(read) == set(merged) == {f"encoder.layer.2.attention.self.{part}" for part in ("query", "key", "value")}


def test_functions_leave_no_address_in_the_provenance():
    (out,) = ModuleSelector(include=is_query).fit_transform(named_set(NAMES))
    assert "is_query" in out.provenance.operations[-1]
    assert "0x" not in out.provenance.operations[-1]


def test_in_a_pipeline():
    X = make_adapters(ranks=(4, 4), random_state=0)
    (merged,) = make_pipeline(ModuleSelector("*.1"), SVDMerger(k=4)).fit_transform(X)
    assert list(merged) == ["layer.1"]
    assert [op.split("(")[0] for op in merged.provenance.operations] == ["ModuleSelector", "SVDMerger"]
