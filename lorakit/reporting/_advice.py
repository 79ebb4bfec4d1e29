"""What somebody should know before they use a result, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from .._base_models import differing_bases
from .._few import few
from ._measures import best_mean_cosine, energy, norms
from ._parts import Advice, number, shown
from ._subject import ROUND_OFF, Subject

# Where a report begins to speak; docs/user_guide/report.rst has the same numbers.
COPIES, OPPOSED, OPPOSED_MODULE, UNLIKE_NORMS = 0.95, -0.1, -0.3, 3.0
LOST, WEAK, STRONG, SHORT_OF_RANK, PRUNED_MUCH = 0.5, 0.5, 2.0, 0.8, 0.9
_MOST = 4  # pairs or names that one warning lists


def advice_of(subject: Subject) -> list[Advice]:
    """Return warnings, then notes."""
    found = list(
        chain(
            _sources(subject),
            _together(subject) if subject.kind != "prune" else (),
            _of_merge(subject) if subject.kind == "merge" else (),
            _of_prune(subject) if subject.kind == "prune" else (),
            _licences(subject),
        )
    )
    return sorted(found, key=lambda advice: advice.level != "warning")


def _sources(subject: Subject) -> Iterator[Advice]:
    if subject.results and not subject.n:
        yield Advice(
            "warning",
            "The adapters that went in were not found, so this report shows only the result and its record.",
            "Give them: lorakit report RESULT --sources ADAPTER..., in Python lorakit.report(adapters, result).",
        )
    by_name = [name for name, by in zip(subject.names, subject.matched, strict=False) if by != "sha256"]
    if by_name:
        yield Advice(
            "warning",
            f"{_listed(by_name)}: the file given here is not the one that the record names by its SHA-256.",
            "The numbers are about the files given here. Find the original files, or merge again.",
        )
    unhashed = [
        name
        for name, about in zip(subject.names, subject.about, strict=True)
        if about.sha256 is None and not about.in_memory
    ]
    if unhashed and not by_name:
        yield Advice(
            "note",
            f"No SHA-256 is known of {_listed(unhashed)}.",
            "The result cannot be traced to these files with certainty. Write them with lorakit, or open them again.",
        )


def _together(subject: Subject) -> Iterator[Advice]:
    X, pairs = subject.adapters, subject.pairs
    bases = differing_bases(X)
    if bases is not None:
        yield Advice(
            "warning",
            f"The adapters name different base models: {bases}.",
            "A merge has a meaning only if these are the same weights. Merge adapters of one base model.",
        )
    zero = [name for name, norm in zip(subject.names, subject.norms, strict=False) if norm == 0]
    if zero:
        yield Advice("warning", f"The update of {_listed(zero)} is zero.", "It was not trained; leave it out.")
    if copies := [pair for pair in reversed(pairs) if pair[0] > COPIES]:
        yield Advice(
            "warning",
            f"Nearly the same update: {_pairs(subject, copies)}.",
            "Two copies count twice in a merge. Leave one out, or give each half of the weight.",
        )
    if opposed := [pair for pair in pairs if pair[0] < OPPOSED]:
        yield Advice(
            "warning",
            f"These work against each other: {_pairs(subject, opposed)}.",
            "A merge cancels part of both. Give the one that matters more a larger weight, or merge them apart.",
        )
    at = [pair for pair in subject.lowest if pair is not None and pair[0] < OPPOSED_MODULE]
    if at and not opposed:
        yield Advice(
            "note",
            f"At {_count(len(at), 'module')} of {len(subject.lowest)}, two adapters have a cosine below "
            f"{number(OPPOSED_MODULE, 1)}.",
            "The table of modules names them. ModuleSelector leaves modules out of a merge.",
        )
    there = subject.norms[: subject.n][subject.norms[: subject.n] > 0]
    if len(there) > 1 and there.max() / there.min() > UNLIKE_NORMS:
        large, small = (subject.names[int(np.argmax(v))] for v in (subject.norms[: subject.n],
                        -np.where(subject.norms[: subject.n] > 0, subject.norms[: subject.n], np.inf)))  # fmt: skip
        yield Advice(
            "warning",
            f"The update of {shown(large)} is {there.max() / there.min():.1f} times as large as that of "
            f"{shown(small)}.",
            "The large one decides the merge. Balance them with weights, or with NormBalancer before the merge.",
        )
    n_modules = len(subject.measures.modules)
    lacking = [(name, n_modules - len(a)) for name, a in zip(subject.names, X, strict=True) if len(a) < n_modules]
    if lacking:
        yield Advice(
            "note",
            "Modules are missing: "
            + ", ".join(f"{_count(n, 'module')} in {shown(name)}" for name, n in lacking[:_MOST])
            + (", ..." if len(lacking) > _MOST else "") + ".",
            "A missing module counts as an update of zero, which makes the merge smaller there.",
        )  # fmt: skip
    if subject.kind == "set" and len({rank for adapter in X for rank in adapter.ranks}) > 1:
        yield Advice(
            "note",
            "The ranks differ.",
            "Methods that add A to A and B to B refuse them. TSV, SVD, LEGO and all others take any ranks.",
        )


def _of_merge(subject: Subject) -> Iterator[Advice]:
    result = subject.results[0]
    gone = [m for m, gram in zip(subject.measures.modules, subject.measures.grams, strict=True)
            if norms(gram)[subject.n] <= ROUND_OFF * norms(gram)[: subject.n].max(initial=0.0) > 0]  # fmt: skip
    if gone:
        yield Advice(
            "warning",
            f"The merged update is zero at {_count(len(gone), 'module')} of {len(subject.measures.modules)}, such as "
            f"{shown(gone[0])}.",
            "The weights cancel there, or the rule dropped every entry. Use other weights, or a larger density.",
        )
    if not subject.n or subject.is_zero:
        return
    gram = subject.measures.total[: subject.n, : subject.n]
    expected = subject.measures.reached(gram)
    counted = subject.measures.weights > 0
    lost = [
        subject.names[i]
        for i in range(subject.n)
        if counted[i] and expected[i] > 0.05 and subject.kept[i] < LOST * expected[i]
    ]
    if lost:
        yield Advice(
            "warning",
            f"Little is left of {_listed(lost)}: less than half of what the exact mean keeps.",
            "Give it a larger weight, or a larger rank to the result (-k, in Python k=).",
        )
    best, mean = best_mean_cosine(gram), float(subject.kept[counted].mean())
    equal = np.ptp(subject.measures.weights) < 1e-9
    if equal and not lost and best > 0 and mean < SHORT_OF_RANK * best:
        ranks = "/".join(map(str, result.ranks[-1:]))
        yield Advice(
            "note",
            f"The mean cosine is {number(mean, 2)}; {number(best, 2)} would be possible.",
            f"If the tasks suffer, try a rank above {ranks} (-k, in Python k=), or another method.",
        )
    ratio = float(subject.norms[subject.n] / (np.abs(subject.measures.weights) @ subject.norms[: subject.n]))
    if subject.given_strengths is not None:  # the norm is what was asked for
        return
    if ratio < WEAK:
        yield Advice(
            "warning",
            f"The merged update is weak: {number(ratio, 2)} of the adapters' mean norm.",
            "Unrelated updates shrink when they are averaged. Merge with --scale match (in Python scale='match').",
        )
    elif ratio > STRONG:
        yield Advice(
            "warning",
            f"The merged update is strong: {number(ratio, 1)} times the adapters' mean norm.",
            "It may drown the base model. Merge with --scale match (in Python scale='match'), or a smaller scale.",
        )


def _of_prune(subject: Subject) -> Iterator[Advice]:
    kept = subject.kept**2
    low = [subject.names[i] for i in range(subject.n) if subject.norms[i] and kept[i] < PRUNED_MUCH]
    if low:
        yield Advice(
            "warning",
            f"{_listed(low)}: less than {PRUNED_MUCH:.0%} of the update's energy is kept.",
            "Choose a larger rank (-k, in Python k=), or a share of the energy such as -k 0.95.",
        )
    worse = [
        subject.names[i] for i in range(subject.n) if subject.norms[i] and kept[i] < best_at_rank(subject, i) - 0.02
    ]
    if worse:
        yield Advice(
            "note",
            f"At the same rank, the truncated SVD would keep more of {_listed(worse)}.",
            "Prune with --method svd (in Python SVDPruner), unless you compare methods.",
        )


def best_at_rank(subject: Subject, i: int) -> float:
    """Share of an adapter's energy that the best update of the result's ranks keeps (Eckart and Young)."""
    kept = total = 0.0
    infos = subject.results[i].infos
    for module, spectra in zip(subject.measures.modules, subject.measures.spectra, strict=True):
        squares = float(np.square(spectra[i]).sum())
        rank = infos[module].rank if module in infos else 0
        kept += squares * float(energy(spectra[i])[min(rank, len(spectra[i]))]) if squares else 0.0
        total += squares
    return kept / total if total else 1.0


def _licences(subject: Subject) -> Iterator[Advice]:
    known = {about.licence for about in subject.about if about.licence}
    silent = [name for name, about in zip(subject.names, subject.about, strict=True) if not about.licence]
    if len(known) > 1:
        yield Advice(
            "note",
            f"The licences differ: {', '.join(shown(text, 40) for text in sorted(known)[:_MOST])}.",
            "The result has to obey all of them. Check whether they can be combined.",
        )
    if silent:
        yield Advice(
            "note",
            f"No licence is stated in the files of {_listed(silent)}.",
            "Ask where they come from before you share the result.",
        )


def _pairs(subject: Subject, pairs: list[tuple[float, int, int]]) -> str:
    found = [
        f"{shown(subject.names[i], 32)} and {shown(subject.names[j], 32)} (cosine {number(c, 2)})" for c, i, j in pairs
    ]
    return few(found, _MOST, between="; ")


def _listed(names: list[str]) -> str:
    return few(names, _MOST, write=lambda name: shown(name, 32))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
