"""Sides that draw pictures: our pipeline with a LoRA and without, and diffusers' with the LoRA loaded or fused."""

import time
from pathlib import Path

import diffusers
import numpy
import torch
from PIL import Image

from backend.families.base import FAMILIES, load_model
from backend.families.build import model_configs
from backend.generate.pipeline import GenerationModel
from backend.generate.prompts import Request
from backend.generate.samplers import make_solver
from backend.networks.lora import create_network
from benchmarks.pairs.models import random_model, random_modules
from benchmarks.pairs.settings import Drawing
from benchmarks.pairs.stock import CLASSES, DTYPES

PROMPT, NEGATIVE = "a red monster with two eyes on a blue background", "blurry"


def write_lora(path: Path, drawing: Drawing, rank: int) -> None:
    """Write a LoRA file of text encoders and U-Net for the model, of random weights that change what it draws."""
    with torch.device("meta"):
        kind, configs = FAMILIES[drawing.family], sizes(drawing)
        modules = {name: kind.build(name, configs[name]) for name in kind.parts}
        encoders = [module for name, module in modules.items() if name.startswith("text_encoder")]
        network = create_network(1.0, rank, rank / 2, None, encoders, modules["unet"])
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in network.adapters():
            for one, size in ((adapter.lora_down, 1 / rank), (adapter.lora_up, 0.02)):
                one.weight.copy_(torch.randn(one.weight.shape, generator=generator) * size)
    network.save_weights(path, torch.float32, {})


def sizes(drawing: Drawing) -> dict[str, dict[str, object]]:
    """The configurations of the model's parts."""
    return model_configs(drawing.family, small=drawing.model == "demo")


def pixels_of(picture: Image.Image) -> list[int]:
    """All values of a picture, 0 to 255."""
    return numpy.asarray(picture).reshape(-1).tolist()


class Ours:
    """Our pipeline, with the LoRA at the multiplier that `switch` sets.

    Attributes:
        size: numbers of the U-Net.
    """

    def __init__(self, drawing: Drawing) -> None:
        dtype = DTYPES[drawing.precision]
        if drawing.checkpoint is None:
            model = random_model(drawing.family, drawing.device, dtype)
        else:
            model = load_model(drawing.checkpoint, dtype=None)
        self._lora = drawing.lora
        self._model = GenerationModel(model, drawing.device, dtype)
        edge = drawing.resolution
        self._request = Request(
            PROMPT, NEGATIVE, edge, edge, steps=drawing.steps, scale=drawing.scale, sampler="ddim", seed=1
        )
        self.size = sum(parameter.numel() for parameter in model.unet.parameters())
        self._last: Image.Image | None = None

    def switch(self, multiplier: float) -> float:
        """Move the slider; returns the seconds that it took."""
        began = time.perf_counter()
        self._model.set_loras([(self._lora, multiplier)])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def get_ready(self, count: int) -> None:
        """Nothing has to be laid out for the next pictures."""

    def steps(self, count: int) -> list[float]:
        """Draw pictures; returns the mean of each."""
        drawn = [self._model.generate(self._request)[0] for _ in range(count)]
        self._last = drawn[-1]
        return [float(numpy.asarray(picture).mean()) for picture in drawn]

    def pixels(self) -> list[int]:
        """The last picture."""
        return pixels_of(self._last)


class Plain(Ours):
    """Our pipeline, which never sees a LoRA."""

    def switch(self, multiplier: float) -> float:
        """There is no slider."""
        return 0.0


class Loaded:
    """Diffusers' pipeline with the LoRA loaded as PEFT's layers beside the weights.

    Attributes:
        size: numbers of the U-Net before the LoRA.
    """

    def __init__(self, drawing: Drawing) -> None:
        if drawing.family == "sdxl":
            raise SystemExit("diffusers' pipeline is compared for Stable Diffusion 1 only")
        dtype = DTYPES[drawing.precision]
        if drawing.checkpoint is None:
            parts = random_modules(drawing.family, drawing.device, dtype)
        else:
            names = FAMILIES[drawing.family].parts
            parts = {name: CLASSES[name].from_pretrained(drawing.checkpoint, subfolder=name) for name in names}
        scheduler = make_solver("ddim", sizes(drawing)["scheduler"])
        others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        (tokenizer,) = FAMILIES[drawing.family].tokenizers()
        self._pipe = diffusers.StableDiffusionPipeline(scheduler=scheduler, tokenizer=tokenizer, **parts, **others)
        self._pipe.to(drawing.device, dtype)
        self._pipe.set_progress_bar_config(disable=True)
        self.size = sum(parameter.numel() for parameter in self._pipe.unet.parameters())
        self._pipe.load_lora_weights(str(drawing.lora.parent), weight_name=drawing.lora.name, adapter_name="slider")
        self._drawing = drawing
        self._last: Image.Image | None = None

    def switch(self, multiplier: float) -> float:
        """Move the slider; returns the seconds that it took."""
        began = time.perf_counter()
        self._set(multiplier)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _set(self, multiplier: float) -> None:
        self._pipe.set_adapters(["slider"], [multiplier])

    def get_ready(self, count: int) -> None:
        """Nothing has to be laid out for the next pictures."""

    def steps(self, count: int) -> list[float]:
        """Draw pictures; returns the mean of each."""
        drawing, means = self._drawing, []
        for _ in range(count):
            self._last = self._pipe(
                PROMPT,
                negative_prompt=NEGATIVE,
                height=drawing.resolution,
                width=drawing.resolution,
                num_inference_steps=drawing.steps,
                guidance_scale=drawing.scale,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
            means.append(float(numpy.asarray(self._last).mean()))
        return means

    def pixels(self) -> list[int]:
        """The last picture."""
        return pixels_of(self._last)


class Fused(Loaded):
    """Diffusers' pipeline with the LoRA fused into the weights, which a move of the slider takes out and puts in."""

    _fused = False

    def _set(self, multiplier: float) -> None:
        if self._fused:
            self._pipe.unfuse_lora()
        # Not as lora_scale, which multiplies what an earlier fusion has left.
        self._pipe.set_adapters(["slider"], [multiplier])
        self._pipe.fuse_lora()
        self._fused = True
