"""Pure tensor functions on thin factors: no files, no scikit-learn.

An update is a pair ``(A, B)`` with A of shape (r, d_in) and B of shape (d_out, r), standing for ``B @ A``.
Nothing here forms a (d_out, d_in) matrix unless the function's name says *dense*.
"""

from .damping import damp_shared_outputs
from .entries import entry_moments
from .fisher import entrywise_mean
from .frames import Compressed, compress, frame_of
from .fused import join_outputs, slice_outputs
from .msu import align_svd, balance_msus, pool_msus, split_msus
from .products import (
    Overlap,
    frobenius_norm,
    gram_matrix,
    inner_product,
    overlap_of,
    residual_norm,
    squared_norm,
    weighted_concat,
)
from .regression import regression_mean
from .running_regression import RegressionSums, add_to_regression
from .signs import disjoint_max, disjoint_mean, disjoint_sum, elect_sign, elected_mean, tally_votes
from .spaces import core_space, fixed_direction, knots_space
from .sparsify import (
    drop_randomly,
    keep_above,
    keep_between,
    keep_middle,
    kept_entries,
    magnitude_threshold,
    magnitude_window,
    norm_ratio,
    rank_probabilities,
    trim,
    variance_threshold,
    weighted_variance,
)
from .spectral import (
    calibrate,
    calibrate_sum,
    flatten_spectrum,
    isotropic_sum,
    least_interference,
    merge_singular_vectors,
    numerical_svd,
    orthogonalize,
    task_svds,
    tucker2,
)
from .svd import (
    dense_randomized_svd,
    dense_svd,
    singular_values_of_sum,
    split_svd,
    svd_and_overlap,
    svd_of_sum,
    truncate,
    truncate_wide,
)

__all__ = [
    "Compressed",
    "Overlap",
    "RegressionSums",
    "add_to_regression",
    "align_svd",
    "balance_msus",
    "calibrate",
    "calibrate_sum",
    "compress",
    "core_space",
    "damp_shared_outputs",
    "dense_randomized_svd",
    "dense_svd",
    "disjoint_max",
    "disjoint_mean",
    "disjoint_sum",
    "drop_randomly",
    "elect_sign",
    "elected_mean",
    "entry_moments",
    "entrywise_mean",
    "fixed_direction",
    "flatten_spectrum",
    "frame_of",
    "frobenius_norm",
    "gram_matrix",
    "inner_product",
    "isotropic_sum",
    "join_outputs",
    "keep_above",
    "keep_between",
    "keep_middle",
    "kept_entries",
    "knots_space",
    "least_interference",
    "magnitude_threshold",
    "magnitude_window",
    "merge_singular_vectors",
    "norm_ratio",
    "numerical_svd",
    "orthogonalize",
    "overlap_of",
    "pool_msus",
    "rank_probabilities",
    "regression_mean",
    "residual_norm",
    "singular_values_of_sum",
    "slice_outputs",
    "split_msus",
    "split_svd",
    "squared_norm",
    "svd_and_overlap",
    "svd_of_sum",
    "tally_votes",
    "task_svds",
    "trim",
    "truncate",
    "truncate_wide",
    "tucker2",
    "variance_threshold",
    "weighted_concat",
    "weighted_variance",
]
