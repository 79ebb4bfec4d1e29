"""Multiply updates by factors that depend on the module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from .._nearest import nearest
from .._scaled import scaled_adapter
from .._sklearn import StrOptions
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseTransformer
from ..exceptions import ParameterError
from ..factors import LoraFactors
from ..files.expressions import matcher
from ._blocks import depths, factors_of_blocks


class ModuleScaler(BaseTransformer):
    r"""Multiply the updates of some modules, of all adapters or of some; put it before a merger in a pipeline.

    "Less of it in the middle blocks", as a factor for each part of the model. Factors are taken as they stand. A module
    whose factor is 0 is left out of its adapter. No weights are read: lazy adapters stay lazy.

    Parameters
    ----------
    factors : mapping, list of pairs, or None, default=None
        A factor for each pattern of module names. Of the patterns that match a module, the first counts; a module that
        none matches keeps its update. A pattern is a text, for all adapters, or a pair of an adapter's name and a text,
        for that adapter. A factor is a number, or a list of numbers: a gradient over the depth of the model, whose
        first number is for the first layer and whose last is for the last, with straight lines between them.
    blocks : list of float, mapping, or None, default=None
        Factors for the blocks of a diffusion model. A list has one value for each block, in the order that image tools
        use: 17 or 26 for Stable Diffusion 1 and 2, 12, 20 or 26 for XL, 57 or 61 for FLUX.1. A mapping has values by
        the names of blocks, such as ``{"OUT03-OUT05": 0.5, "IN": 0}``; of those that name a block, the first counts. A
        mapping from names of adapters to either is for those adapters. Blocks and ``factors`` multiply.
    syntax : {'regex', 'glob'}, default='regex'
        How patterns are written; they must match the whole name. 'regex': a regular expression in Python's syntax that
        does not look ahead or behind and does not refer to groups, so that matching takes bounded time. 'glob': ``*``
        stands for any characters, dots too, ``?`` for one, ``[ab]`` for one of those; case matters.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    ModuleSelector : Keeps some modules.
    NormBalancer : Factors that give all adapters one norm.

    Notes
    -----
    The layer of a module is the first number in its name, and its depth is that number over the largest one behind the
    same beginning: ``model.layers.12`` of layers 0 to 31 has a depth of 12/31, as in mergekit. In a diffusion model the
    depth is the place of the module's block among the blocks that the adapters have.

    The 26 blocks of a U-Net are BASE (the text encoders), IN00 to IN11, M00 (or MID) and OUT00 to OUT11. 17 values
    leave out IN00, IN03, IN06, IN09 to IN11 and OUT00 to OUT02, which have no attention in Stable Diffusion 1; XL has
    BASE, IN00 to IN08, M00 and OUT00 to OUT08, of which 12 values name those with attention: BASE, IN04, IN05, IN07,
    IN08, M00 and OUT00 to OUT05. 61 values are CLIP, T5, IN, D00 to D18 (double blocks), S00 to S37 (single blocks) and
    OUT; 57 are D and S alone. For models like FLUX.1 with other numbers of blocks, a list has as many values as these
    have.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from lorakit import ConcatMerger, ModuleScaler
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), random_state=0)
    >>> scaler = ModuleScaler({("task1", ".*0"): 0, ".*": 0.5})
    >>> (merged,) = make_pipeline(scaler, ConcatMerger(strengths=[1, 1])).fit_transform(adapters)
    >>> merged["layer.0"].rank, merged["layer.1"].rank
    (4, 12)
    """

    method = "scale"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "factors": [dict, Mapping, list, tuple, None],
        "blocks": [dict, Mapping, "array-like", None],
        "syntax": [StrOptions({"regex", "glob"})],
    }

    def __init__(self, factors: Any = None, *, blocks: Any = None, syntax: str = "regex") -> None:
        self.factors = factors
        self.blocks = blocks
        self.syntax = syntax

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Multiply the updates of every adapter.

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
        ParameterError
            If an adapter is left without a module, or a parameter does not fit the modules.
        """
        X = check_adapters(X)
        self._validate_params()
        return self._with_step(X, [scaled_adapter(a, factors) for a, factors in self._factors(X, used=None)])

    def _check(self, X: AdapterSet) -> None:
        """Refuse patterns that are not used, which may be mistyped; left-out adapters need not use them all."""
        rules = self._rules()
        used: set[int] = set()
        for _ in self._factors(X, used=used):
            pass
        for i, (owner, pattern, _) in enumerate(rules):
            if i not in used:
                whose = "any adapter" if owner is None else f"an adapter {owner!r}"
                raise ParameterError(
                    f"no module of {whose} is left for the pattern {pattern!r}",
                    expected=f"a pattern of whole names such as {X.module_names[0]!r} that no pattern before it matches"
                    + ("" if owner is None else f", of an adapter that is one of {', '.join(map(repr, X.names))}"),
                    remedy="change it or leave it out",
                )
        if isinstance(self.blocks, Mapping):
            for name, value in self.blocks.items():
                if not isinstance(value, Real) and name not in X.names:
                    raise ParameterError(
                        f"blocks names an adapter {name!r}",
                        expected=f"one of {', '.join(map(repr, X.names))}",
                        remedy=f"correct the name{nearest(str(name), X.names).rstrip('.')}",
                    )

    def _factors(self, X: AdapterSet, *, used: set[int] | None) -> Iterator[tuple[Adapter, dict[str, float]]]:
        """Yield each adapter with the factors of its modules; note which rules are used."""
        rules = [(owner, self._matcher(pattern), value) for owner, pattern, value in self._rules()]
        depth = depths(X.module_names)
        for adapter in X:
            factors = dict.fromkeys(adapter, 1.0)
            of_blocks = self._blocks_of(adapter.name)
            if of_blocks is not None:
                factors |= factors_of_blocks(of_blocks, X.module_names, adapter, strict=used is not None)
            for module in adapter:
                for i, (owner, matches, value) in enumerate(rules):
                    if owner in (None, adapter.name) and matches(module):
                        factors[module] *= _at_depth(value, depth, module)
                        if used is not None:
                            used.add(i)
                        break
            if not any(factors.values()):
                raise ParameterError(
                    f"every module of adapter {adapter.name!r} has the factor 0",
                    adapters=[adapter.name],
                    remedy="leave the adapter out",
                )
            yield adapter, factors

    def _blocks_of(self, name: str) -> Any:
        """Return the factors of blocks for one adapter."""
        if not isinstance(self.blocks, Mapping):
            return self.blocks
        if all(isinstance(value, Real) for value in self.blocks.values()):
            return self.blocks
        if any(isinstance(value, Real) for value in self.blocks.values()):
            raise ParameterError(
                f"blocks={self.blocks!r} mixes blocks and adapters",
                expected="numbers by names of blocks, or lists or mappings by names of adapters",
                remedy="use one ModuleScaler for all adapters and another one for some",
            )
        return self.blocks.get(name)

    def _rules(self) -> list[tuple[str | None, str, Any]]:
        """Return adapter, pattern and factor of each rule, in order."""
        pairs = self.factors.items() if isinstance(self.factors, Mapping) else self.factors or ()
        rules: list[tuple[str | None, str, Any]] = []
        for pair in pairs:
            key, value = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (None, None)
            owner: Any = None
            pattern: Any = key
            if isinstance(key, (tuple, list)) and len(key) == 2:
                owner, pattern = key
            if not isinstance(pattern, str) or not isinstance(owner, str | None) or not _are_finite(value):
                raise ParameterError(
                    f"factors holds {pair!r}",
                    expected="a pattern, or an adapter's name and a pattern, with a finite number or a list of them",
                    remedy="write it as {'.*attn.*': 0.5, ('law', '.*mlp.*'): [0, 1]}",
                )
            rules.append((owner, pattern, value))
        return rules

    def _matcher(self, pattern: str) -> Callable[[str], bool]:
        if self.syntax == "regex":
            return matcher(pattern)
        compiled = re.compile(translate(pattern))  # so that matching never goes back
        return lambda module: compiled.fullmatch(module) is not None

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        return updates  # the factors are those of each adapter: see transform


def _are_finite(value: Any) -> bool:
    if isinstance(value, (bool, str)) or value is None:
        return False
    numbers = [value] if isinstance(value, Real) else value
    try:
        return len(numbers) > 0 and bool(np.isfinite(np.asarray(numbers, dtype=np.float64)).all())
    except (TypeError, ValueError):
        return False


def _at_depth(value: Any, depth: Callable[[str], float | None], module: str) -> float:
    """Return a factor, or the value of a gradient at the depth of a module."""
    if isinstance(value, Real):
        return float(value)
    place = depth(module)
    if place is None:
        raise ParameterError(
            f"module {module!r} has no number of a layer, and a gradient over depth is given for it",
            module=module,
            expected="a name such as 'layers.3.q_proj'",
            remedy="put a pattern with a number for it before the gradient",
        )
    return float(np.interp(place, np.linspace(0, 1, len(value)), np.asarray(value, dtype=np.float64)))
