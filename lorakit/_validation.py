"""Checks that every estimator runs before it starts: of the adapters, their weights and the rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._base_models import differing_bases
from ._nearest import nearest
from .adapter_set import AdapterSet
from .adapters import Adapter
from .exceptions import IncompatibleAdaptersError, ParameterError, Setting, Words

_ADD_UP = (
    Words(
        "merge by ConcatMerger, SVDMerger or TaskArithmeticMerger",
        "merge by --method concat, svd or task_arithmetic",
    ),
    ", which add them up",
)


def check_adapters(X: AdapterSet | Iterable[Adapter], *, differences: bool = False) -> AdapterSet:
    """Return X as an :class:`AdapterSet` whose adapters can be combined module by module.

    Parameters
    ----------
    X : AdapterSet or iterable of Adapter
        The adapters.
    differences : bool, default=False
        Whether the caller takes into account what an adapter adds to whole parameters.

    Raises
    ------
    ValueError
        If there is no adapter, or one without modules.
    IncompatibleAdaptersError
        If a module's widths or layout differ between adapters, an adapter shares no module with the others, the
        adapters come from families of files that name modules differently, or two names of modules differ only in how
        Unicode writes the same characters.
    UnsupportedAdapterError
        If an adapter adds to whole parameters, and the caller would lose this.

    Warns
    -----
    UserWarning
        If the adapters name different base models.
    """
    X = X if isinstance(X, AdapterSet) else AdapterSet(X)
    if len(X) == 0 or not X.module_names:
        raise ValueError(f"at least one adapter with at least one module is needed; got {X!r}")
    for adapter in X:
        if not adapter:
            raise ValueError(f"adapter {adapter.name!r} has no modules; leave it out")
    _check_families(X)
    if len(X) > 1:
        _check_spelling(X)
    if not differences and any(adapter.differences is not None for adapter in X):
        from .differences import refuse_differences  # few adapters have some

        refuse_differences(X, "this method", remedy=_ADD_UP)
    for module in X.module_names:
        _check_module(X, module)
    _check_overlap(X)
    one_name = len({adapter.provenance.base_model for adapter in X}) < 2
    bases = None if one_name else differing_bases(X)
    if bases is not None:
        warnings.warn(
            f"the adapters name different base models: {bases}; merging is meaningful only if these are the same "
            "weights under other names",
            UserWarning,
            stacklevel=3,
        )
    return X


def _check_spelling(X: AdapterSet) -> None:
    """Refuse names of modules that look alike and differ in the Unicode characters that make them up."""
    odd = [module for module in X.module_names if not module.isascii()]
    first: dict[str, str] = {}
    for module in odd:
        other = first.setdefault(normalize("NFC", module), module)
        if other != module:
            names = [next(a.name for a in X if name in a) for name in (other, module)]
            raise IncompatibleAdaptersError(
                f"modules {other!a} of {names[0]!r} and {module!a} of {names[1]!r} are one name in two forms of "
                "Unicode, and would be merged as two modules",
                module=module,
                adapters=names,
                expected="one form",
                remedy="rename them in Python: adapter.rename_modules(lambda m: unicodedata.normalize('NFC', m))",
            )


def _check_families(X: AdapterSet) -> None:
    families = {adapter.provenance.format: adapter.name for adapter in X}
    if len(families) > 1:
        raise IncompatibleAdaptersError(
            "adapters of different file families name their modules differently: "
            + ", ".join(f"{name!r} is {family}" for family, name in families.items()),
            adapters=list(families.values()),
            remedy="bring them to one first, by `lorakit convert` or lorakit.convert_adapter",
        )


def _check_module(X: AdapterSet, module: str) -> None:
    known: dict[tuple[Any, ...], str] = {}
    for adapter in X:
        if (info := adapter.infos.get(module)) is not None:
            known.setdefault((info.d_out, info.d_in, info.kind), adapter.name)
    if len(known) > 1:
        seen = "; ".join(f"{d_out} x {d_in} ({layout}) in {name!r}" for (d_out, d_in, layout), name in known.items())
        raise IncompatibleAdaptersError(
            f"module {module!r} differs between adapters: {seen}",
            module=module,
            adapters=list(known.values()),
            remedy="they were trained on different base models, or one of them on other kinds of layers",
        )


_RENAME = "`lorakit fit BASE ADAPTER --rename OUT` brings an adapter to the names of its base"


def _check_overlap(X: AdapterSet) -> None:
    if len(X) == 1 or any(adapter.narrowed for adapter in X):  # who left modules out has had the check before
        return
    for i, adapter in enumerate(X):
        others = {module for j, other in enumerate(X) if j != i for module in other}
        if others.isdisjoint(adapter):
            raise IncompatibleAdaptersError(
                f"adapter {adapter.name!r} shares no module with the others: it has {next(iter(adapter))!r}, "
                f"they have {next(iter(sorted(others)))!r}",
                adapters=[adapter.name],
                remedy=_rename_hint(adapter, others),
            )


def _rename_hint(adapter: Adapter, others: set[str]) -> Words:
    mine = next(iter(adapter))
    if any(".experts." in module for module in adapter) and any(".experts." in module for module in others):
        return Words(
            "merge adapters of one base model; lorakit.load_adapters brings fused experts and linear modules "
            "of experts to one layout, as lorakit.split_experts does",
            "merge adapters of one base model",
        )
    for other in sorted(others):
        if other.endswith("." + mine):
            prefix = other.removesuffix(mine)
            return Words(
                f"with {prefix!r} in front they match: adapter.rename_modules(lambda m: {prefix!r} + m)",
                f"with {prefix!r} in front they match: {_RENAME}",
            )
        if mine.endswith("." + other):
            prefix = mine.removesuffix(other)
            return Words(
                f"without {prefix!r} they match: adapter.rename_modules(lambda m: m.removeprefix({prefix!r}))",
                f"without {prefix!r} they match: {_RENAME}",
            )
    return Words(
        "merge adapters of one base model, or rename modules with adapter.rename_modules",
        f"merge adapters of one base model, or rename modules: {_RENAME}",
    )


def check_weights(
    weights: ArrayLike | Mapping[str, float] | None, names: Sequence[str], *, signed: bool
) -> NDArray[np.float64]:
    """Normalise adapter weights so that their absolute values sum to 1.

    Parameters
    ----------
    weights : None, array-like of shape (n_adapters,), or mapping of adapter name to weight
        None gives every adapter ``1 / n_adapters``. A mapping may name more adapters than there are, so that it
        stays valid on the subsets that cross-validation makes.
    names : sequence of str
        The adapters' names.
    signed : bool
        Whether the method gives a meaning to negative weights.

    Raises
    ------
    ValueError
        If the count is wrong, a name is missing, a weight is NaN, infinite or negative where it may not be, or all
        are zero.
    """
    if weights is None:
        values = np.ones(len(names))
    elif isinstance(weights, Mapping):
        missing = [name for name in names if name not in weights]
        if missing:
            others = [name for name in weights if name not in names]
            near = f", but {others[0]!r}{nearest(str(others[0]), missing)} It" if others else "; it"
            raise ValueError(f"weights names no weight for the adapters {missing}{near} names {list(weights)}")
        values = _numbers([weights[name] for name in names], "weights", len(names))
    else:
        values = _numbers(weights, "weights", len(names))
    if values.shape != (len(names),):
        raise ValueError(f"weights must hold one number for each of {len(names)} adapters; got shape {values.shape}")
    if not np.isfinite(values).all() or not values.any():
        raise ValueError(f"weights must be finite and not all zero; got {values.tolist()}")
    if not signed and (values < 0).any():
        raise ParameterError(
            f"this method takes no negative weights; got {values.tolist()}",
            remedy=Words(
                "negative strengths subtract updates in every method: strengths=[0.7, -0.3]",
                "negative strengths subtract updates in every method: law/:0.7 medicine/:-0.3",
            ),
        )
    # divided by a power of two first, which is exact, because the sum of two weights of 1e308 would overflow
    values = np.ldexp(values, -int(np.frexp(np.abs(values).max())[1]))
    return values / np.abs(values).sum()


def _numbers(given: ArrayLike, what: str, count: int) -> NDArray[np.float64]:
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # a text, a list of lists, a number of 400 digits
        raise ValueError(f"{what} must hold one number for each of {count} adapters; {error}") from error


def check_strengths(strengths: ArrayLike | Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    """Return adapter strengths as an array; they are not normalised.

    Parameters
    ----------
    strengths : array-like of shape (n_adapters,), or mapping of adapter name to strength
        A mapping may name more adapters than there are, so that it stays valid on the subsets that cross-validation
        makes.
    names : sequence of str
        The adapters' names.

    Raises
    ------
    ValueError
        If the count is wrong, a name is missing, a strength is NaN or infinite, or all are zero.
    """
    if isinstance(strengths, Mapping):
        missing = [name for name in names if name not in strengths]
        if missing:
            raise ValueError(f"strengths names no strength for the adapters {missing}; it names {list(strengths)}")
        strengths = [strengths[name] for name in names]
    values = _numbers(strengths, "strengths", len(names))
    if values.shape != (len(names),):
        raise ValueError(f"strengths must hold one number for each of {len(names)} adapters; got shape {values.shape}")
    if not np.isfinite(values).all() or not values.any():
        raise ValueError(f"strengths must be finite and not all zero; got {values.tolist()}")
    return values


def refuse_both(weights: object, strengths: object) -> None:
    """Refuse weights and strengths together.

    Raises
    ------
    ParameterError
        If both are given.
    """
    if weights is not None and strengths is not None:
        raise ParameterError(
            f"got both weights={weights!r} and strengths={strengths!r}",
            expected="one of them",
            remedy=[
                "weights are shares: only their ratios count, and the scale sets the size of the result. Strengths are "
                "factors as they stand: 0.7 and 0.5 add up 0.7 of one update and 0.5 of the other. For shares ",
                Setting("strengths", None),
                ", for factors ",
                Setting("weights", None),
            ],
        )


def check_equal_ranks(X: AdapterSet) -> None:
    """Refuse adapters of different ranks at one module, for methods that add A to A and B to B.

    Raises
    ------
    IncompatibleAdaptersError
        If the ranks differ. The message names the module, the ranks and the methods that take any ranks.
    """
    for module in X.module_names:
        # pairs, not a dict: several adapters may share a name
        ranks = [(adapter.name, adapter.infos[module].rank) for adapter in X if module in adapter]
        if len({rank for _, rank in ranks}) > 1:
            shown = ", ".join(f"{name!r}: {rank}" for name, rank in ranks)
            raise IncompatibleAdaptersError(
                f"module {module!r} has ranks {{{shown}}}",
                module=module,
                adapters=[name for name, _ in ranks],
                remedy=[
                    "combining A with A and B with B needs one rank. ",
                    Words(
                        "LegoMerger, SVDMerger, ConcatMerger and space='delta' take any ranks",
                        "--method lego, svd and concat, and --param space=delta, take any ranks",
                    ),
                ],
            )


def check_rank(k: int | None, limits: Mapping[str, int], what: str | Callable[[], Words]) -> None:
    """Refuse a rank that no module can reach.

    Raises
    ------
    ParameterError
        If ``k`` is above every limit. The message names the largest limit and its module.
    """
    if k is None:
        return
    module = max(limits, key=limits.__getitem__)
    if k > limits[module]:
        words = Words(what, what) if isinstance(what, str) else what()
        above, where = f"is above {limits[module]}, ", f" (most at module {module!r})"
        raise ParameterError(
            Words(f"k={k} {above}{words.python}{where}", f"-k {k} {above}{words.command_line}{where}"),
            remedy="choose a smaller k",
        )
