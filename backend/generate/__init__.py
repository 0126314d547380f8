"""Making pictures: prompts, samplers, the hot pipeline, PNG files, and the worker that serves them."""
