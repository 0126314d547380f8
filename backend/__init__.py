"""LoRA Loom's engine: networks, training, tools and generation, usable from a shell and from the web process."""
