"""LoRA as values: a layer, a file, its metadata. `header` and `metadata` know no torch."""
