"""Choosing a merge by how it does on tasks: scorer, classifier, splitter, and a search over weights."""

from .classifier import AdapterClassifier
from .multi_task import MultiTaskScorer
from .rank_path import rank_path
from .splits import AllAdapters
from .weight_search import WeightSearch

__all__ = ["AdapterClassifier", "AllAdapters", "MultiTaskScorer", "WeightSearch", "rank_path"]
