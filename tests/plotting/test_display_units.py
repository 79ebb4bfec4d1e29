"""Maps of units, and pictures of their clusters."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from lorakit import AdapterSet, LegoMerger, SVDMerger
from lorakit.metrics import cluster_composition, norm_decay
from lorakit.plotting import ClusterCompositionDisplay, MSUMapDisplay, NormDecayDisplay
from lorakit.testing import make_adapters


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_every_unit_is_drawn_with_its_task(adapters, method, drawn):
    display = drawn(MSUMapDisplay.from_adapters(adapters, method=method))
    assert display.points.shape == (18, 2)
    assert np.bincount(display.owners).tolist() == [4, 8, 6]
    drawn_points = [scatter.get_offsets() for scatter in display.ax_.collections]
    assert [len(points) for points in drawn_points] == [4, 8, 6]
    assert np.allclose(np.concatenate(drawn_points), display.points)
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == list(adapters.names)
    assert "layer.0" in display.ax_.get_title(loc="left")


def test_the_same_seed_the_same_map(adapters):
    first, second = (MSUMapDisplay.from_adapters(adapters).points for _ in range(2))
    assert np.array_equal(first, second)


def test_pca_keeps_distances_in_a_plane(drawn):
    """Three units span a plane, so their distances can be kept."""
    adapters = make_adapters(ranks=(1, 1, 1), random_state=0)
    display = drawn(MSUMapDisplay.from_adapters(adapters, module="layer.1", method="pca"))
    units = AdapterSet(adapters).msus("layer.1").numpy()
    assert pdist(display.points) == pytest.approx(pdist(units), rel=1e-5)
    assert "%" in display.axes[0]


def test_tasks_join_adapters(adapters, drawn):
    display = drawn(MSUMapDisplay.from_adapters(adapters, tasks={"task0": "law", "task2": "law"}, method="pca"))
    assert display.tasks == ["law", "task1"]
    assert np.bincount(display.owners).tolist() == [10, 8]


def test_clusters_are_drawn_as_numbers(adapters, merger, drawn):
    display = drawn(MSUMapDisplay.from_estimator(merger, adapters, method="pca"))
    labels = merger.labels_["layer.0"]
    assert np.array_equal(display.clusters, labels)
    sizes = np.bincount(labels)
    shown = sorted(len(scatter.get_offsets()) for scatter in display.ax_.collections)
    assert shown == sorted([*sizes[sizes > 1].tolist(), *([(sizes == 1).sum()] if (sizes == 1).any() else [])])
    assert drawn(display.plot(color_by="task")).ax_.get_legend() is not None


@pytest.mark.parametrize("ranks", [(1, 1), (1, 2), (2, 2, 2)])
@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_few_units(ranks, method, drawn):
    drawn(MSUMapDisplay.from_adapters(make_adapters(ranks=ranks, random_state=0), method=method))


def test_composition_is_that_of_the_metric(adapters, merger, drawn):
    display = drawn(ClusterCompositionDisplay.from_estimator(merger, adapters, module="layer.1"))
    counts = merger.composition("layer.1")
    order = [int(t.get_text()) for t in display.ax_.get_xticklabels()]
    assert (np.diff(counts.sum(axis=1)[order]) <= 0).all()
    heights = np.array([[bar.get_height() for bar in bars] for bars in display.bars_])
    assert np.array_equal(heights.T, counts[order])
    tops = [bar.get_y() + bar.get_height() for bar in display.bars_[-1]]
    assert tops == counts.sum(axis=1)[order].tolist()
    assert len({bars[0].get_hatch() for bars in display.bars_}) == 3  # without colour too
    purity = cluster_composition(merger, adapters).purity["layer.1"]
    assert f"purity {purity:.2f}" in display.ax_.get_title(loc="left")


@pytest.mark.parametrize("kind", ["norms", "ratio"])
def test_decay_is_that_of_the_metric(adapters, merger, kind, drawn):
    display = drawn(NormDecayDisplay.from_estimator(merger, adapters, kind=kind))
    found = norm_decay(merger, adapters)
    points = np.concatenate([scatter.get_offsets() for scatter in display.ax_.collections])
    assert len(points) == 12
    fields = (found.members, found.centroids) if kind == "norms" else (found.sizes, found.ratio)
    expected = np.stack([np.concatenate(list(field.values())) for field in fields], axis=1)
    assert np.array(sorted(points.tolist())) == pytest.approx(np.array(sorted(expected.tolist())))
    one = drawn(NormDecayDisplay(found).plot(kind=kind, module="layer.0"))
    assert sum(len(scatter.get_offsets()) for scatter in one.ax_.collections) == 6


def test_what_is_refused(adapters, merger):
    with pytest.raises(ValueError, match="'umap'"):
        MSUMapDisplay.from_adapters(adapters, method="umap")
    with pytest.raises(ValueError, match=r"no adapter has the module 'layer\.9'"):
        MSUMapDisplay.from_adapters(adapters, module="layer.9")
    with pytest.raises(ValueError, match="at least two units, got 1"):
        MSUMapDisplay.from_adapters(make_adapters(1, ranks=1))
    with pytest.raises(ValueError, match="from_estimator"):
        MSUMapDisplay.from_adapters(adapters, color_by="cluster", method="pca")
    with pytest.raises(ValueError, match="'rank'"):
        MSUMapDisplay.from_adapters(adapters, color_by="rank", method="pca")
    with pytest.raises(TypeError, match="SVDMerger has no clusters"):
        MSUMapDisplay.from_estimator(SVDMerger().fit(adapters), adapters)
    with pytest.raises(ValueError, match="other adapters"):
        ClusterCompositionDisplay.from_estimator(merger, adapters[::-1])
    with pytest.raises(ValueError, match=r"no module 'layer\.9'"):
        ClusterCompositionDisplay.from_estimator(merger, adapters, module="layer.9")
    with pytest.raises(ValueError, match=r"no module 'layer\.9'"):
        NormDecayDisplay.from_estimator(merger, adapters, module="layer.9")
    with pytest.raises(ValueError, match="'share'"):
        NormDecayDisplay.from_estimator(merger, adapters, kind="share")


def test_a_module_without_units(drawn):
    x, y = make_adapters(2, ranks=3, random_state=0)
    X = AdapterSet([x.select(["layer.0"]), y])
    merger = LegoMerger(k=2, weights=[1, 0], random_state=0).fit(X)
    display = drawn(ClusterCompositionDisplay.from_estimator(merger, X, module="layer.1"))
    assert "no unit takes part" in display.ax_.get_title(loc="left")
    for kind in ("norms", "ratio"):
        drawn(NormDecayDisplay.from_estimator(merger, X, module="layer.1", kind=kind))
