"""The private names of scikit-learn that lorakit uses: imported here and nowhere else, so that a change shows here.

That of scorers has a file of its own: ``sklearn.metrics`` takes half a second, and no merge needs it.
"""

from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import Interval, InvalidParameterError, RealNotInt, StrOptions
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = ["Interval", "InvalidParameterError", "RealNotInt", "StrOptions", "check_sample_weight", "fit_context"]
