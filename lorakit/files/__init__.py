"""Bytes on disk: checked reading, whole writing, JSON and patterns in bounded time."""
