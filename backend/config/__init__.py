"""Configs: what every command can be told, declared once. `base` is the way in; sections import `declare`."""
