"""Storage for the results of estimators: in memory, or in a temporary file without a name."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple

import torch

from .adapters import Adapter, ModuleInfo, ModuleKind, Provenance
from .exceptions import OutputError
from .factors import LoraFactors, promoted_dtype
from .files.safetensors import bytes_of
from .readers import MemoryReader

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Results", "results_on_disk"]

_folder: ContextVar[Path | None] = ContextVar("lorakit_results_folder", default=None)


@contextmanager
def results_on_disk(folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Keep what estimators make in temporary files instead of in memory.

    Inside the block, every adapter that a merger, a pruner or another transformer makes is written to a file module by
    module, and each module is read back when it is asked for: memory grows with the largest module, not with the
    model. The results are the same, bit for bit. The adapters outlive the block.

    The files have no names: they disappear with the last adapter that needs them, and also when the process is killed.
    Pickling such an adapter pickles its content.

    Parameters
    ----------
    folder : str or PathLike, optional
        Where to make the files; it needs room for the results. Defaults to the system's folder of temporary files,
        which on some systems is in memory.

    Raises
    ------
    OutputError
        By the estimator, if a file cannot be written.

    Examples
    --------
    >>> from lorakit import SVDMerger, results_on_disk
    >>> from lorakit.testing import make_adapters
    >>> with results_on_disk():
    ...     merger = SVDMerger(k=4).fit(make_adapters(random_state=0))
    >>> merger.merged_
    Adapter('svd', modules=2, rank=4, dtype=float32)
    """
    where = Path(tempfile.gettempdir() if folder is None else folder)
    if not where.is_dir():
        raise OutputError(
            "is no folder",
            path=where,
            expected="one in which to keep results",
        )
    token = _folder.set(where)
    try:
        yield
    finally:
        _folder.reset(token)


class Results:
    """The modules of an adapter that is being made: in memory, or on disk inside :func:`results_on_disk`."""

    def __init__(self) -> None:
        folder = _folder.get()
        self._kept: _InMemory | _OnDisk = _InMemory() if folder is None else _OnDisk(folder)

    def put(self, module: str, factors: LoraFactors | Place) -> None:
        """Keep one module's result; what :meth:`leave` has written is there already."""
        self._kept.put(module, factors)

    def leave(self, factors: LoraFactors) -> LoraFactors | Place:
        """In a process that was forked since: write a result to the file, and return what is to travel for it.

        Without a file, or without locks on it, that is the result itself.
        """
        return self._kept.leave(factors)

    def pop(self, module: str) -> LoraFactors:
        """Return what was put, and forget it."""
        return self._kept.pop(module)

    def adapter(self, *, name: str, kinds: Mapping[str, ModuleKind], provenance: Provenance) -> Adapter:
        """Return all that was put, as an adapter."""
        if isinstance(self._kept, _InMemory):
            return Adapter(self._kept.modules, name=name, kinds=kinds, provenance=provenance)
        infos = {
            module: ModuleInfo(
                place.shapes[0][0], place.shapes[0][1], place.shapes[1][0], kinds.get(module, ModuleKind())
            )
            for module, place in self._kept.places.items()
        }
        dtype = promoted_dtype(place.dtype for place in self._kept.places.values())
        return Adapter.from_reader(_DiskReader(self._kept, infos, dtype), name=name, provenance=provenance)


class Place(NamedTuple):
    """Where a module lies in the file: A, then B."""

    start: int
    dtype: torch.dtype
    shapes: tuple[torch.Size, torch.Size]


class _InMemory:
    def __init__(self) -> None:
        self.modules: dict[str, LoraFactors] = {}

    def put(self, module: str, factors: LoraFactors | Place) -> None:
        assert isinstance(factors, LoraFactors)
        self.modules[module] = factors

    def leave(self, factors: LoraFactors) -> LoraFactors:
        return factors

    def pop(self, module: str) -> LoraFactors:
        return self.modules.pop(module)


class _OnDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Place] = {}
        self._lock = Lock()  # of the end of the file, and of its position: modules are read from several threads
        self._end = memoryview(mmap.mmap(-1, 8)).cast("Q")  # memory that forked processes share, as they do the file
        with self._named_errors():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as this does)
        self._shared = _has_locks(self._file)
        weakref.finalize(self, _close, self._file)

    def put(self, module: str, factors: LoraFactors | Place) -> None:
        self.places[module] = factors if isinstance(factors, Place) else self._written(factors)

    def leave(self, factors: LoraFactors) -> LoraFactors | Place:
        return self._written(factors) if self._shared else factors

    def _written(self, factors: LoraFactors) -> Place:
        parts = [bytes_of(factor) for factor in factors]
        with self._named_errors():
            start = at = self._reserved(sum(part.nbytes for part in parts))
            for part in parts:
                self._write_all(part, at)  # so that a full disk is noticed here
                at += part.nbytes
        return Place(start, factors.dtype, (factors.A.shape, factors.B.shape))

    def _reserved(self, size: int) -> int:
        """Return where to write so many bytes, which nobody else will write to."""
        with self._lock:
            if self._shared:  # the system takes the lock from a process that is killed
                fcntl.lockf(self._file, fcntl.LOCK_EX)
            start = self._end[0]
            self._end[0] += size
            if self._shared:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
        return start

    def _write_all(self, part: memoryview, start: int) -> None:
        if not hasattr(os, "pwrite"):
            with self._lock:
                self._file.seek(start)
                self._file.write(part)
                self._file.flush()
            return
        while part.nbytes:  # at a place of its own: forked processes share the position of the file
            done = os.pwrite(self._file.fileno(), part, start)
            part, start = part[done:], start + done

    def pop(self, module: str) -> LoraFactors:
        factors = self.get(module)
        del self.places[module]
        return factors

    def get(self, module: str) -> LoraFactors:
        place = self.places[module]
        sizes = [shape.numel() * place.dtype.itemsize for shape in place.shapes]
        raw = bytearray(sum(sizes))
        with self._named_errors():
            self._read_into(raw, place.start)
        whole = torch.frombuffer(raw, dtype=place.dtype) if raw else torch.empty(0, dtype=place.dtype)
        a, b = whole.split([shape.numel() for shape in place.shapes])
        return LoraFactors(a.reshape(place.shapes[0]), b.reshape(place.shapes[1]))

    def _read_into(self, raw: bytearray, start: int) -> None:
        if not hasattr(os, "preadv"):
            with self._lock:
                self._file.seek(start)
                self._file.readinto(raw)  # type: ignore[attr-defined]
            return
        view, got = memoryview(raw), 0
        while got < len(raw):  # at a place of its own, as it is written
            read = os.preadv(self._file.fileno(), [view[got:]], start + got)
            if not read:
                raise OSError(errno.EIO, "the file is shorter than what was written to it")
            got += read

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"results cannot be kept there: {error.strerror}",
                path=self.folder,
                remedy="free some space, or pass another folder to results_on_disk",
            ) from error


def _has_locks(file: IO[bytes]) -> bool:
    """Whether processes can lock a file against one another: not on every system and file system."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_UN)
    except OSError:
        return False
    return True


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # an error here is of data that nobody needs any more
        file.close()


class _DiskReader:
    """Reads modules of a result that is kept on disk; pickles as their content."""

    checked = True  # when they were put there

    def __init__(self, kept: _OnDisk, infos: Mapping[str, ModuleInfo], dtype: torch.dtype) -> None:
        self._kept = kept
        self.infos = infos
        self.dtype = dtype

    def read(self, module: str) -> LoraFactors:
        return self._kept.get(module)

    def only(self, modules: Sequence[str]) -> _DiskReader:
        return _DiskReader(self._kept, {module: self.infos[module] for module in modules}, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        kinds = {module: info.kind for module, info in self.infos.items()}
        return MemoryReader, ({module: self.read(module) for module in self.infos}, kinds, self.dtype)
