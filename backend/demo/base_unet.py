"""The demo model's U-Net and text encoder, trained together from scratch on latents of the monsters."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from backend.demo.base_vae import LATENT_SCALE, one_cycle
from backend.draws import draw_key

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
MIN_SNR_GAMMA = 5.0
EMPTY_CAPTION_RATE = 0.1


def build_unet(seed: int) -> UNet2DConditionModel:
    """SD1's U-Net with widths (32, 64, 96, 128), 8 heads and a context of 64: 6.9 M parameters."""
    torch.manual_seed(draw_key(seed, "demo unet"))
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def build_text_encoder(seed: int) -> CLIPTextModel:
    """CLIP's text transformer with width 64, 2 layers and the full vocabulary: 3.3 M parameters."""
    torch.manual_seed(draw_key(seed, "demo text encoder"))
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=77,
        projection_dim=64,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModel(config)


@dataclass
class TrainingPictures:
    """What a step draws from: scaled latents [N, 4, 8, 8], token ids [N, C, 77] (C captions each), ids [77] of ""."""

    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor


class Average:
    """An exponential moving average of parameters that warms up: decay min(limit, (1 + n) / (10 + n))."""

    def __init__(self, parameters: Iterable[nn.Parameter], limit: float = 0.9995) -> None:
        self.live = list(parameters)
        self.shadow = [p.detach().clone() for p in self.live]
        self.limit = limit

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the live parameters; `step` counts from 0."""
        decay = min(self.limit, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges live and averaged values; a second call puts them back."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            kept = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(kept)


class BaseTrainer:
    """One resumable run over U-Net and text encoder.

    The step is a fixed sequence of kernels on buffers filled from the CPU, so that on a GPU it is captured once as a
    CUDA graph: the network is so small that launching kernels one by one would take most of the time.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        data: TrainingPictures,
        seed: int,
        peak_rate: float = 1e-3,
    ) -> None:
        self.unet, self.text_encoder, self.data, self.seed, self.peak_rate = unet, text_encoder, data, seed, peak_rate
        self.device = data.latents.device
        self.parameters = [*unet.parameters(), *text_encoder.parameters()]
        self.average = Average(self.parameters)
        on_gpu = self.device.type == "cuda"
        self.rate = torch.tensor(peak_rate, device=self.device) if on_gpu else peak_rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(unet.parameters()), "weight_decay": 0.01, "lr": self.rate},
                {"params": list(text_encoder.parameters()), "weight_decay": 0.0, "lr": self.rate},
            ],
            betas=(0.9, 0.99),
            capturable=on_gpu,
        )
        self.alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(self.device)
        self.step = 0
        self._replay: Callable[[], None] | None = None

    def run(
        self, until: int, total: int, batch_size: int, report: Callable[[int, float], None], graph: bool = False
    ) -> None:
        """Trains up to step `until` of a schedule of `total` steps."""
        if self._replay is None:
            self._make_buffers(batch_size)
        while self.step < until:
            self._fill(batch_size)
            self._set_rate(one_cycle(self.step, total, self.peak_rate))
            if graph and self._replay is None:
                self._capture()
            (self._replay or self._compute)()
            self.average.update(self.step)
            self.step += 1
            if self.step % 200 == 0 or self.step == until:
                report(self.step, float(self.loss))

    def state(self) -> dict:
        """What `load_state` needs to go on as if nothing had happened."""
        return {
            "step": self.step,
            "parameters": [p.detach().cpu() for p in self.parameters],
            "average": [p.cpu() for p in self.average.shadow],
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Takes up a `state()`."""
        self.step = state["step"]
        for live, shadow, p, a in zip(
            self.parameters, self.average.shadow, state["parameters"], state["average"], strict=True
        ):
            live.copy_(p)
            shadow.copy_(a)
        self.optimizer.load_state_dict(state["optimizer"])

    def _make_buffers(self, batch_size: int) -> None:
        shape = (batch_size, *self.data.latents.shape[1:])
        self.latents = torch.zeros(shape, device=self.device)
        self.noise = torch.zeros(shape, device=self.device)
        self.timesteps = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        self.ids = torch.zeros(batch_size, 77, dtype=torch.long, device=self.device)
        self.loss = torch.zeros((), device=self.device)

    def _fill(self, batch_size: int) -> None:
        """Draws a batch: every draw is a function of the seed and the step."""
        draw = torch.Generator().manual_seed(draw_key(self.seed, "base batch", self.step))
        chosen = torch.randint(len(self.data.latents), (batch_size,), generator=draw).to(self.device)
        wording = torch.randint(self.data.ids.shape[1], (batch_size,), generator=draw).to(self.device)
        empty = (torch.rand(batch_size, generator=draw) < EMPTY_CAPTION_RATE).to(self.device)
        self.latents.copy_(self.data.latents[chosen])
        self.ids.copy_(torch.where(empty[:, None], self.data.empty, self.data.ids[chosen, wording]))
        self.timesteps.copy_(torch.randint(1000, (batch_size,), generator=draw))
        self.noise.copy_(torch.randn(self.noise.shape, generator=draw))

    def _set_rate(self, rate: float) -> None:
        if isinstance(self.rate, torch.Tensor):
            self.rate.fill_(rate)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _compute(self) -> None:
        """Noise, predict, weigh by min-SNR (Hang et al. 2023, arXiv:2303.09556), step."""
        alpha = self.alphas[self.timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * self.noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            context = self.text_encoder(self.ids).last_hidden_state
            output = self.unet(noisy, self.timesteps, context).sample
        snr = alpha.flatten() / (1 - alpha.flatten())
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        loss = (weight * (output.float() - self.noise).square().mean((1, 2, 3))).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def _capture(self) -> None:
        """Warms up on a side stream, as CUDA graphs ask for, and records one step.

        The warm-up steps are undone, so that a run is the same with and without the graph.
        """
        before = [p.detach().clone() for p in self.parameters]
        kept = [value.clone() for value in self._optimizer_values()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._compute()
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in self.parameters], before)
            for index, value in enumerate(self._optimizer_values()):
                value.copy_(kept[index]) if kept else value.zero_()
        self._replay = graph.replay

    def _optimizer_values(self) -> list[torch.Tensor]:
        return [value for values in self.optimizer.state.values() for value in values.values()]


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, contexts: tuple[torch.Tensor, torch.Tensor], scale: float, seed: int, steps: int = 20
) -> torch.Tensor:
    """DDIM samples with classifier-free guidance.

    Args:
        unet: in evaluation mode.
        contexts: encoded captions [B, 77, 64] and the encoded empty caption [1, 77, 64].
        scale: guidance scale.
        seed: of the starting noise.
        steps: DDIM steps.

    Returns:
        Latents as the VAE decodes them, [B, 4, 8, 8].
    """
    wanted, empty = contexts
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps, device=wanted.device)
    draw = torch.Generator().manual_seed(draw_key(seed, "base sample"))
    x = torch.randn(len(wanted), 4, 8, 8, generator=draw).to(wanted.device) * scheduler.init_noise_sigma
    both = torch.cat([empty.expand_as(wanted), wanted])
    for t in scheduler.timesteps:
        unconditional, conditional = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        x = scheduler.step(unconditional + scale * (conditional - unconditional), t, x).prev_sample
    return x / LATENT_SCALE


def parameter_count(*modules: nn.Module) -> int:
    """Number of parameters of all modules together."""
    return sum(math.prod(p.shape) for module in modules for p in module.parameters())
