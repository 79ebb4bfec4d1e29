"""ComfyUI's single file."""
