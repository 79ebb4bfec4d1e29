"""Doing again what a file's record says was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import Adapter, AdapterSet
from ..base import BaseTransformer
from ..io.formats.record import file_digest
from ._beside import same_beside
from ._bounds import Work, check_dense, check_parameters
from ._conversions import converted
from ._rebuild import CannotTell, rebuild


class Match(NamedTuple):
    """A recorded source, and what was given for it."""

    name: str
    sha256: str | None
    adapter: Adapter
    path: str
    by: str  # 'sha256', 'name' or 'order'
    same_config: bool | None  # None if there was none to compare
    beside: dict[str, bool]  # whether the base and the initial adapter are those recorded, where either was needed

    def row(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            **self.beside,
            "name": self.name,
            "sha256": self.sha256,
            "path": self.path,
            "matched_by": self.by,
            "same_config": self.same_config,
        }


def match_sources(record: Mapping[str, Any], paths: Sequence[str], given: Sequence[Adapter]) -> list[Match]:
    """Find what was given for each recorded source: by the hash of its weights, else by its name, else by its place.

    Raises
    ------
    CannotTell
        If there is none for a source.
    """
    files = [adapter.provenance.sources[0] for adapter in given]
    digests = [file_digest(file.path, file.opened[0]) for file in files]
    wanted = record["sources"]
    left = set(range(len(given)))
    chosen: dict[int, tuple[int, str]] = {}
    for i, source in enumerate(wanted):
        same = [j for j, digest in enumerate(digests) if digest == source["sha256"] and digest is not None]
        if same:
            # one file may stand for several sources; of several equal files take the one of that name, and a fresh one
            best = min(same, key=lambda j: (j not in left, given[j].name != wanted[i]["name"], j))
            chosen[i] = (best, "sha256")
            left.discard(best)
    for i, source in enumerate(wanted):
        named = [j for j in sorted(left) if given[j].name == source["name"]]
        if i not in chosen and named:
            chosen[i] = (named[0], "name")
            left.discard(named[0])
    missing = [i for i in range(len(wanted)) if i not in chosen]
    if len(left) < len(missing) or (missing and len(given) != len(wanted)):
        source = wanted[missing[0]]
        digest = f"sha256 {source['sha256']}" if source["sha256"] else "no hash is recorded"
        raise CannotTell(f"the source {source['name']!r} ({digest}) is not among those given")
    for i, j in zip(missing, sorted(left), strict=True) if missing else ():
        chosen[i] = (j, "order")
    matches = []
    for i, source in enumerate(wanted):
        j, by = chosen[i]
        config = file_digest(files[j].config, files[j].opened[1])
        known = source["config_sha256"] is not None or config is not None
        matches.append(
            Match(
                source["name"],
                source["sha256"],
                given[j],
                paths[j],
                by,
                source["config_sha256"] == config if known else None,
                same_beside(source, files[j]),
            )
        )
    return matches


def recompute(
    record: Mapping[str, Any], sources: Sequence[Adapter], *, device: str | None, n_jobs: int | None
) -> Adapter:
    """Do the recorded operations again.

    Raises
    ------
    CannotTell
        If one of them cannot be done again, or they are more work than these sources could have needed: a record can
        name its inputs as often as it likes.
    """
    estimators = [rebuild(operation, device=device, n_jobs=n_jobs) for operation in record["operations"]]
    for operation, estimator in zip(record["operations"], estimators, strict=True):
        check_parameters(operation["params"])
        check_dense(estimator, sources)
    made: list[AdapterSet] = []

    def at(place: Mapping[str, Any]) -> Adapter:
        if "source" in place:
            return sources[place["source"]]
        outputs = made[place["operation"]]
        if place["output"] >= len(outputs):
            raise CannotTell(f"operation {place['operation'] + 1} made {len(outputs)} adapters, not more")
        return outputs[place["output"]]

    work = Work(sources)
    for operation, estimator in zip(record["operations"], estimators, strict=True):
        for place in operation["inputs"]:
            work.convert(place.get("conversions", ()))
        X = AdapterSet(
            converted(at(place), place.get("conversions", [])).renamed(place["name"]) for place in operation["inputs"]
        )
        work.spend(X)
        name = type(estimator).__name__
        try:
            # a transformer has nothing to learn, and may be stricter when it is fitted
            stateless = isinstance(estimator, BaseTransformer)
            made.append(estimator.transform(X) if stateless else estimator.fit_transform(X))
        except (ValueError, TypeError, ImportError) as error:
            raise CannotTell(f"{name} cannot be run again on these sources: {error}") from error
    return at(record["result"])
