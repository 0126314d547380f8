"""Measures the demo: `python -m backend.demo.evaluate [--lora FILE] [--multipliers 0 0.5 1] [--json]`.

Without a LoRA: does the base model follow prompts that it has never seen, and how well does its autoencoder
reconstruct? With one: how often does the new feature appear at each multiplier, with the new word and without it, and
are shape, colour and background still obeyed? Every picture is drawn by the engine that `gen_img` uses and read by the
picture reader.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.demo.base_vae import reconstruction_psnr
from backend.demo.pictures import NEW_WORD, Monster, all_kinds, caption, draw, is_held_out, random_monster
from backend.demo.reader import Reading, read
from backend.draws import rng
from backend.errors import UserError
from backend.families.base import load_model
from backend.generate.images import to_pictures
from backend.generate.pipeline import GenerationModel, decode, denoise, resolve
from backend.generate.prompts import Request

MODEL = "backend/demo/model"
BATCH = 16


def held_out_monsters(count: int, purpose: str) -> list[Monster]:
    """Monsters of combinations that the base model was not trained on, always the same ones."""
    kinds = [kind for kind in all_kinds() if is_held_out(kind)]
    chance = rng(0, purpose)
    return [random_monster(chance, chance.choice(kinds)) for _ in range(count)]


def draw_prompts(hot: GenerationModel, prompts: list[str], request: Request) -> list[Image.Image]:
    """One picture for each prompt, each with a seed of its own that depends on its place only."""
    request = resolve(request, hot.model)
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = [request.seed + start + index for index in range(len(part))]
        pictures += to_pictures(decode(hot.model, denoise(hot.model, request, seeds, prompts=part)))
    return pictures


def read_all(pictures: list[Image.Image]) -> list[Reading]:
    """What each picture shows."""
    return [read(np.asarray(picture.convert("RGB"))) for picture in pictures]


def followed(readings: list[Reading], monsters: list[Monster]) -> dict[str, float]:
    """By name, the share of pictures in which what the prompt asked for is there."""
    rows = [reading.matches(monster) for reading, monster in zip(readings, monsters, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def share(values: list[bool]) -> float:
    """The share of true ones."""
    return sum(values) / len(values)


def evaluate_base(hot: GenerationModel, request: Request, count: int) -> dict[str, float]:
    """How well the base model follows `count` held-out prompts, and the autoencoder's PSNR in dB on drawn pictures."""
    monsters = held_out_monsters(count, "evaluate base")
    readings = read_all(draw_prompts(hot, [caption(monster) for monster in monsters], request))
    pictures = torch.from_numpy(np.stack([draw(monster) for monster in monsters]))
    rates = followed(readings, monsters)
    return {
        **rates,
        "affected": share([r.affected for r in readings]),
        "vae_psnr": reconstruction_psnr(hot.model.vae, pictures),
    }


def evaluate_lora(hot: GenerationModel, request: Request, count: int) -> dict[str, dict[str, float]]:
    """Rates over `count` prompts with the new word and as many without, with whatever LoRA the model carries.

    Returns:
        `with_word` and `without_word`, each with: feature (horns and stripes), affected (either), what was followed.
    """
    monsters = held_out_monsters(count, "evaluate lora")
    report = {}
    for name, word in (("with_word", NEW_WORD), ("without_word", "monster")):
        readings = read_all(draw_prompts(hot, [caption(monster, word) for monster in monsters], request))
        marks = {"feature": share([r.feature for r in readings]), "affected": share([r.affected for r in readings])}
        report[name] = {**marks, **followed(readings, monsters)}
    return report


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m backend.demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="the base model")
    parser.add_argument("--lora", type=Path, help="a LoRA trained on the demo dataset")
    parser.add_argument("--multipliers", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--prompts", type=int, help="how many prompts (128 for the base, 32 for each row of a LoRA)")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    hot = GenerationModel(load_model(options.model), "cpu", torch.float32)
    request = Request("", steps=options.steps, scale=options.scale, seed=1000)
    if options.lora is None:
        report = {"base": evaluate_base(hot, request, options.prompts or 128)}
    else:
        report = {}
        for multiplier in options.multipliers:
            hot.set_loras([(options.lora, multiplier)])
            report[f"multiplier {multiplier:g}"] = evaluate_lora(hot, request, options.prompts or 32)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for title, rates in report.items():
        rows = rates.items() if options.lora else [("", rates)]
        for name, row in rows:
            print(title, name, " ".join(f"{key} {value:.3g}" for key, value in row.items()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
