"""The hot pipeline: a model that stays loaded, LoRA files folded into its weights, and denoising.

`denoise` is also what the trainer samples with, on live modules.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from backend.errors import UserError
from backend.families.base import LoadOptions, load_model
from backend.families.model import Conditioning, Model
from backend.families.prompt_text import encode_prompts
from backend.generate.convolution import as_matrix_products
from backend.generate.images import numbered, to_pictures
from backend.generate.lora_tags import Dose
from backend.generate.prompts import Request
from backend.generate.samplers import make_solver
from backend.lora.file import LoraFile, read_lora
from backend.lora.fit import fitted
from backend.lora.layer import Layer
from backend.lora.source import stamp_of
from backend.networks.modules import FoundModule, find_places, shapes_of
from backend.terminal import warn

TEXT_PREFIX = "lora_te"  # of the keys of text encoders
OnStep = Callable[[int, int], None]
Encode = Callable[[Sequence[str]], Conditioning]


def resolve(request: Request, model: Model) -> Request:
    """The request with nothing left open: the model's own size where none is given, a random seed where none is given.

    Raises:
        UserError: the size does not fit the model's latent grid.
    """
    grid = model.vae_scale_factor
    request = replace(
        request,
        width=request.width or model.resolution,
        height=request.height or model.resolution,
        seed=random.SystemRandom().randrange(2**32) if request.seed is None else request.seed,
    )
    for field, value in (("width", request.width), ("height", request.height)):
        if value % grid:
            near = max(grid, round(value / grid) * grid)
            raise UserError(f"{value} is not a multiple of {grid}; take {near}", field=field)
    return request


def start_noise(request: Request, model: Model, generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise [B, C, h, w], each picture's from its own CPU generator, so that it depends on its seed alone."""
    grid = model.vae_scale_factor
    shape = (1, model.latent_channels, request.height // grid, request.width // grid)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def texts_of(request: Request, prompts: Sequence[str]) -> list[str]:
    """What is encoded for pictures of these prompts; with guidance, as many negative prompts come first."""
    return [request.negative] * len(prompts) * (request.scale != 1) + list(prompts)


def condition(model: Model, request: Request, prompts: Sequence[str], encode: Encode | None = None) -> Conditioning:
    """Conditioning of one whole picture for each prompt; with guidance, as many unconditional ones come first."""
    texts = texts_of(request, prompts)
    conditioning = encode(texts) if encode else encode_prompts(model, texts, request.chunks)
    size = (request.height, request.width)
    return model.family.with_sizes(conditioning, [(*size, 0, 0, *size)] * len(texts))


@torch.no_grad()
def denoise(
    model: Model,
    request: Request,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    prompts: Sequence[str] | None = None,
    encode: Encode | None = None,
) -> Tensor:
    """Latents [B, C, h, w] in float32, one picture for each seed.

    Classifier-free guidance: uncond + scale * (cond - uncond), arXiv 2207.12598, both halves in one batch.

    Args:
        model: its modules are used as they are, in the mode and precision they are in.
        request: resolved; its own seed and count are not looked at.
        seeds: one for each picture.
        on_step: called with steps done and steps in all.
        prompts: one for each picture, in place of the request's.
        encode: prompts -> conditioning, in place of the model's text encoders.
    """
    parameter = next(model.unet.parameters())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    conditioning = condition(model, request, prompts or [request.prompt] * len(seeds), encode)
    solver = make_solver(request.sampler, model.scheduler)
    solver.set_timesteps(request.steps, device=parameter.device)
    takes_generator = "generator" in inspect.signature(solver.step).parameters
    options = {"generator": generators} if takes_generator else {}
    # The sample itself stays float32: half precision would round away the small steps at the end.
    sample = start_noise(request, model, generators).to(parameter.device) * solver.init_noise_sigma
    for done, timestep in enumerate(solver.timesteps, start=1):
        seen = solver.scale_model_input(sample, timestep).to(parameter.dtype)
        if request.scale != 1:
            seen = torch.cat([seen, seen])
        times = timestep.expand(len(seen))
        predicted = model.family.predict(model, seen, times, conditioning).float()
        if request.scale != 1:
            negative, positive = predicted.chunk(2)
            predicted = negative + request.scale * (positive - negative)
        sample = solver.step(predicted, timestep, sample, **options).prev_sample
        if on_step:
            on_step(done, len(solver.timesteps))
    return sample


@torch.no_grad()
def decode(model: Model, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1], float32; one picture at a time, as the VAE takes most memory of all."""
    return torch.cat([model.family.decode_latents(model, one).float() for one in latents.split(1)])


@dataclass(frozen=True)
class FoldedWeight:
    """A weight of the model that a LoRA has touched, and what it was before."""

    weight: nn.Parameter
    original: Tensor

    def set(self, layers: Sequence[tuple[Layer, float]]) -> None:
        """weight = original + sum(multiplier * delta), summed in float32; with no layers the original, bit for bit."""
        if not layers:
            self.weight.copy_(self.original)
            return
        total = self.original.float()
        for layer, multiplier in layers:
            total = total + (layer.delta() * multiplier).view_as(self.original)
        self.weight.copy_(total)


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Freeze, move and cast a module, with `nn.Module.to`: the one of diffusers warns of an empty list of modules.

    Channels come last in memory, as convolutions compute so anyway and would turn their inputs around at each call.
    """
    placed = nn.Module.to(module, device, dtype, memory_format=torch.channels_last).requires_grad_(False)
    as_matrix_products(placed)
    return placed


class GenerationModel:
    """A loaded model that makes pictures; LoRA files can be put in, dosed and taken out between them.

    Args:
        model: moved to `device` and put into evaluation mode.
        device: where it runs.
        dtype: precision of U-Net and text encoders. The VAE stays in float32: in half precision it can overflow.
    """

    def __init__(self, model: Model, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.device = torch.device(device)
        for module in (model.unet, *model.text_encoders):
            place(module, self.device, dtype).eval()
        place(model.vae, self.device, torch.float32).eval()
        self.loras: tuple[Dose, ...] = ()
        self.merged: tuple[Dose, ...] = ()
        self._touched: dict[str, FoldedWeight] = {}
        # What is in the weights now; it keeps the files alive, so that none can be taken for another.
        self._acting: list[tuple[LoraFile, Dose]] = []
        self._files: dict[tuple[object, ...], LoraFile] = {}

    @cached_property
    def modules(self) -> dict[str, FoundModule]:
        """Where a LoRA can sit, by its keys in a file."""
        return find_places(self.model.text_encoders, self.model.unet)

    @property
    def lora_notes(self) -> list[str]:
        """What was left out of the LoRA files in use, one line each."""
        return list(dict.fromkeys(note for file in self._files.values() for note in file.notes))

    @torch.no_grad()
    def set_loras(self, loras: Sequence[Dose | tuple[Path | str, float]], allow_unmatched: bool = False) -> None:
        """Replace the LoRA files in use; files already read and weights already right are left as they are.

        The weights are computed from the kept originals, so that no sequence of changes drifts.

        Args:
            loras: files, or folders of PEFT adapters, each with its multiplier.
            allow_unmatched: leave out layers that match nothing, with a warning, instead of refusing the file.

        Raises:
            UserError: a file cannot be read or holds keys that the model has no place for.
        """
        doses = [lora if isinstance(lora, Dose) else Dose(Path(lora[0]), float(lora[1])) for lora in loras]
        files = [(self._read(dose.path, allow_unmatched), dose) for dose in doses]
        self._files = {key: file for key, file in self._files.items() if any(file is used for used, _ in files)}
        self.loras = tuple(doses)
        acting = [(file, dose) for file, dose in files if dose.unet or dose.text]
        if [(id(file), dose) for file, dose in acting] == [(id(file), dose) for file, dose in self._acting]:
            return
        self._acting = acting
        layers: dict[str, list[tuple[Layer, float]]] = {}
        for file, dose in acting:
            for key, layer in file.layers.items():
                apart = dose.text is not None and key.startswith(TEXT_PREFIX)
                layers.setdefault(key, []).append((layer, dose.text if apart else dose.unet))
        for key in self._touched.keys() | layers.keys():
            if key not in self._touched:
                weight = self.modules[key].module.weight
                self._touched[key] = FoldedWeight(weight, weight.detach().clone())
            self._touched[key].set(layers.get(key, ()))

    def merge_loras(self) -> None:
        """Keep the LoRA files in use in the weights for good: what is set afterwards comes on top of them.

        Their originals are given up, and with them the memory that these take.
        """
        self.merged = (*self.merged, *self.loras)
        self.loras, self._acting, self._touched = (), [], {}

    def _read(self, path: Path, allow_unmatched: bool) -> LoraFile:
        key = (allow_unmatched, *stamp_of(path))
        if key not in self._files:
            file = read_lora(path, allow_unmatched)
            shapes, family = shapes_of(self.modules), self.model.family.name
            layers, notes = fitted(file, shapes, str(path), family, allow_unmatched)
            notes = [f"{path.name}: {note}" for note in notes]
            for note in notes:
                warn(note)
            layers = {name: self._placed(layer) for name, layer in layers.items()}
            self._files[key] = replace(file, layers=layers, notes=tuple(notes))
        return self._files[key]

    def _placed(self, layer: Layer) -> Layer:
        # Copies, as the tensors may be mapped from the file, which someone may overwrite while it is in use.
        factors = {name: factor.to(self.device, torch.float32, copy=True) for name, factor in layer.factors.items()}
        return type(layer).of(factors, layer.alpha)

    def pictures(
        self, request: Request, batch_size: int = 1, on_step: OnStep | None = None
    ) -> Iterator[tuple[Request, Image.Image]]:
        """Each picture of the request as it gets ready, with the request that makes it alone (its seed, count 1).

        Args:
            request: what to draw.
            batch_size: pictures denoised together.
            on_step: called with steps done and steps in all, over all pictures.
        """
        request = resolve(request, self.model)
        batches = -(-request.count // batch_size)
        for batch in range(batches):
            indices = range(batch * batch_size, min(request.count, (batch + 1) * batch_size))

            def report(done: int, total: int, batch: int = batch) -> None:
                if on_step:
                    on_step(batch * total + done, batches * total)

            seeds = [request.seed + index for index in indices]
            latents = denoise(self.model, request, seeds, report)
            for index, picture in zip(indices, to_pictures(decode(self.model, latents)), strict=True):
                yield numbered(request, index), picture

    def generate(self, request: Request, batch_size: int = 1, on_step: OnStep | None = None) -> list[Image.Image]:
        """The pictures of a request, in the order of their seeds."""
        return [picture for _, picture in self.pictures(request, batch_size, on_step)]


def load_generation_model(
    source: str,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: LoadOptions | None = None,
) -> GenerationModel:
    """Load a model (see `families.load_model`) and make it ready to draw."""
    return GenerationModel(load_model(source, revision, options, dtype=None), device, dtype)
