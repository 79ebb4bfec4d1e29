"""Pictures of adapters and merges: Display objects as scikit-learn has them. Needs matplotlib (``lorakit[plot]``)."""

from .clusters import ClusterCompositionDisplay
from .connectivity import ModeConnectivityDisplay
from .decay import NormDecayDisplay
from .rank_curve import RankCurveDisplay
from .similarity import AdapterSimilarityDisplay
from .spectra import SingularValuesDisplay
from .units import MSUMapDisplay
from .variance import OutputVarianceDisplay

__all__ = [
    "AdapterSimilarityDisplay",
    "ClusterCompositionDisplay",
    "MSUMapDisplay",
    "ModeConnectivityDisplay",
    "NormDecayDisplay",
    "OutputVarianceDisplay",
    "RankCurveDisplay",
    "SingularValuesDisplay",
]
