"""What lorakit runs on: the versions and the machine that a report of a bug needs."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

from ._version import __version__

_PACKAGE = re.compile(r"[\w.-]+")
_DEVELOPERS = ("docs", "test")  # extras for work on lorakit itself


def environment() -> dict[str, dict[str, str]]:
    """Return versions and properties of the machine, by group.

    Returns
    -------
    dict of str to dict of str to str
        'system', 'packages' and 'computing'. A package that is not installed has the version 'not installed'.
    """
    return {"system": _system(), "packages": _packages(), "computing": _computing()}


def show_versions() -> None:
    """Print the versions of lorakit and of what it uses, and what the machine computes with.

    Put the output into a report of a bug. It names no path, no user and no environment variable.

    Examples
    --------
    >>> import lorakit
    >>> lorakit.show_versions()  # doctest: +ELLIPSIS
    system
        lorakit: ...
        Python: ...
    """
    blocks = [
        "\n".join([group, *(f"    {name}: {value}" for name, value in values.items())])
        for group, values in environment().items()
    ]
    sys.stdout.write("\n\n".join(blocks) + "\n")


def _system() -> dict[str, str]:
    return {
        "lorakit": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": platform.machine(),
    }


def _packages() -> dict[str, str]:
    """Return what the installed lorakit says it needs and can use, and beside it PEFT and transformers."""
    try:
        needed = metadata.requires("lorakit") or []
    except metadata.PackageNotFoundError:  # run from its sources
        needed = []
    users = [
        entry for entry in needed if not any(f'extra == "{extra}"' in entry.replace("'", '"') for extra in _DEVELOPERS)
    ]
    names = dict.fromkeys(found.group() for entry in users if (found := _PACKAGE.match(entry)))
    return {name: _version_of(name) for name in sorted({*names, "peft", "torch", "transformers"}, key=str.lower)}


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _computing() -> dict[str, str]:
    import torch
    from joblib import cpu_count
    from threadpoolctl import threadpool_info

    found = {
        "cores": f"{cpu_count()} usable of {os.cpu_count()}",
        "torch threads": str(torch.get_num_threads()),
        "CUDA": f"{torch.version.cuda or 'none'} (what torch was built for)",
    }
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    for pool in threadpool_info():
        found[pool["prefix"]] = (
            f"{pool['internal_api']} {pool['version'] or ''}, {pool['num_threads']} threads".replace(" ,", ",")
        )
    return found
