"""Choose the adapters that fit an input, and merge them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import normalize
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from ._sklearn import Interval, fit_context
from ._validation import check_adapters
from .adapter_set import AdapterSet
from .adapters import Adapter

__all__ = ["AdapterRetriever", "CacheInfo"]

Names = str | Iterable[str] | None


class CacheInfo(NamedTuple):
    """Statistics of the cache of merges, as ``functools.lru_cache`` reports them."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


class AdapterRetriever(BaseEstimator):
    """Retrieve, for an input, the adapters whose examples it resembles, and merge them.

    LoraRetriever [1]_, the mixed-task setting of LoRA-LEGO [2]_. An adapter is represented by the mean of the
    normalised embeddings of a few examples of its task; an input takes the ``top_k`` adapters of highest cosine
    similarity. The ``merger`` combines these: :class:`~lorakit.LegoMerger` as LEGO does,
    :class:`~lorakit.ConcatMerger` by the mean of their outputs (mixture), :class:`~lorakit.AverageMerger` by the mean
    of their parameters (fusion). Without a merger, the nearest adapter is used alone (selection).

    Parameters
    ----------
    encoder : callable, transformer or object with ``encode``
        Turns a list of inputs into an array, one row each. A scikit-learn transformer, such as ``TfidfVectorizer``, is
        cloned and fitted on all examples unless it is fitted already. Of any other object, the method ``encode`` is
        called if it has one (sentence-transformers); otherwise the object itself is called.
    top_k : int, default=3
        Adapters retrieved for each input.
    merger : estimator, default=None
        An unfitted merger, or a pipeline that ends in one. None takes the first retrieved adapter as it is.
    cache_size : int or None, default=32
        Number of merges that are kept; the least recently used goes first. None keeps all, 0 keeps none.
    exclude : list of str, default=None
        Names of adapters that are never retrieved.

    Attributes
    ----------
    adapters_ : AdapterSet
        The pool.
    embeddings_ : ndarray of shape (n_adapters, width)
        Representations of the adapters, of unit length.
    encoder_, merger_ : object
        The encoder and the merger in use.

    References
    ----------
    .. [1] Zhao et al., "LoraRetriever: Input-Aware LoRA Retrieval and Composition for Mixed Tasks in the Wild",
       arXiv 2402.09997.
    .. [2] Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
       Rank-Wise Clustering", arXiv 2409.16167, section 4.2.

    Examples
    --------
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> from lorakit import AdapterRetriever, SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> pool = make_adapters(3, ranks=4, random_state=0)
    >>> examples = {"task0": ["a cat sat"], "task1": ["add two numbers"], "task2": ["the cat ate", "a dog ate"]}
    >>> retriever = AdapterRetriever(TfidfVectorizer(), top_k=2, merger=SVDMerger()).fit(pool, examples)
    >>> names, similarities = retriever.rank(["my cat ate", "which numbers"])
    >>> names[:, 0].tolist()
    ['task2', 'task1']
    >>> retriever.merge("my cat ate")
    Adapter('svd', modules=2, rank=4, dtype=float32)
    >>> retriever.cache_info()
    CacheInfo(hits=0, misses=1, maxsize=32, currsize=1)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "encoder": "no_validation",
        "top_k": [Interval(Integral, 1, None, closed="left")],
        "merger": "no_validation",
        "cache_size": [Interval(Integral, 0, None, closed="left"), None],
        "exclude": [list, tuple, set, frozenset, None],
    }

    def __init__(
        self,
        encoder: Any,
        *,
        top_k: int = 3,
        merger: Any = None,
        cache_size: int | None = 32,
        exclude: Any = None,
    ) -> None:
        self.encoder = encoder
        self.top_k = top_k
        self.merger = merger
        self.cache_size = cache_size
        self.exclude = exclude

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: AdapterSet | Iterable[Adapter], examples: Mapping[str, Sequence[Any]]) -> Self:
        """Represent every adapter by its examples.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The pool; their names must differ.
        examples : mapping of str to list
            For each adapter's name some inputs of its task, in whatever form the encoder takes; LoraRetriever takes
            20. It may name more adapters than the pool has.

        Returns
        -------
        self
        """
        X = check_adapters(X)
        _check_examples(X.names, examples)
        self.adapters_ = X
        self.merger_ = None if self.merger is None else clone(self.merger)  # what the cache was made with
        self._cache: OrderedDict[tuple[str, ...], Adapter] = OrderedDict()
        self._hits = self._misses = 0
        self._check_room(self._blocked(self.exclude))
        pooled = [example for name in X.names for example in examples[name]]
        self.encoder_ = _ready(self.encoder, pooled)
        embedded = self._embed(pooled)
        ends = np.cumsum([len(examples[name]) for name in X.names])[:-1]
        # one mean an adapter; np.asarray(...).ravel() as a sparse matrix's mean is a matrix
        groups = np.split(np.arange(len(pooled)), ends)
        self.embeddings_ = normalize(np.array([np.asarray(embedded[rows].mean(axis=0)).ravel() for rows in groups]))
        return self

    def _embed(self, inputs: Sequence[Any]) -> Any:
        """Embed inputs at unit length: ndarray or sparse matrix, (n, width)."""
        for name in ("encode", "transform"):
            if hasattr(self.encoder_, name):
                found = getattr(self.encoder_, name)(inputs)
                break
        else:
            found = self.encoder_(inputs)
        if isinstance(found, torch.Tensor):
            found = found.detach().float().cpu().numpy()
        found = check_array(found, accept_sparse="csr", dtype=[np.float64, np.float32], input_name="the embeddings")
        if found.shape[0] != len(inputs):
            raise ValueError(f"the encoder made {found.shape[0]} embeddings of {len(inputs)} inputs; expected one each")
        return normalize(found)

    def similarities(self, queries: Sequence[Any]) -> NDArray[np.float64]:
        """Return the cosine similarity of every input to every adapter.

        Parameters
        ----------
        queries : list of inputs
            In the form that the encoder takes.

        Returns
        -------
        ndarray of shape (n_queries, n_adapters)
            Columns in the order of ``adapters_``. 0 where the embedding of an input is zero.
        """
        check_is_fitted(self)
        if isinstance(queries, str):
            raise TypeError(f"queries must be a list of inputs, got the string {queries!r}; pass [query]")
        return np.asarray(self._embed(queries) @ self.embeddings_.T, dtype=np.float64)

    def rank(
        self, queries: Sequence[Any], *, exclude: Sequence[Names] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Find the adapters nearest to each input.

        Parameters
        ----------
        queries : list of inputs
            In the form that the encoder takes.
        exclude : list, default=None
            For each input the name or names of adapters not to retrieve for it, or None; in addition to the
            parameter ``exclude``. Excluding the adapter of the input's own task gives the out-of-distribution setting
            of the papers.

        Returns
        -------
        names : ndarray of shape (n_queries, top_k)
            Adapters' names, nearest first; the pool's order decides ties.
        similarities : ndarray of shape (n_queries, top_k)
            Their cosine similarities.
        """
        order, similarities = self._ranked(queries, exclude)
        return np.array(self.adapters_.names)[order], similarities

    def _ranked(self, queries: Sequence[Any], exclude: Sequence[Names] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        similarities = self.similarities(queries)
        always = self._blocked(self.exclude)
        blocked = np.tile(always, (len(similarities), 1))
        if exclude is not None:
            if isinstance(exclude, str) or len(exclude) != len(similarities):
                raise ValueError(
                    f"exclude must have one entry for each of the {len(similarities)} queries (a name, names, or "
                    "None); what is never to be retrieved goes to the parameter exclude"
                )
            blocked |= np.array([self._blocked(names) for names in exclude])
        for row in blocked:
            self._check_room(row)
        order = np.argsort(np.where(blocked, np.inf, -similarities), axis=1, kind="stable")[:, : self.top_k]
        return order, np.take_along_axis(similarities, order, axis=1)

    def _blocked(self, names: Names) -> NDArray[np.bool_]:
        wanted = [names] if isinstance(names, str) else list(names or [])
        if unknown := [name for name in wanted if name not in self.adapters_.names]:
            raise ValueError(f"exclude names {unknown}, which are not in the pool: {list(self.adapters_.names)}")
        return np.isin(np.array(self.adapters_.names), wanted)

    def _check_room(self, blocked: NDArray[np.bool_]) -> None:
        left = int((~blocked).sum())
        if self.top_k > left:
            raise ValueError(
                f"top_k={self.top_k} is above {left}, the adapters of the pool that are not excluded; "
                "choose a smaller top_k"
            )

    def retrieve(self, query: Any, *, exclude: Names = None) -> AdapterSet:
        """Return the adapters nearest to one input.

        Parameters
        ----------
        query : input
            In the form that the encoder takes in a list.
        exclude : str or list of str, default=None
            Adapters not to retrieve for it.

        Returns
        -------
        AdapterSet
            ``top_k`` adapters, nearest first.
        """
        order, _ = self._ranked([query], [exclude])
        return self.adapters_[order[0]]

    def merge(self, query: Any, *, exclude: Names = None) -> Adapter:
        """Return the merge of the adapters nearest to one input.

        Inputs that retrieve the same adapters, in whatever order, share one merge.

        Parameters
        ----------
        query : input
            In the form that the encoder takes in a list.
        exclude : str or list of str, default=None
            Adapters not to retrieve for it.

        Returns
        -------
        Adapter
            The merge, or the nearest adapter itself if ``merger`` is None.
        """
        ((adapter, _),) = self.merge_groups([query], exclude=[exclude])
        return adapter

    def merge_groups(
        self, queries: Sequence[Any], *, exclude: Sequence[Names] | None = None
    ) -> Iterator[tuple[Adapter, NDArray[np.intp]]]:
        """Iterate over the merges that some inputs need, with the positions of those inputs.

        A batch of mixed inputs then runs with as few adapters as it needs::

            for adapter, rows in retriever.merge_groups(texts):
                with lorakit.applied(model, adapter):
                    answers = model(...)  # on the texts at rows

        Parameters
        ----------
        queries : list of inputs
            In the form that the encoder takes.
        exclude : list, default=None
            As in :meth:`rank`.

        Yields
        ------
        adapter : Adapter
            A merge, made when the iteration reaches it.
        positions : ndarray of int
            The inputs that retrieve these adapters, ascending.
        """
        order, _ = self._ranked(queries, exclude)
        groups: dict[tuple[int, ...], list[int]] = {}
        for position, row in enumerate(order):
            # in the pool's order: the merge is then a function of the set, not of which input came first
            key = tuple(sorted(row.tolist())) if self.merger_ is not None else (int(row[0]),)
            groups.setdefault(key, []).append(position)
        return ((self._merged(key), np.array(positions)) for key, positions in groups.items())

    def _merged(self, key: tuple[int, ...]) -> Adapter:
        if self.merger_ is None:
            return self.adapters_[key[0]]
        names = tuple(self.adapters_.names[i] for i in key)
        if names in self._cache:
            self._hits += 1
            self._cache.move_to_end(names)
            return self._cache[names]
        self._misses += 1
        result = clone(self.merger_).fit_transform(self.adapters_[list(key)])
        if len(result) != 1:
            raise ValueError(
                f"{self.merger_!r} made {len(result)} adapters of {len(key)}; merger must be a merger, or a pipeline "
                "that ends in one"
            )
        self._cache[names] = result[0]
        if self.cache_size is not None and len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return result[0]

    def cache_info(self) -> CacheInfo:
        """Return how many merges came from the cache and how many were made, its largest size and its present size."""
        check_is_fitted(self)
        return CacheInfo(self._hits, self._misses, self.cache_size, len(self._cache))


def _check_examples(names: Sequence[str], examples: Mapping[str, Sequence[Any]]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"adapters are told apart by name, and these repeat: {list(names)}")
    if not isinstance(examples, Mapping):
        raise TypeError(f"examples must map adapter names to lists of inputs, got {type(examples).__name__}")
    if missing := [name for name in names if name not in examples]:
        raise ValueError(f"there are no examples for the adapters {missing}; examples names {list(examples)}")
    for name in names:
        if isinstance(examples[name], str):
            raise TypeError(f"examples[{name!r}] must be a list of inputs, got one string")
        if len(examples[name]) == 0:
            raise ValueError(f"examples[{name!r}] is empty; an adapter is represented by its examples")


def _ready(encoder: Any, inputs: Sequence[Any]) -> Any:
    """Return the encoder, fitted if it is one that needs fitting and is not."""
    if hasattr(encoder, "encode") or not hasattr(encoder, "transform"):
        if not (hasattr(encoder, "encode") or callable(encoder)):
            raise TypeError(
                f"encoder must be a callable, a transformer, or have a method encode; got {type(encoder).__name__}"
            )
        return encoder
    try:
        check_is_fitted(encoder)
    except NotFittedError:
        return clone(encoder).fit(inputs)
    return encoder
