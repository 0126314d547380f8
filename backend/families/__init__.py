"""Families of models: what a checkpoint of each is made of, how it is read, written and run."""
