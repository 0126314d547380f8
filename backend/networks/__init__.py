"""Networks that are put on a model and trained."""
