"""Finding the sources that a record names: by what is given, on the Hub, and in the folders near the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..exceptions import LorakitError, SourceError
from ..files.open_checkpoint import open_checkpoint
from ..io.formats.record import file_digest
from ..io.formats.registry import abouts
from ..io.hub import fetch, hub_id

_MOST_ENTRIES = 10_000  # that are looked at in the folders near the result
_MOST_BYTES = 4 << 30  # of a file that has another name than a source
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class Search:
    """What may be a source.

    Parameters
    ----------
    given : sequence of str
        Paths of adapters or checkpoints, of folders that hold some, or names on the Hub. If there are any, nothing else
        is looked at.
    result : Path
        What is to be made again: its folder, those beside it and the current folder are looked through for names.
    allow_pickle : bool, default=False
        Whether pickles may be fetched from the Hub.
    """

    def __init__(self, given: Sequence[str], result: Path, *, allow_pickle: bool = False) -> None:
        self.given, self.result, self.allow_pickle = given, result, allow_pickle

    def adapter(self, source: Mapping[str, Any]) -> str:
        """Return the path, or the name on the Hub, of an adapter with the hashes that a record has of it.

        Raises
        ------
        SourceError
            If there is none.
        """
        name, digest = str(source["name"]), source["sha256"]
        if digest is None:
            raise SourceError(
                f"source {name!r} has no hash in the record: it was made in memory, or changed while it was read",
                name=name,
                path=str(self.result),
                expected="sources that were files",
            )
        seen: list[str] = []
        for path in self._candidates(name):
            weights, config = _files_of(path)
            found = file_digest(weights)
            if found == digest and source["config_sha256"] in (None, file_digest(config)):
                return str(path)
            if found == digest:
                found = f"{found} with another config, {file_digest(config)}"
            if found is not None and (self.given or path.name.startswith(name.rpartition("/")[2])):
                seen.append(f"{path} has the sha256 {found}")
        hub = source.get("hub")
        if isinstance(hub, str) and not self.given and (wanted := hub_id(hub)) is not None:
            fetched = fetch(wanted, allow_pickle=self.allow_pickle).path
            if file_digest(_files_of(fetched)[0]) == digest:
                return hub
        raise SourceError(
            f"source {name!r} is not among {'those given' if self.given else 'the adapters near it'}"
            + (f": {'; '.join(seen[:3])}" if seen else ""),
            name=name,
            path=str(self.result),
            seen_sha256=seen[0].rpartition(" ")[2] if seen else None,
            expected_sha256=digest,
            expected=f"weights with the sha256 {digest}"
            + (f" and a config with {source['config_sha256']}" if source["config_sha256"] else ""),
            remedy="say where the sources are now: --sources PATH..., adapters or folders that hold them",
        )

    def checkpoint(self, what: str, *, headers: str | None = None, name: str | None = None) -> str:
        """Return the path of a checkpoint: by the hash of its headers, or by its name.

        Raises
        ------
        SourceError
            If there is none.
        """
        from ..files.checkpoint import headers_digest

        for path in self._candidates(name):
            if (name is not None and path.name != name) or path.resolve() == self.result.resolve():
                continue
            try:
                found = headers_digest(open_checkpoint(path))
            except (LorakitError, OSError):
                continue
            if headers in (None, found):
                return str(path)
        wanted = f"tensors whose names and shapes have the sha256 {headers}" if headers else f"one called {name!r}"
        raise SourceError(
            f"{what} is not among {'those given' if self.given else 'the checkpoints near it'}",
            name=name or what,
            path=str(self.result),
            expected_sha256=headers,
            expected=wanted,
            remedy="say where the sources are now: --sources PATH...",
        )

    def _candidates(self, name: str | None) -> Iterator[Path]:
        if self.given:
            yield from self._of_given()
            return
        named = None if name is None else name.rpartition("/")[2]
        here = [self.result.absolute().parent, Path.cwd()]
        others = []
        for path in _entries(here, depth=2):
            if named is None or named in (path.name, path.stem):
                yield path
            elif path.parent in here and not _is_large(path):
                others.append(path)
        yield from others

    def _of_given(self) -> Iterator[Path]:
        for text in self.given:
            wanted = None if Path(text).exists() else hub_id(text)
            path = Path(text) if wanted is None else fetch(wanted, allow_pickle=self.allow_pickle).path
            if not path.exists():
                raise FileNotFoundError(f"{path}: --sources: there is no such path")
            yield path
            if path.is_dir() and _files_of(path)[0] is None:
                yield from _entries([path], depth=2)


def _entries(folders: Iterable[Path], *, depth: int) -> Iterator[Path]:
    """Yield folders and weights in some folders and in those below, a few of them in an order that does not change."""
    left, seen = _MOST_ENTRIES, set()
    level = list(folders)
    for _ in range(depth):
        below = []
        for folder in level:
            try:
                entries = sorted(folder.iterdir())
            except OSError:
                continue
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                if entry in seen or entry.name.startswith(".") or not (entry.is_dir() or entry.suffix in _SUFFIXES):
                    continue
                seen.add(entry)
                yield entry
                below += [entry] if entry.is_dir() else []
        level = below


def _is_large(path: Path) -> bool:
    """Whether a file of another name is too large to be read on the chance that it is an adapter."""
    weights = _files_of(path)[0]
    return weights is not None and weights.stat().st_size > _MOST_BYTES


def _files_of(path: Path) -> tuple[Path | None, Path | None]:
    """Return the weights of an adapter and the config beside them, by their names."""
    folder = path if path.is_dir() else path.parent
    names = [name for known in abouts() for name in (*known.weights, *known.pickles)]
    weights = next((folder / name for name in names if (folder / name).is_file()), None) if path.is_dir() else path
    configs = [folder / known.config for known in abouts() if known.config is not None]
    return weights, next((config for config in configs if config.is_file()), None)
