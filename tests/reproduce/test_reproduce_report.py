"""Files are written whole; tables reach the page they belong to; experiments merge what they say."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import cache
import lego_table1
import numpy as np
import pytest
import report
import run_all
import svd_table1
import torch
from adapters import norm, permuted
from report import Report, Table, mean_spread, put, standing

from lorakit import AdapterSet
from lorakit.testing import make_adapters

TABLE = Table("a-table", ["method", "score"], [["LEGO", "0.5"], ["", "0.25 ± 0.1"]], "What it is.")


def test_the_cache_is_where_the_variable_says(cache_of_the_test, monkeypatch):
    assert cache.cache_folder("a", "b") == cache_of_the_test / "a" / "b"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_of_the_test / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LORAKIT_REPRODUCE")
    assert cache.cache_folder() == cache_of_the_test / "xdg" / "lorakit" / "reproduce"


def test_files_are_whole_or_not_there(tmp_path):
    def stopped():
        with cache.written(tmp_path / "f") as extra_weights:
            extra_weights.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert not list(tmp_path.iterdir())
    cache.write_json(tmp_path / "f", {"a": 1})
    cache.write_json(tmp_path / "f", {"a": 2})
    assert cache.read_json(tmp_path / "f") == {"a": 2}
    assert cache.read_json(tmp_path / "g") is None
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_another_process_finished_stays(tmp_path):
    with cache.written(tmp_path / "folder") as extra_weights:
        extra_weights.mkdir()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["theirs"]


def test_keys_depend_on_content_alone():
    assert cache.content_key({"a": 1, "b": 2}) == cache.content_key({"b": 2, "a": 1})
    assert cache.content_key([1, 2]) != cache.content_key([2, 1])


def test_a_page_is_begun_and_filled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/anywhere/lego_x.py", "--seeds", "0", "--page", "p.rst"])
    page = tmp_path / "lego_x.rst"
    put(TABLE, page)
    first = page.read_text()
    assert first.startswith("Lego x\n======\n")
    assert "    python examples/reproduce/lego_x.py --seeds 0\n" in first
    assert "p.rst" not in first
    page.write_text(first.replace("Lego x\n", "Mine !\n") + "\nMore of mine.\n")
    put(Table("a-table", ["method"], [["SVD"]]), page)
    put(Table("another", ["method"], [["TIES"]]), page)
    text = page.read_text()
    assert text.startswith("Mine !\n")
    assert "More of mine." in text
    assert "LEGO" not in text
    assert text.index("SVD") < text.index("More of mine.") < text.index("TIES")


def test_a_note_and_a_picture_come_below_the_table(tmp_path):
    page = tmp_path / "pages" / "page.rst"
    put(Table("a-table", ["method"], [["LEGO"]], note="LEGO is first.", picture=tmp_path / "pictures" / "p.png"), page)
    text = page.read_text()
    assert text.index("LEGO\n") < text.index("LEGO is first.") < text.index(".. image:: ../pictures/p.png\n")


def test_a_table_that_was_measured_elsewhere_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["distill.py", "--parts", "longer", "--measured", "--keep"])
    put(replace(TABLE, machine="One thread of another."), tmp_path / "page.rst")
    text = (tmp_path / "page.rst").read_text()
    assert "python examples/reproduce/distill.py --parts longer\n\nOne thread of another.\n" in text
    assert report.machine() not in text


def test_what_is_recorded_needs_no_tasks(monkeypatch):
    monkeypatch.setattr(report, "available", None)
    monkeypatch.setattr(sys, "argv", ["distill.py", "--measured", "--tasks", "movie", "spam"])
    options = report.parser("What is measured.")
    report.kept_options(options, "measured/x.json")
    assert report.parse(options).tasks == ["movie", "spam"]


def test_pictures_go_beside_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "available", list)
    for more, expected in ((["--figures", "f"], Path("f")), ([], tmp_path)):
        monkeypatch.setattr(sys, "argv", ["x.py", "--page", str(tmp_path / "p.rst"), *more])
        assert report.parse(report.parser("x")).figures == expected


def test_a_broken_page_is_an_error(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text("Title\n=====\n\n.. begin a-table\n\nno end\n")
    with pytest.raises(ValueError, match="expected one place for 'a-table'"):
        put(TABLE, page)


def test_pages_are_valid_restructuredtext(tmp_path):
    core, nodes = pytest.importorskip("docutils.core"), pytest.importorskip("docutils.nodes")
    put(TABLE, tmp_path / "page.rst")
    tree = core.publish_doctree((tmp_path / "page.rst").read_text(), settings_overrides={"report_level": 5})
    assert not [m for m in tree.findall(nodes.system_message) if m["level"] > 1]
    assert re.findall(r"<row>", tree.pformat()) == ["<row>"] * 3


def test_a_report_keeps_its_numbers(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lego_x.py"])
    options = report.parser("x").parse_args([])
    Report("lego_x", options, [TABLE], {"LEGO": 0.5}).publish()
    found = cache.read_json(cache.cache_folder("results") / "lego_x.json")
    assert found["numbers"] == {"LEGO": 0.5}
    assert "torch" in found["machine"]
    assert "0.25 ± 0.1" in capsys.readouterr().out


def test_means_and_spreads():
    assert mean_spread([0.5]) == "0.500"
    assert mean_spread([0.4, 0.6], digits=2) == "0.50 ± 0.14"
    assert report.mean_over_tasks([{"a": 0.2, "b": 0.4}]) == pytest.approx([0.3])
    assert report.seeds([1]) == "one seed"


def test_who_is_first_and_by_how_much():
    scores = {"SVD": [0.5, 1.0], "LEGO": [0.75, 0.5], "TIES": [0.75, 1.0], "average": [0.125, 0.25]}
    assert standing(scores, "LEGO") == (
        "LEGO is number 3 of 4, 25.0 ± 35.4 points behind the best other, TIES (ahead in 0 of 2 seeds)."
    )
    assert standing(scores, "LEGO", "SVD") == (
        "LEGO is number 3 of 4, 12.5 ± 53.0 points behind the SVD (ahead in 1 of 2 seeds)."
    )
    assert standing(scores, "TIES").startswith("TIES is number 1 of 4, 12.5 ± 17.7 points ahead of the best other, SVD")


def test_options(monkeypatch):
    monkeypatch.setattr(report, "available", lambda names: list(names)[:3])
    monkeypatch.setattr(sys, "argv", ["x.py", "--quick"])
    options = report.parse(report.parser("x"))
    assert (options.seeds, options.n_test, options.tasks) == ([0], 40, list(report.QUICK_TASKS[:3]))
    monkeypatch.setattr(sys, "argv", ["x.py", "--n-test", "0"])
    with pytest.raises(SystemExit):
        report.parse(report.parser("x"))


def test_run_all_finds_the_experiments_and_names_wrong_ones(monkeypatch):
    assert {"lego_table1", "svd_table1"} <= {script.stem for script in run_all.experiments()}
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "lego_table99"])
    with pytest.raises(SystemExit, match=r"no experiments \['lego_table99'\]; there are"):
        run_all.main()


def test_a_failing_experiment_does_not_stop_the_others(monkeypatch, tmp_path, capfd):
    for name, code in (("lego_a", 3), ("lego_b", 0)):
        (tmp_path / f"{name}.py").write_text(f"import sys; print('{name}', sys.argv[1:]); sys.exit({code})")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--no-training", "--pages", "p", "--seeds", "0"])
    assert run_all.main() == 1
    printed = capfd.readouterr().out
    assert re.search(r"lego_a +FAILED with status 3", printed)
    assert re.search(r"lego_b +done", printed)
    assert "lego_b ['--seeds', '0', '--page', 'p/lego_b.rst']" in printed


@pytest.fixture(scope="module")
def adapters():
    return AdapterSet(make_adapters(3, ranks=4, n_modules=1, d_in=400, d_out=384, random_state=0))


def test_lego_and_svd_give_an_adapter_back_from_its_permuted_copy(adapters):
    pair = AdapterSet([adapters[0], permuted(adapters[0], np.random.RandomState(0))])
    merged = lego_table1.merges(pair)
    ((module, own),) = adapters[0].items()
    for what in ("LEGO", "SVD"):
        torch.testing.assert_close(merged[what][module].delta(), own.delta(), rtol=1e-3, atol=1e-4)
    lost = (merged["weight average"][module].delta() - own.delta()).norm() / own.delta().norm()
    assert lost > 0.2


def test_cross_terms_and_noise_are_those_of_equation_3(adapters):
    """In dense float64: the sums, the direct merge of sums, and what it has more."""
    found = svd_table1.variants(adapters, "averaging", {"MM": svd_table1.AS_IT_IS, "DM": 1.5}, seed=0)
    deltas = {what: next(iter(adapter.values())).delta().double() for what, adapter in found.items()}
    factors = [next(iter(adapter.values())).to(torch.float64) for adapter in adapters]
    multiplied = sum(f.delta() for f in factors)
    m = sum(f.B for f in factors) @ sum(f.A for f in factors) - multiplied
    torch.testing.assert_close(deltas["MM"], multiplied / 3, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(deltas["MM + M"], (multiplied + m) / 3, rtol=1e-3, atol=1e-3)
    for what in svd_table1.NOISES:
        noise = deltas[f"MM + {what}"] - deltas["MM"]
        assert noise.std().item() == pytest.approx(m.std().item() / 3, rel=1e-4)
        assert noise.mean().item() == pytest.approx(m.mean().item() / 3, abs=1e-4 * m.std().item())
    assert torch.linalg.matrix_rank(deltas["MM + thin noise"] - deltas["MM"], rtol=1e-4) <= 4 * (3 + 1)
    torch.testing.assert_close(deltas["DM"], (multiplied + m) / 9, rtol=1e-3, atol=1e-3)
    assert norm(found["DM, own scale"]) == pytest.approx(1.5 * np.mean([norm(a) for a in adapters]), rel=1e-3)


@pytest.mark.parametrize("method", svd_table1.METHODS)
def test_the_merges_of_a_method_are_of_one_norm_and_what_is_added_too(adapters, method):
    found = svd_table1.variants(adapters, method, {"MM": 1.2, "DM": 1.2}, seed=0)
    assert norm(found["DM"]) == pytest.approx(norm(found["MM"]), rel=1e-3)
    deltas = {what: next(iter(adapter.values())).delta() for what, adapter in found.items()}
    added = [(deltas[f"MM + {x}"] - deltas["MM"]).norm().item() for x in ("M", *svd_table1.NOISES)]
    assert added[0] == pytest.approx(added[1], rel=1e-3)
    assert added[0] == pytest.approx(added[2], rel=1e-3)
    mean = sum(next(iter(a.values())).delta() for a in adapters)
    m = sum(f.B for a in adapters for f in a.values()) @ sum(f.A for a in adapters for f in a.values()) - mean
    assert added[0] / norm(found["MM"]) == pytest.approx((m.norm() / mean.norm()).item(), rel=1e-3)
