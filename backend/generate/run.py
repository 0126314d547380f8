"""`gen_img`: pictures from prompts on the command line or in a file, with LoRA files at their multipliers."""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from backend import events
from backend.config.generate import GenImg
from backend.errors import UserError
from backend.families.base import LoadOptions
from backend.generate.attention import set_attention
from backend.generate.device import device_line
from backend.generate.images import describe, save_png
from backend.generate.lora_tags import Dose, find_loras
from backend.generate.notes import prompt_notes, shown
from backend.generate.pipeline import GenerationModel, load_generation_model, resolve
from backend.generate.prompt_files import read_prompts
from backend.generate.prompts import MAX_SEED, Request, parse_line
from backend.terminal import say, warn


def run(config: GenImg) -> None:
    """Draw every prompt and write the pictures to `outdir`.

    Raises:
        UserError: a prompt, a size, a model or a LoRA file that cannot work.
    """
    requests = read_requests(config)
    check_folder(config.output.outdir)
    merged, loras = config.network.loras()[: config.network.merged], config.network.loras()[config.network.merged :]
    doses = [doses_of(request, loras, config.network.network_weights) for request in requests]
    device = choose_device(config.speed.device)
    if line := device_line(device):
        say(line)
    dtype = choose_dtype(config, device)
    options = LoadOptions.of(config.model)
    generator = load_generation_model(config.model.ckpt, config.model.revision, device, dtype, options)
    for note in (*generator.model.notes, *prompt_notes(generator.model, requests)):
        warn(note)
    message = set_attention(generator.model.unet, config.speed.xformers, config.speed.sdpa, device)
    if message:
        warn(message)
    # Every size is checked before the first picture is drawn.
    requests = [resolve(request, generator.model) for request in requests]
    if merged:
        generator.set_loras(merged, config.network.allow_unmatched)
        generator.merge_loras()
    stamp, number = time.strftime("%Y%m%d%H%M%S"), 0
    for turn in range(config.image.n_iter):
        for request, each in zip(turned(requests, turn, config.image.seed), doses, strict=True):
            generator.set_loras(each, config.network.allow_unmatched)
            draw(generator, request, config, f"im_{stamp}_{number:03d}")
            number += 1


def turned(requests: Sequence[Request], turn: int, seed: int | None) -> list[Request]:
    """The requests of one turn of `n_iter`: the first as they are, later ones with seeds of their own.

    Args:
        requests: resolved.
        turn: from 0.
        seed: of the run; where it has none, later turns draw theirs.
    """
    if not turn:
        return list(requests)
    fresh = random.SystemRandom()
    return [
        replace(
            request,
            seed=fresh.randrange(2**32) if seed is None else (request.seed + turn * request.count) % (MAX_SEED + 1),
        )
        for request in requests
    ]


def doses_of(request: Request, loras: Sequence[tuple[Path, float]], given: Sequence[Path]) -> list[Dose]:
    """The LoRA files of a prompt: those of the run with its own multipliers, and those that it names.

    Raises:
        UserError: there are more multipliers than files, or no file of a name.
    """
    own = [Dose(path, multiplier) for path, multiplier in with_multipliers(loras, request.multipliers)]
    try:
        return own + find_loras(request.loras, given)
    except UserError as error:
        raise UserError(error.message, field=request.source or f"prompt {shown(request.prompt)}") from error


def read_requests(config: GenImg) -> list[Request]:
    """The prompts with the settings of the command line, where they have none of their own."""
    image = config.image
    defaults = Request(
        prompt="",
        negative=config.prompting.negative_prompt,
        width=image.W,
        height=image.H,
        steps=image.steps,
        scale=image.scale,
        sampler=image.sampler,
        seed=image.seed,
        count=image.images_per_prompt,
        chunks=config.prompting.max_embeddings_multiples,
    )
    if config.prompting.from_file is not None:
        return read_prompts(config.prompting.from_file, defaults, "from_file")
    return [parse_line(config.prompting.prompt, defaults)]


def check_folder(folder: Path) -> None:
    """See that pictures can be written to a folder, which is made with the first of them.

    Raises:
        UserError: something else is there, or it may not be written to.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{folder} cannot be a folder: {there} is none; choose another", field="outdir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written to; choose another", field="outdir")


def with_multipliers(
    loras: Sequence[tuple[Path, float]], multipliers: Sequence[float] | None
) -> list[tuple[Path, float]]:
    """The LoRA files with a prompt's own multipliers (`--am`); missing ones repeat the last.

    Raises:
        UserError: there are more multipliers than files.
    """
    if multipliers is None:
        return list(loras)
    if len(multipliers) > len(loras):
        raise UserError(f"--am has {len(multipliers)} values for {len(loras)} files in network_weights", field="prompt")
    filled = [*multipliers, *[multipliers[-1]] * (len(loras) - len(multipliers))]
    return [(path, multiplier) for (path, _), multiplier in zip(loras, filled, strict=True)]


def choose_device(name: str | None) -> torch.device:
    """The device of this name; without a name the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} is not here ({reason}); take cpu, or leave it out", field="device") from None
    return device


def choose_dtype(config: GenImg, device: torch.device) -> torch.dtype:
    """Precision by the flags; on a CPU float32 stands in for float16, with a line that says so."""
    if config.speed.fp16 and device.type == "cpu":
        warn("fp16 needs a GPU; there is none here, so float32 is used")
        return torch.float32
    return torch.float16 if config.speed.fp16 else torch.bfloat16 if config.speed.bf16 else torch.float32


def draw(generator: GenerationModel, request: Request, config: GenImg, stem: str) -> None:
    """Draw one prompt's pictures, write and tell each."""
    model = Path(config.model.ckpt).stem
    with tqdm(desc=request.prompt[:40] or "empty prompt", unit="step", dynamic_ncols=True, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            events.emit("progress", phase="generating", step=done, total=total)

        for single, picture in generator.pictures(request, config.image.batch_size, report):
            path = free_path(config.output.outdir, f"{stem}_{single.seed}")
            save_png(picture, path, describe(single, model, (*generator.merged, *generator.loras)))
            say(f"Saved {path}")
            events.emit("sample", path=str(path), prompt=single.prompt, step=0, index=single.seed - request.seed)


def free_path(folder: Path, stem: str) -> Path:
    """A name in the folder that no file has yet: pictures of earlier runs are never replaced."""
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.png"
    return path
