"""Adapters on the Hugging Face Hub: ``org/name`` where no such path exists, or ``hf://org/name[@revision][/part]``.

huggingface_hub does the work, with its own cache: what has been fetched once is found again without a network.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

from ..exceptions import Setting, UnsupportedAdapterError
from .formats.registry import abouts

__all__ = ["Fetched", "HubId", "fetch", "hub_id"]

_PART = r"[A-Za-z0-9][\w.-]*"
_PLAIN = re.compile(rf"{_PART}/{_PART}")
_URL = re.compile(rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@/]+))?(?:/(?P<part>[^@]+))?")
# The disk is full or cannot be written to, so the network is not at fault
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class HubId(NamedTuple):
    """What a text names on the Hub.

    Parameters
    ----------
    repo : str
        Owner and name.
    revision : str or None
        Branch, tag or commit; None is the main branch.
    part : str
        A folder or a file in the repository; empty for all of it.
    certain : bool
        Whether the text says that it is on the Hub; a plain ``org/name`` could also be a path with a typing error.
    """

    repo: str
    revision: str | None = None
    part: str = ""
    certain: bool = False

    @property
    def named(self) -> Path:
        """A path that has the names an adapter can be called by: owner, name, part."""
        path = Path(self.repo) / self.part
        if not self.part.endswith(_FILES):
            return path
        return path.parent if path.name in (*_weights(), *_pickles()) else path.with_suffix("")


class Fetched(NamedTuple):
    """Files of the Hub that are on this machine now.

    Parameters
    ----------
    path : Path
        The folder or file.
    origin : str
        ``hf://org/name@commit``, and the part if there is one.
    """

    path: Path
    origin: str


def hub_id(given: str | os.PathLike[str]) -> HubId | None:
    """Return what a text names on the Hub; None for a path.

    Raises
    ------
    ValueError
        If it begins with ``hf://``, and the rest is not a valid name on the Hub.

    Examples
    --------
    >>> hub_id("hf://org/name@v1/law")
    HubId(repo='org/name', revision='v1', part='law', certain=True)
    >>> hub_id("../org/name") is None
    True
    """
    if not isinstance(given, str):
        return None
    if given.startswith("hf://"):
        found = _URL.fullmatch(given.rstrip("/"))
        if found is None or ".." in (found["part"] or "").split("/"):
            raise ValueError(
                f"{given!r}: expected hf://org/name, hf://org/name@revision or hf://org/name@revision/part"
            )
        return HubId(found["repo"], found["revision"], found["part"] or "", certain=True)
    if _PLAIN.fullmatch(given) and not given.endswith(_FILES):
        return HubId(given)
    return None


def fetch(wanted: HubId, *, allow_pickle: bool = False) -> Fetched:
    """Bring an adapter's config and weights, and nothing else, to this machine, or find them in the cache.

    Parameters
    ----------
    wanted : HubId
        What to fetch.
    allow_pickle : bool, default=False
        Fetch a pickle, such as ``adapter_model.bin``, where there is no safetensors file.

    Returns
    -------
    Fetched
        The local path, and the commit that it was fetched from.

    Raises
    ------
    ImportError
        If huggingface_hub is not installed.
    FileNotFoundError
        If the Hub has no such repository or revision, or cannot be reached and the cache does not have it.
    PermissionError
        If access must be asked for first.
    ConnectionError
        If the Hub answers with another error.
    OSError
        If the cache cannot be written to.
    UnsupportedAdapterError
        If there are no weights of an adapter in it.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{wanted.repo}: adapters of the Hugging Face Hub need the package huggingface_hub: "
            "pip install 'lorakit[hub]', or download it and pass its path"
        ) from error
    configs = list(dict.fromkeys(known.config for known in abouts() if known.config is not None))
    if wanted.part.endswith(_FILES):
        parent = wanted.part.rpartition("/")[0]
        folder = _snapshot(wanted, [wanted.part, *(f"{parent}/{name}".lstrip("/") for name in configs)])
        weights: list[str] = [wanted.part]
    else:
        inside = f"{wanted.part}/" if wanted.part else ""
        needed = [inside + name for name in configs]
        weights = [inside + name for name in _weights()]
        folder = _snapshot(wanted, [*needed, *weights])
        if allow_pickle and not _present(folder, weights):
            pickles = [inside + name for name in _pickles()]
            weights += pickles
            folder = _snapshot(wanted, [*needed, *pickles])
    if not _present(folder, weights):
        raise UnsupportedAdapterError(
            f"revision {folder.name} on the Hugging Face Hub (or what the cache has of it, offline) "
            f"holds no adapter{f' in {wanted.part}' if wanted.part else ''}",
            path=wanted.repo,
            expected=(
                f"{' or '.join(configs)} and one of {', '.join(weights)}. Name a folder or file in it as "
                f"hf://{wanted.repo}/folder"
            ),
            remedy=[f"if it has {' or '.join(_pickles())} only, ", Setting("allow_pickle", True)],
        )
    origin = f"hf://{wanted.repo}@{folder.name}"
    return Fetched(folder / wanted.part, f"{origin}/{wanted.part}" if wanted.part else origin)


def _weights() -> list[str]:
    """Return the names that weights have in a directory, whatever the format."""
    return [name for known in abouts() for name in known.weights]


def _pickles() -> list[str]:
    """Return the names that pickled weights have in a directory, whatever the format."""
    return [name for known in abouts() for name in known.pickles]


def _present(folder: Path, names: list[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _snapshot(wanted: HubId, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = "" if wanted.revision is None else f" at revision {wanted.revision!r}"
    try:
        return Path(snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise PermissionError(
            f"{wanted.repo}: access must be asked for on https://huggingface.co/{wanted.repo}; then log in with "
            "`hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "repository" if isinstance(error, RepositoryNotFoundError) else "revision of it"
        raise FileNotFoundError(
            f"{wanted.repo}{revision}: the Hugging Face Hub has no such {what} (or it is private: `hf auth login`); "
            "check the spelling"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{wanted.repo}{revision}: is not in the cache of the Hugging Face Hub, which cannot be reached now; run "
            f"`hf download {wanted.repo}` where there is a network (with HF_HUB_OFFLINE unset), or pass a local path"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        if error.errno in _OF_THIS_MACHINE:
            raise OSError(
                error.errno,
                f"{wanted.repo}{revision}: cannot be kept in the cache of the Hugging Face Hub: {error.strerror}; free "
                "some space, or set HF_HOME to a folder that can be written to",
            ) from error
        raise ConnectionError(
            f"{wanted.repo}{revision}: cannot be taken from the Hugging Face Hub: {error}; try again, or download it "
            "and pass its path"
        ) from error
