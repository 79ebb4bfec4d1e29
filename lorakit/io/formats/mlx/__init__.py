"""mlx-lm's directory."""
