"""XLabs' single file."""
