"""Kohya's single file."""
