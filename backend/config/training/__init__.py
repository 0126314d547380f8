"""Sections of `train_network`, one file each; backend/config/train.py puts them together."""
