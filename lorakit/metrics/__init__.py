"""Measures of adapters and of merges, from R x R algebra: no (d_out, d_in) matrix is ever formed."""

from .clusters import ClusterComposition, NormDecay, cluster_composition, norm_decay
from .connectivity import ModeConnectivity, interpolate, mode_connectivity
from .cross_terms import EntryMoments, cross_term_moments, cross_term_noise, cross_terms
from .distances import MSUDistances, msu_distances
from .interference import Interference, interference, module_interference
from .reconstruction import (
    Comparison,
    compare_adapters,
    compare_to_each,
    compare_updates,
    cosine_similarity,
    relative_error,
)
from .similarity import cosine_matrix, principal_angles, subspace_overlap
from .variance import OutputVariance, output_variance, output_variance_path

__all__ = [
    "ClusterComposition",
    "Comparison",
    "EntryMoments",
    "Interference",
    "MSUDistances",
    "ModeConnectivity",
    "NormDecay",
    "OutputVariance",
    "cluster_composition",
    "compare_adapters",
    "compare_to_each",
    "compare_updates",
    "cosine_matrix",
    "cosine_similarity",
    "cross_term_moments",
    "cross_term_noise",
    "cross_terms",
    "interference",
    "interpolate",
    "mode_connectivity",
    "module_interference",
    "msu_distances",
    "norm_decay",
    "output_variance",
    "output_variance_path",
    "principal_angles",
    "relative_error",
    "subspace_overlap",
]
