"""Keep some of the modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import Any, ClassVar

from .._sklearn import StrOptions
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseTransformer
from ..factors import LoraFactors
from ..files.expressions import matcher

Chooser = str | Iterable[str] | Callable[[str], bool]


class ModuleSelector(BaseTransformer):
    """Keep the modules whose names match; put it before a merger in a pipeline.

    No weights are read: lazy adapters stay lazy.

    Parameters
    ----------
    include : str, list of str, callable or None, default=None
        Modules to keep: a pattern, several of which one must match, or a function of the module's name that returns
        whether to keep it. None keeps all. Estimators that are pickled need a named function, not a lambda.
    exclude : str, list of str, callable or None, default=None
        Modules to drop from those, given in the same way. None drops none.
    syntax : {'glob', 'regex'}, default='glob'
        How patterns are written. Both must match the whole name. 'glob': ``*`` stands for any characters, dots too,
        ``?`` for one, ``[ab]`` for one of those; case matters. 'regex': a regular expression in Python's syntax that
        does not look ahead or behind and does not refer to groups, so that matching takes bounded time.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`, kept or not.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    Adapter.select : The same on one adapter, by exact names.

    Examples
    --------
    >>> from lorakit import ModuleSelector
    >>> from lorakit.testing import make_adapters
    >>> ModuleSelector(exclude="*.0").fit_transform(make_adapters(ranks=(4, 8), random_state=0))
    AdapterSet(['task0' r=4, 'task1' r=8], modules=1, dtype=float32)
    """

    method = "select"
    _keeps_differences = True
    _joint = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "include": [str, list, tuple, callable, None],
        "exclude": [str, list, tuple, callable, None],
        "syntax": [StrOptions({"glob", "regex"})],
    }

    def __init__(self, include: Chooser | None = None, *, exclude: Chooser | None = None, syntax: str = "glob") -> None:
        self.include = include
        self.exclude = exclude
        self.syntax = syntax

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Keep some modules of every adapter.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters. They are not changed themselves.

        Returns
        -------
        AdapterSet
            As many adapters as X, in the same order, under the same names.

        Raises
        ------
        ValueError
            If an adapter is left without a module.
        """
        X = check_adapters(X, differences=True)
        self._validate_params()
        kept = self._kept(X)
        return self._with_step(X, (adapter.select(kept) for adapter in X), conversions=())

    def _check(self, X: AdapterSet) -> None:
        self._kept(X)

    def _kept(self, X: AdapterSet) -> set[str]:
        wanted, unwanted = (self._matcher(chooser) for chooser in (self.include, self.exclude))
        kept = {m for m in X.module_names if (self.include is None or wanted(m)) and not unwanted(m)}
        for adapter in X:
            if kept.isdisjoint(adapter):
                raise ValueError(
                    f"include={self.include!r}, exclude={self.exclude!r} leave no module of adapter {adapter.name!r}, "
                    f"whose modules are named like {next(iter(adapter))!r}; patterns must match the whole name "
                    f"(syntax={self.syntax!r})"
                )
        return kept

    def _matcher(self, chooser: Chooser | None) -> Callable[[str], bool]:
        if callable(chooser):
            return chooser
        patterns = [chooser] if isinstance(chooser, str) else list(chooser or ())
        if self.syntax == "glob":  # translated so that matching never goes back
            compiled = [re.compile(translate(pattern)) for pattern in patterns]
            return lambda module: any(pattern.fullmatch(module) for pattern in compiled)
        matchers = [matcher(pattern) for pattern in patterns]
        return lambda module: any(matches(module) for matches in matchers)

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        return updates  # modules that are kept stay as they are
