"""PEFT's directory."""
