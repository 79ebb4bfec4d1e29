"""Stability AI's ControlLoRA."""
