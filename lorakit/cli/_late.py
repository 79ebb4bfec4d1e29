"""Modules that scikit-learn imports and no merge uses: loaded when something asks them for a name."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

# scikit-learn's base class imports the first; SciPy's copy of every name of NumPy imports the second. Together they
# are two thirds of the time that importing the base class takes.
_NEVER_USED = ("scipy.stats", "numpy.f2py")


class _Late(ModuleType):
    """Stands for a module until it is asked for a name, and then makes way for it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            importlib.import_module(self.__name__)
        return getattr(sys.modules[self.__name__], name)


def load_late() -> None:
    """Let the modules that no merge uses wait, unless they are loaded: for the process of one command, no library."""
    for name in _NEVER_USED:
        spec = None if name in sys.modules else importlib.util.find_spec(name)
        if spec is None:
            continue
        late = _Late(name)
        # what looks through all modules, as inspect does, asks for these
        late.__spec__, late.__file__ = spec, spec.origin
        sys.modules[name] = late
        package, _, own = name.rpartition(".")
        setattr(sys.modules[package], own, late)
