"""The demo: a tiny Stable Diffusion 1 model of our own, trained on monsters drawn by code, and what proves that it works."""
