"""Recipes: what was, or is to be, done to adapters, in a file that people read and write."""
