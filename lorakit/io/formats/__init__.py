"""The formats of adapter files, each with its codec."""
