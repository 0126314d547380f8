"""Configs that other programs wrote, and ours in their words. Knows no torch.

`foreign.read_foreign` reads sd-scripts toml, the JSON of kohya_ss' GUI, and the metadata of a LoRA file into values of
`TrainNetwork`; `export.to_scripts` writes a toml for sd-scripts. What one side has no counterpart for is told in notes.
"""
