"""Measures of adapters and of merges, from R x R algebra: no (d_out, d_in) matrix is ever formed.

Public names are listed in ``__init__.pyi``; they are imported when they are first used: cosines need neither SciPy nor
scikit-learn.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
