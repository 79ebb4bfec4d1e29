"""Every method beside the published formula that it follows: what the tests and the page on agreement go through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from lorakit import (
    AdapterSet,
    AverageMerger,
    BreadcrumbsMerger,
    ConcatMerger,
    CtMMerger,
    DareMerger,
    DellaMerger,
    FisherMerger,
    IsoMerger,
    Isotropizer,
    LegoMerger,
    MagnitudeMerger,
    RegMeanMerger,
    SCEMerger,
    SVCCalibrator,
    SVCMerger,
    SVDMerger,
    TaskArithmeticMerger,
    TiesMerger,
    TSVMerger,
    WUDIMerger,
)
from lorakit.activations import Gram, Grams
from lorakit.base import BaseMerger
from lorakit.gradients import Fisher

from . import entrywise, factors, spectral
from .spaces import as_pairs, draws_of, merged_in, streams_of

EVERY_SPACE = ("delta", "factors", "core", "core_factors", "knots")
# What the published functions call a parameter that has another name on the mergers
_WORDS = {"official": ("convention", "official"), "by_row": ("trim_scope", "row")}


class Rule(NamedTuple):
    """A merger entry by entry, and the published rule with the parameters that the merger has."""

    merger: BaseMerger
    rule: Callable[..., Any]
    options: dict[str, Any]


def _rule(merger: BaseMerger, rule: Callable[..., Any], **options: Any) -> Rule:
    params = dict(_WORDS.get(name, (name, value)) for name, value in options.items())
    if "random_state" in merger.get_params():
        params["random_state"] = 0
    return Rule(merger.set_params(**params), rule, options)


ENTRYWISE = {
    "ties": _rule(TiesMerger(), entrywise.ties, density=0.3),
    "ties official": _rule(TiesMerger(), entrywise.ties, density=0.3, official=True),
    "ties frequency": _rule(TiesMerger(), entrywise.ties, density=0.6, vote="frequency"),
    "ties sum": _rule(TiesMerger(), entrywise.ties, density=0.3, disjoint="sum", rescale="l1"),
    "ties max": _rule(TiesMerger(), entrywise.ties, density=0.3, disjoint="max", official=True, rescale="l2"),
    "magnitude": _rule(MagnitudeMerger(), entrywise.magnitude, density=0.4),
    "magnitude l1": _rule(MagnitudeMerger(), entrywise.magnitude, density=0.4, rescale="l1"),
    "magnitude l2": _rule(MagnitudeMerger(), entrywise.magnitude, density=0.4, rescale="l2"),
    "breadcrumbs": _rule(BreadcrumbsMerger(), entrywise.breadcrumbs),
    "breadcrumbs more": _rule(BreadcrumbsMerger(), entrywise.breadcrumbs, density=0.4, gamma=0.15),
    "breadcrumbs elected": _rule(
        BreadcrumbsMerger(), entrywise.breadcrumbs, density=0.4, gamma=0.15, sign_election=True, rescale="linf"
    ),
    "breadcrumbs by row": _rule(
        BreadcrumbsMerger(), entrywise.breadcrumbs, density=0.4, gamma=0.15, by_row=True, rescale="l2"
    ),
    "dare": _rule(DareMerger(), entrywise.dare, density=0.4),
    "dare elected": _rule(DareMerger(), entrywise.dare, density=0.4, sign_election=True),
    "dare frequency": _rule(DareMerger(), entrywise.dare, density=0.7, sign_election="frequency", rescale="l1"),
    "dare unscaled": _rule(DareMerger(), entrywise.dare, density=0.7, rescale=None),
    "della": _rule(DellaMerger(), entrywise.della, density=0.5, epsilon=0.3),
    "della linear": _rule(DellaMerger(), entrywise.della, density=0.5, epsilon=0.3, sign_election=False),
    "della l1": _rule(DellaMerger(), entrywise.della, density=0.5, epsilon=0.3, rescale="l1"),
    "sce": _rule(SCEMerger(), entrywise.sce, density=0.3),
    "sce official": _rule(SCEMerger(), entrywise.sce, density=0.3, official=True),
    "sce all": _rule(SCEMerger(), entrywise.sce, density=1.0),
    "task arithmetic": _rule(TaskArithmeticMerger(), entrywise.task_arithmetic, coefficient=0.7),
}

SPECTRAL: list[tuple[BaseMerger, Callable[..., Tensor], dict[str, Any]]] = [
    (TSVMerger(), spectral.tsv, {}),
    (IsoMerger(), spectral.iso, {}),
    (IsoMerger(variant="cts"), spectral.iso_cts, {"share": 0.8}),
    (IsoMerger(variant="cts", common_share=0.3), spectral.iso_cts, {"share": 0.3}),
    (SVCMerger(), spectral.svc, {"alpha": 1.0}),
    (SVCMerger(alpha=0.2), spectral.svc, {"alpha": 0.2}),
    (WUDIMerger(ridge=0.05), spectral.wudi, {"ridge": 0.05}),
    (WUDIMerger(ridge=0.0), spectral.wudi, {"ridge": 0.0}),
    *(
        (
            CtMMerger(k=5, rule=rule, beta=beta, max_iter=3),
            spectral.ctm,
            {"k": 5, "rounds": 3, "rule": rule, "beta": beta},
        )
        for rule in ("ties", "mean", "iso")
        for beta in (0.0, 0.25, 1.0)
    ),
    (
        CtMMerger(k=5, density=0.6, convention="official", max_iter=3),
        spectral.ctm,
        {"k": 5, "rounds": 3, "rule": "ties", "density": 0.6, "official": True},
    ),
    (
        CtMMerger(k=5, rule="dare_ties", density=0.4, dare_density=0.6, max_iter=3, random_state=1),
        spectral.ctm,
        {"k": 5, "rounds": 3, "rule": "dare_ties", "density": 0.4, "dare_density": 0.6},
    ),
]


def expected_entrywise(case: Rule, X: AdapterSet, module: str, space: str, weights: Any) -> Tensor:
    """What a published rule entry by entry makes of a module, in a space."""
    draws = None
    if "random_state" in case.merger.get_params():
        draws = draws_of(case.merger, X, module, space, weights)
    return torch.from_numpy(merged_in(space, case.rule, X.factors(module), weights, draws, **case.options))


def expected_spectral(
    merger: BaseMerger, rule: Callable[..., Tensor], options: dict[str, Any], X: AdapterSet, module: str, weights: Any
) -> Tensor:
    """What a published rule on singular values makes of a module."""
    own = X.factors(module)
    if options.get("rule") == "dare_ties":
        k = options["k"]
        draws = [rng.random_sample((k, k)) for rng in streams_of(merger, X, module, weights)]
        options = options | {"uniforms": draws}
    mean_one = [len(X) * w / sum(weights) for w in weights]
    return rule([f.delta() for f in own], [f.rank for f in own], mean_one, **options)


def whole(merger: BaseMerger, X: AdapterSet) -> BaseMerger:
    """The merger at the largest rank that it can give: nothing is cut off."""
    limits = [merger._rank_limit([info for info in X.infos(m) if info]) for m in X.module_names]
    return clone(merger).set_params(k=max(limits))


class Comparison(NamedTuple):
    """One row of the page: a merger, the same fitted, and the dense update of each module that its formula gives."""

    source: str
    merger: BaseMerger
    fitted: BaseMerger
    expected: dict[str, Tensor]


def on_factors(X: AdapterSet) -> list[Comparison]:
    """The methods on A and B, on thin sums, with data, and after another merge; on adapters of one rank."""
    n, modules = len(X), X.module_names
    equal = np.full(n, 1 / n)
    pairs = {m: as_pairs(X.factors(m)) for m in modules}
    dense = {m: [b @ a for a, b in pairs[m]] for m in modules}
    rng = np.random.RandomState(0)
    inputs = {m: [rng.standard_normal((2 * w[0].shape[1], w[0].shape[1])) for _ in range(n)] for m, w in dense.items()}
    grams = {
        name: Grams({m: Gram(len(inputs[m][i]), inputs[m][i].T @ inputs[m][i] / len(inputs[m][i])) for m in modules})
        for i, name in enumerate(X.names)
    }
    moments = {m: [tuple(rng.uniform(0.1, 1, x.shape) for x in pair) for pair in pairs[m]] for m in modules}
    fisher = {name: Fisher({m: moments[m][i] for m in modules}) for i, name in enumerate(X.names)}

    def row(source: str, merger: BaseMerger, expected: Callable[[BaseMerger, str], np.ndarray | Tensor]) -> Comparison:
        fitted = (whole(merger, X) if isinstance(merger, RegMeanMerger) else clone(merger)).fit(X)
        return Comparison(source, merger, fitted, {m: torch.as_tensor(expected(fitted, m)) for m in modules})

    def mean(m: str) -> Tensor:
        return spectral.mean([torch.from_numpy(w) for w in dense[m]], None, [1] * n)

    def lego(merger: BaseMerger, m: str) -> np.ndarray:
        return factors.lego(pairs[m], merger.labels_[m], merger.merged_[m].rank)

    regmean, first = RegMeanMerger(grams=grams, ridge=0.0), TiesMerger(k=8, density=0.3)
    merged = clone(first).fit(X).merged_
    return [
        row("mean B times mean A", AverageMerger(), lambda _, m: factors.average(pairs[m], equal)),
        row("mean of the updates", ConcatMerger(), lambda _, m: mean(m)),
        row("its truncated SVD", SVDMerger(k=8), lambda _, m: spectral.truncated(mean(m), 8)),
        row("LoRA-LEGO's formulas, given the clusters", LegoMerger(random_state=0), lego),
        row("the same at k = 8", LegoMerger(k=8, random_state=0), lego),
        row(
            "RegMean's closed form",
            regmean,
            lambda _, m: factors.regmean(dense[m], inputs[m], equal, regmean.offdiagonal),
        ),
        row(
            "Fisher-weighted averages",
            FisherMerger(fisher=fisher, normalize=False),
            lambda _, m: factors.fisher(pairs[m], moments[m], equal),
        ),
        row(
            "SVC's formula on that merge",
            SVCCalibrator(first),
            lambda _, m: spectral.calibrated(merged[m].delta(), [torch.from_numpy(w) for w in dense[m]], equal, 1 / n),
        ),
        row(
            "Iso's formula on that merge",
            Isotropizer(first),
            lambda _, m: spectral.isotropic(merged[m].delta(), merged[m].rank),
        ),
    ]


def over_the_model(X: AdapterSet) -> list[Comparison]:
    """TIES trimmed over the whole model, by both conventions; officially the model decides votes of zero."""
    density, equal = 0.3, np.ones(len(X))
    dense = {m: [f.delta().numpy() for f in X.factors(m)] for m in X.module_names}
    found = []
    for convention in ("exact", "official"):
        extra = int(convention == "official")
        flat = [np.concatenate([dense[m][i].ravel() for m in dense]) for i in range(len(X))]
        merged = entrywise.elected([entrywise.trimmed(x, density, extra) for x in flat], equal, bool(extra))
        parts = np.split(merged, np.cumsum([dense[m][0].size for m in dense])[:-1])
        expected = {m: torch.from_numpy(x.reshape(dense[m][0].shape)) for m, x in zip(dense, parts, strict=True)}
        merger = TiesMerger(density=density, trim_scope="model", convention=convention)
        found.append(Comparison("formula over the model", merger, whole(merger, X).fit(X), expected))
    return found
