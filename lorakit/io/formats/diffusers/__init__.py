"""diffusers' single file."""
