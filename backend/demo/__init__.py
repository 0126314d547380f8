"""The demo: a tiny Stable Diffusion 1 model of our own, trained on drawn monsters, and the proof that it works."""
