"""Sample pictures while training: the network as it is at that moment, the same code as `gen_img`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from backend import events
from backend.config.training.samples import Samples
from backend.draws import draw_key
from backend.errors import UserError
from backend.families.model import Conditioning, Model
from backend.families.prompt_text import encode_prompts
from backend.generate.images import describe, save_png, to_pictures
from backend.generate.lora_tags import Dose
from backend.generate.notes import prompt_notes
from backend.generate.pipeline import Encode, decode, denoise, resolve, texts_of
from backend.generate.prompt_files import read_prompts
from backend.generate.prompts import Request
from backend.terminal import say, warn
from backend.train.outputs import Outputs
from backend.train.validation import in_evaluation


@dataclass(frozen=True)
class Sampling:
    """What to draw during training, and when.

    Attributes:
        requests: one for each prompt; all with a seed, the same at every moment, so that only the network changes.
        options: when to draw.
        outputs: where the pictures go.
        encode: prompts to conditioning, where the model has no text encoders any more.
    """

    requests: Sequence[Request]
    options: Samples
    outputs: Outputs
    encode: Encode | None = None

    @torch.no_grad()
    def encoded(self, model: Model, device: torch.device) -> "Sampling":
        """The same, with every prompt encoded, so that it needs no text encoder any more.

        Args:
            model: whose text encoders are used.
            device: where the conditioning will be wanted; it is kept on the CPU.
        """
        wishes = {(tuple(texts_of(request, [request.prompt])), request.chunks) for request in self.requests}
        known = {texts: encode_prompts(model, texts, chunks).to("cpu") for texts, chunks in wishes}

        def encode(texts: Sequence[str]) -> Conditioning:
            return known[tuple(texts)].to(device)

        return replace(self, encode=encode)

    def after_step(self, step: int) -> bool:
        """Whether to draw after so many steps; epochs win over steps."""
        every = self.options.sample_every_n_steps
        return bool(self.requests and every and not self.options.sample_every_n_epochs) and step % every == 0

    def after_epoch(self, epoch: int) -> bool:
        """Whether to draw after so many epochs."""
        every = self.options.sample_every_n_epochs
        return bool(self.requests and every) and epoch % every == 0

    @property
    def at_first(self) -> bool:
        """Whether to draw before the first step."""
        return bool(self.requests) and self.options.sample_at_first

    def draw(self, model: Model, network: nn.Module, accelerator: Accelerator, step: int, moment: str) -> None:
        """Draw all prompts with the live modules, write them and tell; modes and devices are as before afterwards.

        Args:
            model: with the network applied.
            network: its dropout rests meanwhile.
            accelerator: for the precision of training.
            step: steps done.
            moment: how the file names call it, such as `e000002`.
        """
        home = next(model.vae.parameters()).device
        model.vae.to(accelerator.device)
        try:
            with in_evaluation(model.unet, *model.text_encoders, network):
                indices = range(len(self.requests))
                drawn = sum(self._draw_one(model, accelerator, step, moment, index) for index in indices)
        finally:
            model.vae.to(home)
        say(f"Drew {drawn} sample pictures at step {step}")

    def _draw_one(self, model: Model, accelerator: Accelerator, step: int, moment: str, index: int) -> bool:
        """Draw one prompt; a picture that fails, for want of memory or disk say, costs a warning and not the run."""
        request = self.requests[index]
        known = {"encode": self.encode} if self.encode else {}
        try:
            with torch.no_grad(), accelerator.autocast():
                latents = denoise(model, request, [request.seed], **known)
            (picture,) = to_pictures(decode(model, latents))
            path = self.outputs.sample(moment, index, request.seed)
            network = Dose(Path(f"{self.outputs.name}.safetensors"), 1.0)
            save_png(picture, path, describe(request, model.source, [network]))
        except (UserError, RuntimeError, MemoryError, OSError, ArithmeticError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warn(f"sample picture {index + 1} at step {step} failed and is left out: {reason}")
            return False
        events.emit("sample", path=str(path), prompt=request.prompt, step=step, index=index, seed=request.seed)
        return True


def wanted(options: Samples) -> list[Request]:
    """The prompts as their file says them, before there is a model.

    Raises:
        UserError: the file cannot be read or a line of it is faulty.
    """
    if options.sample_prompts is None:
        return []
    return read_prompts(options.sample_prompts, Request("", sampler=options.sample_sampler), "sample_prompts")


def make_sampling(options: Samples, model: Model, outputs: Outputs, seed: int) -> Sampling:
    """Read the prompts file and settle every request: the model's own size, and a fixed seed where a line has none.

    Raises:
        UserError: the file cannot be read or a line of it is faulty.
    """
    settled = []
    requests = wanted(options)
    for note in prompt_notes(model, requests):
        warn(f"sample prompts: {note}")
    tags = dict.fromkeys(tag.written for request in requests for tag in request.loras)
    if tags:
        warn(f"sample prompts: {', '.join(tags)} cannot be applied while training, and is left out of the pictures")
    for index, request in enumerate(requests):
        own = draw_key(seed, "sample", index) % 2**32 if request.seed is None else request.seed
        settled.append(resolve(replace(request, seed=own), model))
    return Sampling(tuple(settled), options, outputs)
