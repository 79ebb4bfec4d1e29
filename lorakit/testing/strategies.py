"""Hypothesis strategies: adapters, factors, reparametrizations of the factors, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..adapter_set import AdapterSet
from ..adapters import Adapter, ModuleKind
from ..base import GAUGES
from ..factors import LoraFactors
from .changes import Gauge

CONTENTS = ("random", "zero", "duplicate_msus", "identical_adapters", "rank_deficient", "huge", "tiny")
_KINDS = {"linear": ModuleKind(), "conv": ModuleKind("conv", (3, 3)), "embedding": ModuleKind("embedding")}
_TAPS = 9  # of the convolutions' kernel: A is (r, in_channels * 9)
_SEEDS = 2**31 - 1
_FACTOR_SCALES = {"huge": 1e8, "tiny": 1e-8}  # of an update: 1e4 or 1e-4 on each of its factors


def lora_factors(
    *, min_rank: int = 1, max_rank: int = 4, max_width: int = 24, dtype: Any = torch.float64, content: Any = "random"
) -> Any:
    """Hypothesis strategy for the factors of one module.

    Parameters
    ----------
    min_rank, max_rank : int, default=1 and 4
        Bounds of the rank; 0 stands for a zero update.
    max_width : int, default=24
        Largest d_in and d_out (more where the rank needs it: neither is below the rank).
    dtype : torch.dtype or sequence of those, default=torch.float64
        Dtype of the factors, or those to choose from.
    content : str or sequence of str, default='random'
        As for :func:`adapter_sets`; 'identical_adapters' is the same as 'random' here.

    Returns
    -------
    SearchStrategy
        Of :class:`~lorakit.LoraFactors`. It shrinks to the lowest rank and widths, and to the first dtype and content
        given. Needs the package ``hypothesis``.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from lorakit.testing import lora_factors
    >>> @settings(deadline=None)
    ... @given(lora_factors(max_rank=3))
    ... def deltas_have_the_rank_of_their_factors(factors):
    ...     assert factors.delta().shape == (factors.d_out, factors.d_in)
    >>> deltas_have_the_rank_of_their_factors()
    """
    st = _hypothesis("lora_factors").strategies
    _check_contents(content)

    @st.composite
    def draw_factors(draw: Any) -> LoraFactors:
        rank = draw(st.integers(min_rank, max_rank))
        width = st.integers(max(rank, 1), max(max_width, rank))
        shape = (rank, draw(width), draw(width))
        filled = draw(_choice(st, content))
        chosen = draw(_choice(st, dtype))
        return _factors(shape, chosen, filled, _stream(draw(st.integers(0, _SEEDS))))

    return draw_factors()


def adapter_sets(
    *,
    min_adapters: int = 1,
    max_adapters: int = 4,
    min_rank: int = 1,
    max_rank: int = 4,
    max_width: int = 24,
    n_modules: int = 2,
    equal_ranks: bool = False,
    missing_modules: bool = True,
    dtype: Any = torch.float64,
    kind: Any = "linear",
    content: Any = "random",
) -> Any:
    """Hypothesis strategy for sets of adapters.

    Widths are at least the sum of the ranks, so that every ``k`` up to that sum is valid. The adapters are named
    ``task0``, ``task1``, ..., their modules ``layer.0``, ``layer.1``, ...

    Parameters
    ----------
    min_adapters, max_adapters : int, default=1 and 4
        How many adapters.
    min_rank, max_rank : int, default=1 and 4
        Bounds of an adapter's rank.
    max_width : int, default=24
        Largest d_in and d_out (more where the ranks need it).
    n_modules : int, default=2
        Modules of an adapter that lacks none.
    equal_ranks : bool, default=False
        Whether all adapters share one rank.
    missing_modules : bool, default=True
        Whether an adapter, the first excepted, may lack one module; only with two modules or more.
    dtype : torch.dtype or sequence of those, default=torch.float64
        Dtype of the factors. If several are given, each adapter draws its own.
    kind : {'linear', 'conv', 'embedding'} or sequence of those, default='linear'
        Kind of the modules. If several are given, each module draws its own. A convolution has a kernel of 3 x 3, so
        that its d_in is a multiple of 9.
    content : str or sequence of str, default='random'
        What the factors hold. If several are given, one is drawn for the set.

        - 'random': independent normal numbers;
        - 'zero': as 'random', but the first adapter's B is zero, as before training;
        - 'duplicate_msus': each MSU of an adapter is a copy of its first, some of them negated;
        - 'identical_adapters': all adapters hold the same numbers, as far as their ranks go;
        - 'rank_deficient': half of the MSUs (rounded up, but not all) depend linearly on the others;
        - 'huge', 'tiny': updates 1e8 times as large, or as small. Do not combine them with half precision.

    Returns
    -------
    SearchStrategy
        Of :class:`~lorakit.AdapterSet`. It shrinks to few adapters, low ranks and narrow modules without gaps, and to
        the first dtype, kind and content given; numbers come from one drawn seed. Needs the package ``hypothesis``
        (``pip install "lorakit[testing]"``).

    Raises
    ------
    ImportError
        If hypothesis is not installed.
    ValueError
        If a content or a kind is not one of those above.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from lorakit import SVDMerger
    >>> from lorakit.testing import adapter_sets
    >>> @settings(deadline=None)
    ... @given(adapter_sets(max_adapters=3, content=("random", "rank_deficient")))
    ... def merging_keeps_the_modules(adapters):
    ...     assert set(SVDMerger().fit(adapters).merged_) == set(adapters.module_names)
    >>> merging_keeps_the_modules()
    """
    st = _hypothesis("adapter_sets").strategies
    _check_contents(content)
    if unknown := set(_listed(kind)) - set(_KINDS):
        raise ValueError(f"kind must be of {list(_KINDS)}; got {sorted(unknown)}")

    @st.composite
    def draw_set(draw: Any) -> AdapterSet:
        n = draw(st.integers(min_adapters, max_adapters))
        rank = st.integers(min_rank, max_rank)
        ranks = [draw(rank)] * n if equal_ranks else [draw(rank) for _ in range(n)]
        modules = [f"layer.{i}" for i in range(n_modules)]
        kinds = {module: draw(_choice(st, kind)) for module in modules}
        width = st.integers(max(sum(ranks), 1), max(max_width, sum(ranks)))
        d_in, d_out = draw(width), draw(width)
        dtypes = [draw(_choice(st, dtype)) for _ in range(n)]
        lacking: list[str | None] = [None] * n
        if missing_modules and n_modules > 1:
            # the first adapter keeps every module, so that none is left alone with modules nobody shares
            lacking[1:] = [draw(st.sampled_from([None, None, *modules])) for _ in range(n - 1)]
        filled = draw(_choice(st, content))
        seed = draw(st.integers(0, _SEEDS))

        def factors(i: int, number: int, module: str) -> LoraFactors:
            taps = _TAPS if kinds[module] == "conv" else 1
            shape = (ranks[i], -(-d_in // taps) * taps, d_out)
            own = "random" if filled == "zero" and i else filled
            # a stream for each adapter and module: what an adapter lacks does not change what the others hold
            stream = _stream(seed, number, 0 if filled == "identical_adapters" else i)
            return _factors(shape, dtypes[i], own, stream)

        return AdapterSet(
            Adapter(
                {m: factors(i, number, m) for number, m in enumerate(modules) if m != lacking[i]},
                name=f"task{i}",
                kinds={m: _KINDS[kinds[m]] for m in modules if m != lacking[i]},
            )
            for i in range(n)
        )

    return draw_set()


def gauges(kind: Any = GAUGES) -> Any:
    """Hypothesis strategy for reparametrizations of the factors: changes that leave the updates as they are.

    Parameters
    ----------
    kind : str or sequence of str, default=('permutation', 'sign', 'rescaling', 'GL(r)')
        The kinds to choose from; :class:`Gauge` says what they are. A merger's ``invariances`` can be passed as it is.

    Returns
    -------
    SearchStrategy
        Of :class:`Gauge`: call one with factors, an adapter or an AdapterSet. Needs the package ``hypothesis``.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from lorakit import SVDMerger
    >>> from lorakit.metrics import relative_error
    >>> from lorakit.testing import adapter_sets, gauges
    >>> @settings(deadline=None)
    ... @given(adapter_sets(), gauges())
    ... def only_the_update_counts(adapters, gauge):
    ...     x, y = (SVDMerger().fit(given).merged_ for given in (adapters, gauge(adapters)))
    ...     assert relative_error(x, y) < 1e-6
    >>> only_the_update_counts()
    """
    st = _hypothesis("gauges").strategies
    kinds = _listed(kind)
    if unknown := set(kinds) - set(GAUGES):
        raise ValueError(f"kind must be of {list(GAUGES)}; got {sorted(unknown)}")
    return st.builds(Gauge, st.sampled_from([k for k in GAUGES if k in kinds]), st.integers(0, _SEEDS))


def adapter_weights(n_adapters: int, *, signed: bool = False) -> Any:
    """Hypothesis strategy for the parameter ``weights`` of mergers.

    Parameters
    ----------
    n_adapters : int
        How many adapters there are.
    signed : bool, default=False
        Whether weights may be negative.

    Returns
    -------
    SearchStrategy
        Of lists of ``n_adapters`` multiples of 0.25 up to 2, some of them zero, not all. Needs the package
        ``hypothesis``.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from lorakit.testing import adapter_weights
    >>> @settings(deadline=None)
    ... @given(adapter_weights(3))
    ... def weights_can_be_normalised(weights):
    ...     assert len(weights) == 3
    ...     assert sum(weights) > 0
    >>> weights_can_be_normalised()
    """
    st = _hypothesis("adapter_weights").strategies
    steps = st.integers(-8 if signed else 0, 8)
    return st.lists(steps, min_size=n_adapters, max_size=n_adapters).filter(any).map(lambda w: [x / 4 for x in w])


def _factors(shape: tuple[int, int, int], dtype: torch.dtype, content: str, rng: np.random.RandomState) -> LoraFactors:
    rank, d_in, d_out = shape
    # MSU after MSU, so that an adapter of lower rank begins with the MSUs of one of higher rank from the same seed
    units = torch.from_numpy(rng.standard_normal((rank, d_in + d_out)))
    if content == "duplicate_msus":
        units = units[:1] * torch.from_numpy(rng.choice([1.0, -1.0], size=(rank, 1)))
    elif content == "rank_deficient" and rank > 1:
        free = rank // 2
        units[free:] = torch.from_numpy(rng.standard_normal((rank - free, free))) @ units[:free]
    a, b = units[:, :d_in], units[:, d_in:].T
    if content == "zero":
        b = torch.zeros_like(b)
    return LoraFactors(a, b).scaled(_FACTOR_SCALES.get(content, 1.0)).to(dtype)


def _stream(*numbers: int) -> np.random.RandomState:
    return np.random.RandomState(np.random.SeedSequence(numbers).generate_state(4))


def _listed(options: Any) -> list[Any]:
    return [options] if isinstance(options, (str, torch.dtype)) else list(options)


def _choice(st: Any, options: Any) -> Any:
    return st.sampled_from(_listed(options))


def _check_contents(content: Any) -> None:
    if unknown := set(_listed(content)) - set(CONTENTS):
        raise ValueError(f"content must be of {list(CONTENTS)}; got {sorted(unknown)}")


def _hypothesis(needed_by: str) -> Any:
    try:
        import hypothesis
        import hypothesis.strategies
    except ImportError as error:
        raise ImportError(
            f"lorakit.testing.{needed_by} needs the package hypothesis: pip install 'lorakit[testing]'"
        ) from error
    return hypothesis
