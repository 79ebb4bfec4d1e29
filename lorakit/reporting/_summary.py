"""The first lines of a report: what was done, what came of it, and whether that is normal."""

from __future__ import annotations

from .._few import few
from ..adapters import Adapter
from ..discovery import all_estimators
from ._advice import best_at_rank
from ._measures import best_mean_cosine
from ._parts import number, shown
from ._subject import Subject

UNRELATED, ALIKE = 0.1, 0.5


def ranks_text(adapter: Adapter) -> str:
    """Write an adapter's ranks: one, or the smallest and the largest."""
    ranks = adapter.ranks or (0,)
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def names_text(names: tuple[str, ...], most: int = 3) -> str:
    """Write the names of adapters as a title has them.

    Examples
    --------
    >>> names_text(("law", "medicine")), names_text(tuple("abcde"))
    ('law and medicine', 'a, b, c and 2 more')
    """
    listed = [shown(name, 24) for name in names]
    if len(listed) > most:
        return few(listed, most)
    return f"{', '.join(listed[:-1])} and {listed[-1]}" if len(listed) > 1 else "".join(listed)


def method_text(subject: Subject) -> str:
    """Write the method as the command line calls it, and its class."""
    name = subject.method
    known = [method for kind in ("merger", "pruner") for method, cls in all_estimators(kind).items()
             if cls.__name__ == name]  # fmt: skip
    return f"{known[0]} ({name})" if known else name


def summary_of(subject: Subject) -> list[str]:
    """Return the paragraphs."""
    return {"set": _of_set, "merge": _of_merge, "prune": _of_prune}[subject.kind](subject)


def tiles_of(subject: Subject) -> list[tuple[str, str]]:
    """Return the few numbers that matter most, each with what it is."""
    modules = (f"{len(subject.measures.modules):,}", "modules")
    if subject.kind == "prune":
        kept = [float(value) ** 2 for value in subject.kept]
        return [
            (f"{subject.n}", "adapter" if subject.n == 1 else "adapters"),
            (" / ".join(dict.fromkeys(ranks_text(result) for result in subject.results)), "rank now"),
            (f"{min(kept, default=1.0):.1%}", "energy kept" if subject.n == 1 else "energy kept, at least"),
            modules,
        ]
    if subject.kind == "set":
        low, high = _range(subject)
        digits = 2 if max(-low, high) >= 0.1 else 3
        cosine = [(f"{number(low, digits)} to {number(high, digits)}", "cosines of pairs")] if subject.pairs else []
        parameters = sum(adapter.n_parameters for adapter in subject.adapters)
        return [
            (f"{subject.n}", "adapter" if subject.n == 1 else "adapters"),
            modules,
            *cosine,
            (_millions(parameters), "numbers stored"),
        ]
    (result,) = subject.results
    n_in = len(subject.records[0]["sources"]) if not subject.n else subject.n
    tiles = [(f"{n_in} → 1", "adapters"), (ranks_text(result), "rank"), modules]
    if subject.n and not subject.is_zero:
        best = best_mean_cosine(subject.measures.total[: subject.n, : subject.n])
        reached = f"{number(float(subject.kept.mean()), 2)} of {number(best, 2)}"
        tiles.append((reached, "mean cosine, of what is possible"))
        mean = float(subject.norms[: subject.n].mean())
        tiles.append((f"{number(float(subject.norms[subject.n]) / mean, 2)} ×", "the adapters' mean norm"))
    return tiles


def _of_set(subject: Subject) -> list[str]:
    if subject.n == 1:
        (adapter,) = subject.adapters
        return [f"One adapter of rank {ranks_text(adapter)} with {len(adapter):,} modules. Give several to see how "
                "alike they are."]  # fmt: skip
    best = best_mean_cosine(subject.measures.total[:, :])
    return [
        f"{subject.n} adapters that can be merged with one another. {_relation(subject)}",
        f"One update cannot point in {subject.n} directions: no merge, of whatever method and rank, can have a mean "
        f"cosine above {number(best, 2)} with these adapters. A merge that comes near to it is as good as a merge can "
        "be by this measure.",
    ]


def _of_merge(subject: Subject) -> list[str]:
    (result,) = subject.results
    n_in = subject.n or len(subject.records[0]["sources"])
    first = f"{n_in} adapters were merged into one of rank {ranks_text(result)} by {method_text(subject)}."
    if not subject.n:
        return [first]
    if subject.is_zero:
        return [f"{first} The merged update is zero."]
    kept = subject.kept
    best = best_mean_cosine(subject.measures.total[: subject.n, : subject.n])
    mean = float(kept.mean())
    share = mean / best if best > 0 else 0.0
    verdict = (
        "This is close to the best possible."
        if share >= 0.95
        else "This is normal."
        if share >= 0.8
        else "This is low: see below."
    )
    return [
        first,
        f"The cosine of the merged update with each adapter is between {number(float(kept.min()), 2)} and "
        f"{number(float(kept.max()), 2)}, {number(mean, 2)} on average. {_relation(subject)} No update of any "
        f"rank can have a higher mean cosine with them than {number(best, 2)}; this merge reaches {share:.0%} of that. "
        f"{verdict}",
        "A cosine says how much of an adapter's direction is left. It does not say how well a task is solved: try the "
        "merged adapter on examples of each task.",
    ]


def _of_prune(subject: Subject) -> list[str]:
    one = subject.n == 1
    kept = [float(value) ** 2 for value in subject.kept]
    best = [best_at_rank(subject, i) for i in range(subject.n)]
    ranks = " / ".join(dict.fromkeys(ranks_text(result) for result in subject.results))
    what = "The adapter was" if one else f"{subject.n} adapters were"
    text = (
        f"{kept[0]:.1%} of the update's energy (its squared norm) is kept"
        if one
        else f"Between {min(kept):.1%} and {max(kept):.1%} of the updates' energy (their squared norm) is kept"
    )
    near = all(k >= b - 0.002 for k, b in zip(kept, best, strict=True))
    end = (
        "; no update of these ranks can keep more."
        if near
        else f"; the best update of these ranks would keep {min(best):.1%}{'' if one else ' or more'}."
    )
    return [f"{what} cut to rank {ranks} by {method_text(subject)}.", text + end]


def _range(subject: Subject) -> tuple[float, float]:
    return (subject.pairs[0][0], subject.pairs[-1][0]) if subject.pairs else (0.0, 0.0)


def _relation(subject: Subject) -> str:
    """Say how alike the adapters are."""
    if not subject.pairs:
        return ""
    low, high = _range(subject)
    digits = 2 if max(-low, high) >= 0.1 else 3
    between = (
        f"the cosine of their updates is {number(low, digits)}"
        if len(subject.pairs) == 1
        else f"the cosines of their updates are between {number(low, digits)} and {number(high, digits)}"
    )
    if max(-low, high) < UNRELATED:
        return f"The adapters are almost unrelated: {between}."
    if low < -UNRELATED:
        return f"Some of the adapters work against each other: {between}."
    if low > ALIKE:
        return f"The adapters are much alike: {between}."
    return f"The adapters have something in common: {between}."


def _millions(n: int) -> str:
    return f"{n / 1e9:.2f} billion" if n >= 1e9 else f"{n / 1e6:.2f} million" if n >= 1e6 else f"{n:,}"
