"""Tools on model and LoRA files."""
