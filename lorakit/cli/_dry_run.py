"""What a command would do, found out by doing it on one module of each shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .. import AdapterSet
    from ..adapters import ModuleInfo

Infos = dict[str, "ModuleInfo"]


def infos_of_dry_run(estimator: Any, adapters: AdapterSet) -> list[Infos]:
    """Read every module, run the estimator on one of each shape, and say what all of them would become.

    Modules that have the same widths and the same ranks in every adapter come out alike, so one of them stands for
    all. The estimator makes its own checks, which look at nothing else.

    Returns
    -------
    list of dict
        What each result would hold, by module.
    """
    from sklearn.pipeline import Pipeline

    from .. import AdapterSet
    from .._ranks import needs_spectra

    for adapter in adapters:
        for module in adapter:
            adapter[module]  # raises if it cannot be read, or is not finite
    # ranks may depend on more than shapes, and steps may go by names: do it all
    if isinstance(estimator, Pipeline) or needs_spectra(estimator.get_params(deep=False).get("k")):
        return [dict(result.infos) for result in estimator.fit_transform(adapters)]
    first: dict[Any, str] = {}
    stands_for = {module: first.setdefault(adapters.infos(module), module) for module in adapters.module_names}
    results = estimator.fit_transform(AdapterSet(adapter.select(first.values()) for adapter in adapters))
    return [
        {module: result.infos[one] for module, one in stands_for.items() if one in result.infos} for result in results
    ]
