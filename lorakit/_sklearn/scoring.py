"""scikit-learn's private base class of scorers."""

from sklearn.metrics._scorer import _BaseScorer as BaseScorer

__all__ = ["BaseScorer"]
