"""Distilled merging: train a merge's factors until every adapter's head sees on them what it sees on its adapter."""
