"""``lorakit.report``: what a page says, and that nothing in it is believed."""

from __future__ import annotations

import json
import re
import runpy
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import HOSTILE, llama
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

import lorakit
from lorakit import (
    Adapter,
    AdapterSet,
    ConcatMerger,
    LegoMerger,
    LoraFactors,
    NormBalancer,
    SVDMerger,
    SVDPruner,
    TSVMerger,
    load_adapter,
    load_adapters,
    report,
    save_adapter,
)
from lorakit.exceptions import IncompatibleAdaptersError, OutputError, ZeroMergeWarning
from lorakit.reporting._places import place_of
from lorakit.testing import make_adapters


class Reader(HTMLParser):
    """What a browser would find in a page: its tags with their attributes, and its text without scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._inside = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside.pop()
        self.text += " " if tag in ("td", "th", "dd") else ""

    def handle_data(self, data):
        self.text += "" if self._inside else data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(self.text.split())


@pytest.fixture
def tasks(tmp_path):
    made = make_adapters(ranks=(4, 8, 8), random_state=0)
    return load_adapters([save_adapter(adapter, tmp_path / adapter.name) for adapter in made])


def words(found):
    return Reader(found.html).words


def test_a_set(tasks):
    found = report(tasks)
    assert (found.title, found.warnings) == ("task0, task1 and task2", ())
    text = words(found)
    for heading in ("What went in", "How alike the adapters are", "Spectra and energy", "Norms", "Module by module"):
        assert heading in text
    assert "lorakit merge task0 task1 task2 -o merged --method tsv --scale match --report" in text
    digest = sha256(tasks[1].provenance.sources[0].path.read_bytes()).hexdigest()
    assert digest in found.html  # whole, as the title of the short one
    assert "What each adapter kept" not in text


def test_a_merge_shows_the_numbers_of_the_metrics(tasks):
    merger = SVDMerger(k=6, scale="match").fit(tasks)
    found = report(tasks, merger)
    cosines = [c.cosine for c in lorakit.metrics.compare_to_each(merger.merged_, tasks)]
    rows = re.findall(r'<th scope="row">(task\d)</th><td class="drawn".*?</td><td class="num".*?>([\d.]+)<', found.html)
    assert [(name, float(value)) for name, value in rows[:3]] == [
        (f"task{i}", round(c, 3)) for i, c in enumerate(cosines)
    ]
    assert "3 adapters were merged into one of rank 6 by svd (SVDMerger)." in words(found)
    assert "multiplied by" in words(found)


def test_a_prune(tasks):
    found = report(tasks, SVDPruner(k=3).fit_transform(tasks))
    assert found.title == "Prune of task0, task1 and task2"
    assert "no update of these ranks can keep more" in words(found)
    assert "less than 90% of the update's energy" in found.warnings[0]
    assert "lorakit prune task0 task1 task2 -o pruned --method svd -k 3" in words(found)


def test_one_pruned_adapter_is_a_prune_and_one_merged_adapter_a_merge(tasks):
    assert report(tasks[:1], SVDPruner(k=3).fit_transform(tasks[:1])).title == "Prune of task0"
    assert report(tasks[:1], SVDMerger(k=3).fit(tasks[:1])).title == "Merge of task0"
    assert report(tasks[:1], SVDMerger(k=3).fit(tasks[:1]).merged_).title == "Merge of task0"


def test_clusters_of_lego(tasks):
    merger = LegoMerger(k=6, random_state=0).fit(tasks)
    text = words(report(tasks, merger))
    composition = lorakit.metrics.cluster_composition(merger, tasks)
    alone = sum(int(n[(n > 0).sum(axis=1) == 1].sum()) for n in composition.counts.values())
    assert f"one adapter {alone / 40:.1%} {alone}" in text
    assert "Clusters of every module" not in words(report(tasks, merger.merged_))
    assert "Clusters of every module" in words(report(tasks, merger.merged_, estimator=merger))


def test_the_file_and_the_estimator_give_one_page(tasks, tmp_path):
    merger = TSVMerger(k=6, scale="match", weights={"task2": 2, "task0": 1, "task1": 1}).fit(tasks)
    path = save_adapter(merger.merged_, tmp_path / "merged")
    assert report(tasks, load_adapter(path)).html == report(tasks, merger).html


def test_a_pipeline(tasks):
    pipeline = make_pipeline(NormBalancer(), TSVMerger(k=6)).fit(tasks)
    text = words(report(tasks, pipeline))
    assert "make_pipeline(" in text
    assert "NormBalancer(" in text


def test_without_sources(tasks):
    found = report([], SVDMerger(k=4).fit(tasks).merged_)
    assert found.title == "Merge of task0, task1 and task2"
    assert "were not found" in found.warnings[0]
    assert sha256(tasks[0].provenance.sources[0].path.read_bytes()).hexdigest() in found.html


def test_one_adapter_and_partly_different_modules():
    one, other = make_adapters(2, n_modules=3, random_state=0)
    assert "Give several" in words(report([one]))
    found = report([one, other.select(["layer.0", "layer.1"])])
    assert "1 module in task1" in words(found)


def test_adapters_of_one_name(tasks):
    text = words(report([tasks[0], tasks[1].renamed("task0")]))
    assert "task0 (1)" in text
    assert "task0 (2)" in text


def test_many_adapters_and_many_modules_stay_small():
    found = report(llama(32, 8, rank=2), ConcatMerger().fit(llama(32, 8, rank=2)))
    assert len(Reader(found.html).of("tr")) > 224
    assert len(found.html) < 400_000  # as large as for the widths of a 7B model, which are nowhere in it
    many = report(llama(1, 60, rank=1))
    assert "The most opposed and the most alike of 1,770 pairs." in words(many)
    assert len(many.html) < 200_000


@pytest.mark.parametrize("kind", ["set", "merge", "prune"])
def test_hostile_names_stay_text(kind):
    names = [HOSTILE, "--version", "a\n## b | c", "x" * 5000]
    adapters = AdapterSet(
        Adapter(
            {f"layer.{HOSTILE}.{i}": f for i, f in enumerate(adapter.values())},
            name=name,
            provenance=lorakit.adapters.Provenance(
                base_model=HOSTILE, metadata={"license": HOSTILE}, stored_as=(HOSTILE,), task_type=HOSTILE
            ),
        )
        for name, adapter in zip(names, make_adapters(4, random_state=0), strict=True)
    )
    result = {"set": None, "merge": SVDMerger(k=4).fit(adapters), "prune": SVDPruner(k=2).fit_transform(adapters)}[kind]
    html = report(adapters, result).html
    found = Reader(html)
    assert len(found.of("script")) == 1
    assert not found.of("img")
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert "alert(1)" in found.text  # it is there to be read
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "x" * 200 not in Reader(re.sub("<pre.*?</pre>", "", html, flags=re.DOTALL)).text  # a command is shown whole


def test_the_policy_names_the_only_script_and_the_only_style(tasks):
    html = report(tasks).html
    found = Reader(html)
    (policy,) = [meta["content"] for meta in found.of("meta") if meta.get("http-equiv")]
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'" in policy
    loaded = [attrs[key] for _, attrs in found.tags for key in ("src", "href", "srcset", "data") if key in attrs]
    assert all(target.startswith("#") or target == "data:," for target in loaded)
    assert not any("style" in attrs for _, attrs in found.tags)  # the policy forbids them
    assert "http://" not in html
    assert "https://" not in html


def test_every_figure_and_table_says_what_it_is(tasks):
    found = Reader(report(tasks, LegoMerger(k=6, random_state=0).fit(tasks)).html)
    charts = [attrs for attrs in found.of("svg") if attrs.get("class") == "chart"]
    assert len(charts) == 2
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 40 for chart in charts)
    assert all(attrs.get("role") == "img" or attrs.get("aria-hidden") == "true" for attrs in found.of("svg"))
    assert len(found.of("caption")) == len(found.of("table"))
    assert all(attrs["scope"] in ("col", "row") for attrs in found.of("th"))
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in found.of("a")} <= set(ids)


def test_save(tasks, tmp_path):
    found = report(tasks)
    path = found.save(tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == found.html
    with pytest.raises(OutputError, match="exists; pass overwrite=True"):
        found.save(path)
    found.save(path, overwrite=True)
    with pytest.raises(OutputError, match=r"ends in '\.txt', expected \.html or \.htm"):
        found.save(tmp_path / "page.txt")
    assert sorted(p.name for p in tmp_path.glob("**/*.html")) == ["page.html"]


def test_in_a_notebook(tasks):
    found = report(tasks)
    (frame,) = Reader(found._repr_html_()).of("iframe")
    assert frame["srcdoc"] == found.html
    assert frame["title"] == found.title
    assert repr(found).startswith("Report('task0, task1 and task2', ")


def test_what_cannot_be_reported(tasks):
    with pytest.raises(ValueError, match="nothing to report on"):
        report([])
    with pytest.raises(NotFittedError):
        report(tasks, SVDMerger())
    with pytest.raises(TypeError, match="keeps no result; pass what its fit_transform returned"):
        report(tasks, SVDPruner(k=2).fit(tasks))
    with pytest.raises(TypeError, match=r"got str; open files with lorakit\.load_adapter"):
        report(tasks, "merged/")
    with pytest.raises(ValueError, match="2 pruned adapters for 3"):
        report(tasks, SVDPruner(k=2).fit_transform(tasks)[:2])
    with pytest.raises(IncompatibleAdaptersError):
        report(tasks, SVDMerger(k=2).fit(make_adapters(2, d_in=7, random_state=0)).merged_)


def test_alphas_and_licences(tasks, tmp_path):
    folder = tmp_path / "task0"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"lora_alpha": 7, "alpha_pattern": {"layer.1": 3.5}})
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- lora\n---\n# license: not this\n")
    (tmp_path / "task1" / "README.md").write_text("---\nlicense: other\nlicense_name: 'llama3'\n---\n")
    (tmp_path / "task2" / "README.md").write_bytes(b"\xff\xfe no front matter\nlicense: mit\n")
    text = words(report(load_adapters([tmp_path / f"task{i}" for i in range(3)])))
    assert "3.5 / 7" in text
    assert "The licences differ: apache-2.0, llama3." in text
    assert "No licence is stated in the files of task2." in text


def test_the_alpha_and_the_licence_of_a_single_file(tmp_path):
    tensors = {}
    for part in "qk":
        key = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{part}"
        tensors |= {f"{key}.lora_down.weight": torch.ones(4, 8), f"{key}.lora_up.weight": torch.ones(8, 4)}
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"modelspec.license": "CC0"})
    text = words(report([load_adapter(tmp_path / "x.safetensors")]))
    assert " x CC0 " in text
    assert " 4 2 2 " in text  # rank, alpha, modules


def advice(adapters, result=None):
    return " ".join(re.findall(r'<li class="(?:warning|note)">(.*?)</li>', report(adapters, result).html, re.DOTALL))


def scaled(adapter, factor, name):
    return Adapter({m: f.scaled(factor) for m, f in adapter.items()}, name=name)


def test_what_a_page_warns_of():
    one, other, third = make_adapters(3, ranks=4, random_state=0)
    assert "Nearly the same update: task0 and copy" in advice([one, other, one.renamed("copy")])
    assert "These work against each other: task0 and minus" in advice([one, scaled(one, -1, "minus")])
    assert "is 10.0 times as large" in advice([one, scaled(one, 10, "large")])
    assert "The update of none is zero" in advice([one, other, scaled(one, 0, "none")])
    assert "The merged update is weak" not in advice(
        [one, other, third], SVDMerger(scale="match").fit([one, other, third])
    )
    many = make_adapters(9, ranks=2, random_state=1)
    assert "The merged update is weak" in advice(many, SVDMerger().fit(many))
    assert "The merged update is strong" in advice([one, other], SVDMerger(scale=4.0).fit([one, other]))
    assert "Little is left of small" in advice(
        [scaled(one, 0.2, "small"), other], SVDMerger(k=3).fit([scaled(one, 0.2, "small"), other])
    )
    wide = make_adapters(4, ranks=8, d_in=40, d_out=40, random_state=1)
    assert "would be possible" in advice(wide, TSVMerger(k=8, scale="match").fit(wide))


def test_a_merge_that_cancels(tasks):
    with pytest.warns(ZeroMergeWarning):
        merger = SVDMerger(weights=[1, -1]).fit([tasks[0], tasks[0].renamed("copy")])
    found = report([tasks[0], tasks[0].renamed("copy")], merger)
    assert "is zero at 2 modules of 2" in " ".join(found.warnings)


def test_a_source_that_was_matched_by_name(tasks):
    found = report(tasks, SVDMerger(k=4).fit(tasks), matched=["sha256", "name", "sha256"])
    assert "task1: the file given here is not the one that the record names" in found.warnings[0]


def test_places_of_modules():
    cases = {
        "encoder.layer.0.attention.self.query": ("encoder.layer.0", "attention.self.query"),
        "transformer.h.11.attn.c_attn": ("transformer.h.11", "attn.c_attn"),
        "down_blocks.0.attentions.1.to_out.0": ("down_blocks.0.attentions.1", "to_out.0"),
        "single_transformer_blocks.7.proj_mlp": ("single_transformer_blocks.7", "proj_mlp"),
        "a.3.b": ("a.3", "b"),
        "0": ("", "0"),
        "": ("", ""),
    }
    assert {name: place_of(name) for name in cases} == cases


def test_scales_of_colour_do_not_depend_on_the_data():
    a = np.eye(2, 40)
    b = np.ones((2, 1))
    first = Adapter({"m": LoraFactors(a[:1], b)}, name="first")
    second = Adapter({"m": LoraFactors(0.06 * a[:1] + a[1:] * np.sqrt(1 - 0.06**2), b)}, name="second")
    html = report([first, second]).html
    assert '<td class="p2 num" data-v="0.06' in html  # pale, though it is the largest there is


def test_the_example_in_the_documentation_is_current():
    """All but its numbers and versions, which another processor or library may make otherwise in a last digit."""
    folder = Path(__file__).parents[2] / "docs" / "user_guide"
    script = runpy.run_path(str(folder / "report_picture.py"))
    kept, made = (folder / "report_example.html").read_text(), script["make"]().html

    def said(html):
        return re.findall(r"<(?:h1|h2|h3|caption|figcaption|style|script|p)\b.*?>", html), Reader(html).of("meta")

    assert said(kept) == said(made)
    words = [re.sub(r"[\d.,−–]+", "0", Reader(html).words) for html in (kept, made)]
    assert words[0].partition("Spectra")[0] == words[1].partition("Spectra")[0]
