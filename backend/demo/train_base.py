"""Trains the demo's base model: `python -m backend.demo.train_base --work_dir DIR --save_to backend/demo/model`.

Three stages, each kept in the work folder so that a broken run goes on where it stopped: pictures drawn by code, the
autoencoder, then U-Net and text encoder. A GPU needs minutes, two CPU cores a few hours.
"""

import argparse
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from backend.demo import base_unet, base_vae
from backend.demo.ornaments import draw_ornamented
from backend.demo.pictures import all_kinds, caption, draw, is_held_out, random_caption, random_monster
from backend.demo.reader import read
from backend.draws import draw_key, rng
from backend.families.tokenizer import clip_tokenizer

CAPTIONS_PER_PICTURE = 4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="where unfinished work is kept")
    parser.add_argument("--save_to", type=Path, required=True, help="the Diffusers folder to write")
    parser.add_argument("--pictures", type=int, default=24000, help="how many pictures to draw")
    parser.add_argument("--vae_steps", type=int, default=2200)
    parser.add_argument("--unet_steps", type=int, default=10000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop the last stage after so many minutes in all and save"
    )
    parser.add_argument(
        "--start_from", type=Path, help="a model this script saved, to go on from instead of from nothing"
    )
    parser.add_argument("--peak_rate", type=float, default=1.0, help="factor on the peak learning rates")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--graph", action="store_true", help="capture the step as a CUDA graph")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def draw_chunk(arguments: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """Draws pictures [start, stop): plain ones, the same with ornaments on every other one, and their captions."""
    seed, start, stop = arguments
    kinds = [kind for kind in all_kinds() if not is_held_out(kind)]
    plain, ornamented, captions = [], [], []
    for index in range(start, stop):
        chance = rng(seed, "demo picture", index)
        monster = random_monster(chance, kinds[index % len(kinds)])
        plain.append(draw(monster))
        chances = np.random.default_rng(draw_key(seed, "demo ornament", index))
        ornamented.append(draw_ornamented(monster, chances) if index % 2 else plain[-1])
        captions.append([random_caption(monster, chance) for _ in range(CAPTIONS_PER_PICTURE)])
    return np.stack(plain), np.stack(ornamented), captions


def draw_all(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, list[list[str]]]:
    """All training pictures on every core: uint8 [N, 64, 64, 3] plain and ornamented, and their captions."""
    chunks = [(seed, start, min(start + 500, count)) for start in range(0, count, 500)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(draw_chunk, chunks))
    plain, ornamented = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in (0, 1))
    return plain, ornamented, [texts for part in parts for texts in part[2]]


def vae_stage(options: argparse.Namespace, plain: torch.Tensor, ornamented: torch.Tensor) -> AutoencoderKL:
    """The trained autoencoder, from the work folder if it is there."""
    file = options.work_dir / "vae.pt"
    vae = base_vae.build_vae(options.seed).to(options.device)
    if file.exists():
        vae.load_state_dict(torch.load(file, weights_only=True))
        return vae.eval()
    if options.start_from:
        vae.load_state_dict(
            AutoencoderKL.from_pretrained(options.start_from / "vae", torch_dtype=torch.float32).state_dict()
        )
        base_vae.fold_scale(vae, base_vae.encode(vae, plain[:4096]), deviation=1.0)
    started = time.time()

    def report(step: int, loss: float) -> None:
        print(f"vae step {step}: loss {loss:.4f}, {time.time() - started:.0f} s", flush=True)

    batch_size, peak = max(16, options.batch_size // 4), 2e-3 * options.peak_rate
    base_vae.train_vae(vae, ornamented, options.vae_steps, options.seed, batch_size, peak, report)
    base_vae.fold_scale(vae.eval(), base_vae.encode(vae, plain[:4096]))
    torch.save(vae.state_dict(), file)
    return vae


def unet_stage(options: argparse.Namespace, data: base_unet.TrainingPictures, started: float) -> base_unet.BaseTrainer:
    """U-Net and text encoder, trained up to `--unet_steps` or `--minutes`, whichever comes first."""
    unet = base_unet.build_unet(options.seed).to(options.device)
    text_encoder = base_unet.build_text_encoder(options.seed).to(options.device)
    if options.start_from:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(options.start_from / "unet").state_dict())
        text_encoder.load_state_dict(CLIPTextModel.from_pretrained(options.start_from / "text_encoder").state_dict())
    print(f"{base_unet.parameter_count(unet):,} + {base_unet.parameter_count(text_encoder):,} parameters", flush=True)
    trainer = base_unet.BaseTrainer(unet, text_encoder, data, options.seed, 1e-3 * options.peak_rate)
    file = options.work_dir / "unet.pt"
    if file.exists():
        trainer.load_state(torch.load(file, weights_only=True, map_location=options.device))
    began, first = time.time(), trainer.step

    def report(step: int, loss: float) -> None:
        rate = (time.time() - began) / max(1, step - first)
        if step % 1000 == 0 or step <= 400:
            print(f"unet step {step}: loss {loss:.4f}, {1000 * rate:.1f} ms a step", flush=True)

    while trainer.step < options.unet_steps and time.time() - started < 60 * options.minutes:
        until = min(trainer.step + 500, options.unet_steps)
        trainer.run(until, options.unet_steps, options.batch_size, report, graph=options.graph)
        if trainer.step % 2000 == 0:
            _save_state(trainer, file)
    _save_state(trainer, file)
    return trainer


def _save_state(trainer: base_unet.BaseTrainer, file: Path) -> None:
    torch.save(trainer.state(), file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


@torch.no_grad()
def evaluate(
    trainer: base_unet.BaseTrainer, vae: AutoencoderKL, tokenizer: object, scale: float
) -> tuple[dict, np.ndarray]:
    """Rates over 128 held-out prompts, and the first 48 pictures as one sheet."""
    held_out = [kind for kind in all_kinds() if is_held_out(kind)]
    chance = random.Random(0)
    monsters = [random_monster(chance, chance.choice(held_out)) for _ in range(128)]
    device = trainer.device
    ids = _tokenize(tokenizer, [caption(monster) for monster in monsters]).to(device)
    contexts = (
        trainer.text_encoder(ids).last_hidden_state,
        trainer.text_encoder(trainer.data.empty[None]).last_hidden_state,
    )
    latents = base_unet.sample(trainer.unet, contexts, scale, seed=0)
    pixels = torch.cat([vae.decode(part).sample for part in latents.split(32)]).clamp(-1, 1)
    pictures = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    followed = [read(picture).matches(monster) for picture, monster in zip(pictures, monsters, strict=True)]
    rates = {name: sum(row[name] for row in followed) / len(followed) for name in followed[0]}
    marked = sum(read(picture).affected for picture in pictures) / len(pictures)
    return {**rates, "marked": marked}, np.vstack([np.hstack(pictures[row * 12 : row * 12 + 12]) for row in range(4)])


def _tokenize(tokenizer: object, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids


def save(options: argparse.Namespace, trainer: base_unet.BaseTrainer, vae: AutoencoderKL) -> None:
    """Writes a Diffusers folder in half precision (no tokenizer: CLIP's is bundled with the families)."""
    folder = options.save_to
    for name, module in (("unet", trainer.unet), ("vae", vae), ("text_encoder", trainer.text_encoder)):
        module.half().save_pretrained(folder / name)
    DDIMScheduler(**base_unet.SCHEDULER).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": [None, None],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    started = time.time()
    options = parse()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plain, ornamented, captions = draw_all(options.seed, options.pictures)
    print(f"{len(plain)} pictures drawn in {time.time() - started:.0f} s", flush=True)
    plain, ornamented = plain.to(options.device), ornamented.to(options.device)
    vae = vae_stage(options, plain, ornamented)
    psnr = base_vae.reconstruction_psnr(vae, plain[-1024:])
    with_ornaments = base_vae.reconstruction_psnr(vae, ornamented[-1024:])
    print(f"vae: {psnr:.2f} dB on plain pictures, {with_ornaments:.2f} dB with ornaments")
    tokenizer = clip_tokenizer()
    ids = _tokenize(tokenizer, [text for texts in captions for text in texts]).view(
        len(plain), CAPTIONS_PER_PICTURE, 77
    )
    latents = base_vae.encode(vae, plain) * base_vae.LATENT_SCALE
    empty = _tokenize(tokenizer, [""])[0]
    data = base_unet.TrainingPictures(latents, ids.to(options.device), empty.to(options.device))
    trainer = unet_stage(options, data, started)
    trainer.average.swap()
    trainer.unet.eval(), trainer.text_encoder.eval()
    results = {"steps": trainer.step, "vae_psnr": psnr}
    for scale in (1.5, 2.5, 4.0, 7.5):
        results[f"scale {scale}"], sheet = evaluate(trainer, vae, tokenizer, scale)
        print(scale, json.dumps(results[f"scale {scale}"]), flush=True)
        cv2.imwrite(str(options.work_dir / f"sheet-{scale}.png"), sheet[..., ::-1])
    (options.work_dir / "results.json").write_text(json.dumps(results, indent=2))
    save(options, trainer, vae)
    print(f"saved after {(time.time() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
