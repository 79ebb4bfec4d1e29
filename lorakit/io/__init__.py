"""Reading and writing adapters: one file per format, one safe reader, one atomic writer.

Estimators never see a path, and nothing here sees an estimator. Scale, rank patterns, key names and storage dtypes are
settled when a file is read, and come back when it is written.
"""

from .convert import convert_adapter
from .load import load_adapter, load_adapters
from .save import check_output, save_adapter

__all__ = ["check_output", "convert_adapter", "load_adapter", "load_adapters", "save_adapter"]
