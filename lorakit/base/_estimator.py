"""What all estimators on adapters share."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from .._execution import base_seed, read_module
from .._listing import GAUGES
from .._ranks import RankBudget, RankRule
from .._recipes import recipe_of, recipe_text
from .._sklearn import Interval, InvalidParameterError, RealNotInt, StrOptions
from ..adapter_set import AdapterSet
from ..exceptions import ParameterError, Words
from ..linalg import singular_values_of_sum
from ..provenance import Step
from ._doc_link import doc_link

if TYPE_CHECKING:
    from ..adapters import Adapter

_LARGEST = 2**1000  # an int above it may be no float


class WrongParameterError(ParameterError, InvalidParameterError):
    """What scikit-learn says of a parameter that is out of its range, worded for the command line too."""


class AdapterEstimator(TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """What mergers and pruners share."""

    # Pipeline.score routes sample_weight=None to its last step, whether that step takes it or not.
    __metadata_request__score: ClassVar[dict[str, Any]] = {"sample_weight": None}

    method: ClassVar[str]  # the name by which the command line and the docs know it
    paper: ClassVar[str | None] = None  # where the method comes from

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "k": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
            StrOptions({"auto"}),
            RankBudget,
            RankRule,
            None,
        ],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "device": [str, None],
        "verbose": ["verbose"],
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Adapters cannot become a DataFrame: set_output stays off, in every subclass.
        super().__init_subclass__(auto_wrap_output_keys=None, **kwargs)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Refuse other containers than :class:`~lorakit.AdapterSet`.

        Parameters
        ----------
        transform : {'default', None}
            Both leave things as they are, so that a pipeline can be reset. The output configured for all of
            scikit-learn (``sklearn.set_config(transform_output=...)``) does not reach this estimator.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For 'pandas' and 'polars'.
        """
        if transform not in (None, "default"):
            raise ValueError(
                f"{type(self).__name__} gives an AdapterSet, which cannot become a table: transform={transform!r} is "
                "for the steps of a pipeline that give arrays; set it on those alone"
            )
        return self

    def fit_transform(self, X: AdapterSet | Iterable[Adapter], y: object = None, **fit_params: Any) -> AdapterSet:
        """Fit to adapters and return what comes of them.

        Parameters
        ----------
        X : AdapterSet or iterable of Adapter
            The adapters.
        y : ignored
            Here for pipelines.
        **fit_params : dict
            Passed on to ``fit``.

        Returns
        -------
        AdapterSet
            What ``fit(X, y, **fit_params).transform(X)`` returns.
        """
        held = AdapterSet(X) if isinstance(X, Iterator) else X  # fit and transform both go through it
        result: AdapterSet = super().fit_transform(held, y, **fit_params)
        return result

    def _get_doc_link(self) -> str:  # scikit-learn's HTML display asks for it
        return doc_link(type(self))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def invariances(self) -> frozenset[str]:
        """Changes of factors, updates kept, that leave the result as it is: any of ``lorakit.base.GAUGES``."""
        return frozenset(GAUGES)

    def _validate_params(self) -> None:
        name = type(self).__name__
        try:
            super()._validate_params()
        except InvalidParameterError as error:
            text = str(error)
            raise WrongParameterError(Words(text, text.replace(name, f"--method {self.method}"))) from None
        for parameter, value in self.get_params(deep=False).items():
            if isinstance(value, Integral) and abs(int(value)) > _LARGEST:
                raise WrongParameterError(f"{parameter} is a whole number of over 300 digits, which no float holds")
            allowed = self._parameter_constraints.get(parameter, ["boolean"])
            if allowed == "no_validation":
                continue
            if isinstance(value, bool) and not any(
                what in ("boolean", "verbose") for what in allowed if type(what) is str
            ):
                # to Python True is the int 1
                raise WrongParameterError(
                    f"The {parameter!r} parameter must be a number or a word. Got {value} instead."
                )

    def _seed(self) -> int:
        return base_seed(getattr(self, "random_state", 0))

    def shown(self) -> Self:
        """Return the estimator as reports and records show it: itself, unless a parameter is too large for them."""
        return self

    def _step(self, X: AdapterSet) -> Step:
        """Return what is to be remembered of a run on X."""
        recipe = recipe_of(self.shown())
        return Step(
            recipe_text(recipe),
            tuple((adapter.name, adapter.provenance.origin) for adapter in X),
            recipe,
            tuple(adapter.provenance.conversions for adapter in X),
        )


def spectrum_of_mean(X: AdapterSet, module: str, *, weights: list[float], device: str | None) -> np.ndarray:
    """Singular values of the weighted mean of one module's updates."""
    found = X[0].svd(module, 0) if len(X) == 1 else None
    if found is not None:
        return (found[1] * abs(weights[0])).numpy()
    return singular_values_of_sum(read_module(X, module, device), weights).cpu().numpy()
