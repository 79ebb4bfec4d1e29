"""Reading and writing adapters: one folder per format, one safe reader, one atomic writer.

Estimators never see a path, and nothing here sees an estimator. Scale, rank patterns, key names and storage dtypes are
settled when a file is read, and come back when it is written.

Public names are listed in ``__init__.pyi``; they are imported when they are first used, so that the names of formats
can be had without torch.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
