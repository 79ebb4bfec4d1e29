"""``lorakit plot``."""

from __future__ import annotations

import sys

import pytest

from lorakit import save_adapter
from lorakit.testing import make_adapters

KINDS = {
    "similarity": ["--measure", "overlap", "--side", "in"],
    "spectrum": ["--kind", "energy", "--mean", "--module", "layer.1"],
    "map": ["--method", "pca", "--color-by", "cluster", "-k", "4", "--task", "task0=law", "--module", "layer.1"],
    "clusters": ["-k", "4", "--task", "task0=law", "--task", "task1=law", "--module", "layer.1", "--seed", "3"],
    "norm-decay": ["-k", "4", "--kind", "ratio", "--module", "layer.1"],
    "variance": ["--ks", "8,2,4", "-j", "2"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(lorakit_, tasks, tmp_path, kind):
    plain, chosen = tmp_path / "a.png", tmp_path / "b.svg"
    assert lorakit_("plot", kind, *tasks, "-o", plain).output == f"wrote {plain}\n"
    assert plain.read_bytes().startswith(b"\x89PNG")
    assert lorakit_("plot", kind, *tasks, "-o", chosen, "-q", *KINDS[kind]).output == ""
    again = tmp_path / "c.svg"
    lorakit_("plot", kind, *tasks, "-o", again, *KINDS[kind])
    assert again.read_bytes() == chosen.read_bytes()
    default = tmp_path / "d.svg"
    lorakit_("plot", kind, *tasks, "-o", default)
    assert default.read_bytes() != chosen.read_bytes()


def test_what_is_there_is_not_replaced(lorakit_, tasks, tmp_path):
    file = tmp_path / "a.png"
    file.write_text("mine")
    result = lorakit_("plot", "similarity", *tasks, "-o", file, code=2)
    assert "a.png: exists; pass --overwrite to replace it" in result.stderr
    assert file.read_text() == "mine"
    lorakit_("plot", "similarity", *tasks, "-o", file, "--overwrite")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_size(lorakit_, tasks, tmp_path):
    file = tmp_path / "a.png"
    lorakit_("plot", "similarity", *tasks, "-o", file, "--width", 5, "--height", 4, "--dpi", 100)
    header = file.read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (500, 400)


def test_names(lorakit_, tasks, tmp_path):
    first, second = (tmp_path / f"{i}.svg" for i in range(2))
    lorakit_("plot", "similarity", *tasks, "-o", first)
    lorakit_("plot", "similarity", *tasks, "-o", second, "--name", "x", "--name", "y", "--name", "z")
    assert first.read_bytes() != second.read_bytes()


def test_ranks_of_the_variance_go_up_to_the_sum_of_the_ranks(lorakit_, tmp_path):
    adapters = make_adapters(ranks=(8, 8), d_in=10, d_out=12, random_state=0)
    narrow = [save_adapter(adapter, tmp_path / adapter.name) for adapter in adapters]
    default, chosen = tmp_path / "default.svg", tmp_path / "chosen.svg"
    lorakit_("plot", "variance", *narrow, "-o", default)
    lorakit_("plot", "variance", *narrow, "-o", chosen, "--ks", "1,2,4,8,16")
    assert default.read_bytes() == chosen.read_bytes()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["similarity", "-o", "a.jpg"], "ends in '.jpg', expected one of .png, .svg, .pdf"),
        (["similarity"], "Missing option '-o'"),
        (["map", "-o", "a.png", "-k", "4"], "--color-by cluster"),
        (["map", "-o", "a.png", "--module", "layer.9"], "no adapter has the module 'layer.9'"),
        (["map", "-o", "a.png", "--module", "layer.9", "--color-by", "cluster"], "no adapter has the module 'layer.9'"),
        (["clusters", "-o", "a.png", "-k", "99"], "-k 99 is above"),
        (["clusters", "-o", "a.png", "--task", "law"], "'law' is not ADAPTER=TASK"),
        (["variance", "-o", "a.png", "--ks", "4;8"], "'4;8' is not a list of ranks"),
        (["variance", "-o", "a.png", "--ks", "0,8"], "at least 1; got 0"),
        (["similarity", "-o", "no/a.png"], "there is no folder no"),
        (["pie", "-o", "a.png"], "No such command 'pie'"),
    ],
)
def test_what_is_refused(lorakit_, tasks, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert said in lorakit_("plot", given[0], *tasks, *given[1:], code=2).stderr
    assert sorted(tmp_path.iterdir()) == before


def test_adapters_that_do_not_fit(lorakit_, tasks, tmp_path):
    wide = save_adapter(make_adapters(1, d_in=48, random_state=0)[0], tmp_path / "wide")
    result = lorakit_("plot", "spectrum", tasks[0], wide, "-o", tmp_path / "a.png", code=2)
    assert "differs between adapters" in result.stderr


def test_without_matplotlib(lorakit_, tasks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = lorakit_("plot", "similarity", *tasks, "-o", tmp_path / "a.png", code=2)
    assert "pip install 'lorakit[plot]'" in result.stderr


def test_help(lorakit_):
    listed = lorakit_("plot", "--help").stdout
    assert all(kind in listed for kind in KINDS)
    for kind in KINDS:
        assert "--overwrite" in lorakit_("plot", kind, "--help").stdout
