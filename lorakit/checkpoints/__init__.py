"""From adapters to base checkpoints and back: :func:`~lorakit.bake`, :func:`~lorakit.extract_adapter`, ``check_fit``.

A checkpoint is read tensor by tensor and written as a stream. No model is built, so that any architecture will do.
"""

from .baked import Baked
from .extracting import ExtractedAdapter, ExtractedModule, Extraction, LeftOut
from .fitting import Fit, Target

__all__ = ["Baked", "ExtractedAdapter", "ExtractedModule", "Extraction", "Fit", "LeftOut", "Target"]
