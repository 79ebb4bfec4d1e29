"""Reports of merges, prunes and sets of adapters: one HTML file that needs nothing else."""

from .report import Report

__all__ = ["Report"]
