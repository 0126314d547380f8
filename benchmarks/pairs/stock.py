"""The yardstick: diffusers and PEFT as the library's documented example of LoRA training puts them together.

That is examples/text_to_image/train_text_to_image_lora.py (for SDXL train_text_to_image_lora_sdxl.py) of diffusers
0.42: its loop, written anew and short, with its defaults. It differs from it in what is trained, which is what we train
(the example adapts attention alone), and, where inputs are given, in what is not done in the step: then VAE and text
encoders are loaded as in the example, and dropped before the first step, as ours are.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from backend.families.base import FAMILIES
from backend.networks.modules import find_modules
from benchmarks.pairs.models import random_modules
from benchmarks.pairs.settings import Settings

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


class Pictures(torch.utils.data.Dataset):
    """Pixels [3, H, W] in [-1, 1] and token ids of a folder's pictures and their captions."""

    def __init__(self, folder: Path, tokenizers: Sequence[Any]) -> None:
        self._paths = sorted(folder.glob("*.png"))
        self._tokenizers = tokenizers

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path = self._paths[index]
        pixels = torch.from_numpy(numpy.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        caption = path.with_suffix(".txt").read_text(encoding="utf-8")
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        ids = [tokenizer(caption, **options).input_ids[0] for tokenizer in self._tokenizers]
        return {"pixels": pixels.float() / 127.5 - 1, "ids": torch.stack(ids)}


class Stock:
    """The example's models, optimizer and loop.

    Attributes:
        size: numbers that are trained.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._dtype = settings, DTYPES[settings.precision]
        self._accelerator = Accelerator(mixed_precision=settings.precision)
        self._documented = settings.inputs == "documented"
        modules = self._modules()
        unet = modules.pop("unet")
        for module in (unet, *modules.values()):
            module.requires_grad_(False)
            module.to(self._accelerator.device, dtype=self._dtype)
        if settings.family == "sdxl" and self._documented:
            modules["vae"].to(dtype=torch.float32)  # as the example has it, since half precision overflows in it
        self._frozen = modules if self._documented else {}
        del modules, module
        self._tokenizers = FAMILIES[settings.family].tokenizers()
        self._places = {name: found.target.path for name, found in find_modules(None, unet).items()}
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=TARGETS
        )
        unet.add_adapter(config)
        if settings.precision == "fp16" or not self._documented:
            # The example leaves bf16 weights as they are; with given inputs both sides train float32 weights.
            cast_training_params(unet, dtype=torch.float32)
        if settings.checkpointing:
            unet.enable_gradient_checkpointing()
        self._plain = unet
        self._trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.size = sum(parameter.numel() for parameter in self._trained)
        optimizer = torch.optim.AdamW(self._trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        schedule = get_scheduler("constant", optimizer, num_warmup_steps=0, num_training_steps=settings.steps)
        self._unet, self._optimizer, self._schedule = self._accelerator.prepare(unet, optimizer, schedule)
        self._unet.train()
        self._noising = DDPMScheduler(**BETAS)
        self._given: list[Mapping[str, Tensor]] = []
        self._ready: list[Mapping[str, Tensor]] = []
        self._pixels = self._epochs() if self._documented else None

    def _modules(self) -> dict[str, nn.Module]:
        settings = self._settings
        if settings.checkpoint is None:
            return random_modules(settings.family, settings.device, self._dtype)
        names = FAMILIES[settings.family].parts
        return {name: CLASSES[name].from_pretrained(settings.checkpoint, subfolder=name) for name in names}

    def _epochs(self) -> Iterator[Mapping[str, Tensor]]:
        pictures = Pictures(self._settings.folder / "pictures", self._tokenizers)
        loader = torch.utils.data.DataLoader(pictures, self._settings.batch_size, shuffle=True)
        loader = self._accelerator.prepare(loader)
        while True:
            yield from loader

    @torch.no_grad()
    def take_over(self, path: Path) -> None:
        """Start from the weights of the other side and take its inputs and draws; see `Ours.hand_over`."""
        found = torch.load(path)
        names = [name for name in self._places if f"{name}.lora_down.weight" in found["weights"]]
        for name in names:
            layer = self._plain.get_submodule(self._places[name])
            for own, side in ((layer.lora_A, "down"), (layer.lora_B, "up")):
                weight = own["default"].weight
                weight.copy_(found["weights"][f"{name}.lora_{side}.weight"].view_as(weight))
        self._given = found["given"]

    def get_ready(self, count: int) -> None:
        """Lay the inputs of the next steps out on the device."""
        if not self._documented:
            now, self._given = self._given[:count], self._given[count:]
            device = self._accelerator.device
            self._ready = [{name: value.to(device) for name, value in one.items()} for one in now]

    def steps(self, count: int) -> list[float]:
        """Do steps as the example does; returns their losses."""
        return [self._step() for _ in range(count)]

    def _step(self) -> float:
        with self._accelerator.accumulate(self._unet):
            given = self._encoded() if self._documented else self._ready.pop(0)
            latents = given["latents"]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
            # Drawn in any case, as the example draws; then the other side's take their place, for the same losses.
            noise, timesteps = given.get("noise", noise), given.get("timesteps", timesteps)
            noisy = self._noising.add_noise(latents, noise, timesteps)
            added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if "pooled" in given else None
            hidden = given["hidden"]
            predicted = self._unet(noisy, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]
            loss = mse_loss(predicted.float(), noise.float(), reduction="mean")
            average = self._accelerator.gather(loss.repeat(len(latents))).mean()
            told = average.item()
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
        return told

    def _encoded(self) -> dict[str, Tensor]:
        """A batch's latents and conditioning, computed now."""
        batch, vae = next(self._pixels), self._frozen["vae"]
        latents = vae.encode(batch["pixels"].to(dtype=vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
        found = {"latents": latents.to(self._dtype)}
        if self._settings.family != "sdxl":
            return found | {"hidden": self._frozen["text_encoder"](batch["ids"][:, 0], return_dict=False)[0]}
        encoders = [self._frozen[name] for name in ("text_encoder", "text_encoder_2")]
        states = [encoder(batch["ids"][:, index], output_hidden_states=True) for index, encoder in enumerate(encoders)]
        edge = float(self._settings.resolution)
        sizes = torch.tensor([[edge, edge, 0, 0, edge, edge]] * len(latents), device=latents.device)
        return found | {
            "hidden": torch.cat([state.hidden_states[-2] for state in states], dim=-1),
            "pooled": states[1].text_embeds,
            "time_ids": sizes.to(self._dtype),
        }
