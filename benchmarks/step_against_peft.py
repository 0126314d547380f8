"""The training step with our LoRA against the same step with PEFT's layers, paired in one run.

    python -m benchmarks.step_against_peft [--full] [--pairs 12] [--latent 32] [--checkpointing]

Rank 16 LoRA-LierLa on the U-Net of Stable Diffusion 1, random weights, equal LoRA weights on both sides. The two take
turns, and the ratio of each pair counts, so that a busy machine disturbs both alike. Prints the median ratio of wall
time and of processor time (one thread: OMP_NUM_THREADS=1 makes the latter exact), and of the losses' difference.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig
from torch import Tensor, nn

from backend.families.build import random_model
from backend.networks.lora import create_network
from backend.networks.modules import find_modules

RANK = 16
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


def make_step(unet: nn.Module, parameters: list[nn.Parameter], latent: int, width: int) -> Callable[[int], float]:
    """A whole step: forward, backward, clipping, AdamW."""
    device = next(unet.parameters()).device
    optimizer = torch.optim.AdamW(parameters, 1e-4)

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        noisy, noise = (torch.randn(1, 4, latent, latent, generator=generator).to(device) for _ in range(2))
        hidden = torch.randn(1, 77, width, generator=generator).to(device)
        predicted = unet(noisy, torch.tensor([number * 37 % 1000], device=device), hidden).sample
        loss = (predicted - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def with_ours(unet: nn.Module) -> list[nn.Parameter]:
    """Put our LoRA on the U-Net."""
    generator = torch.Generator().manual_seed(1)
    network = create_network(1.0, RANK, RANK, None, None, unet, generator=generator)
    network.apply_to(None, unet, apply_text_encoder=False)
    network.to(next(unet.parameters()).device).train()
    return list(network.parameters())


def with_pefts(unet: nn.Module, ours: list[Tensor]) -> list[nn.Parameter]:
    """Put PEFT's LoRA on the U-Net, with the same weights."""
    paths = [one.target.path for one in find_modules(None, unet).values() if not one.target.conv_only]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    parameters = []
    for path in paths:
        layer = unet.get_submodule(path)
        parameters += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    with torch.no_grad():
        for theirs, own in zip(parameters, ours, strict=True):
            theirs.copy_(own)
    return parameters


def timed(step: Callable[[int], float], number: int) -> tuple[float, float, float]:
    """Wall seconds, processor seconds, loss."""
    wall, processor = time.perf_counter(), time.process_time()
    loss = step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="SD1.5's sizes instead of the demo model's")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--latent", type=int, default=32, help="edge of the latents")
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unets = [random_model(0, small=not options.full).unet.to(device).requires_grad_(False).train() for _ in range(2)]
    if options.checkpointing:
        for unet in unets:
            unet.enable_gradient_checkpointing()
    ours = with_ours(unets[0])
    theirs = with_pefts(unets[1], [parameter.detach().clone() for parameter in ours])
    width = unets[0].config.cross_attention_dim
    steps = [make_step(unet, own, options.latent, width) for unet, own in zip(unets, (ours, theirs), strict=True)]
    for step in steps:
        step(0)
    walls, processors, losses = [], [], []
    for number in range(1, options.pairs + 1):
        # Who goes first changes, as the second of a pair finds warmer caches.
        order = (0, 1) if number % 2 else (1, 0)
        found = {which: timed(steps[which], number) for which in order}
        walls.append(found[0][0] / found[1][0])
        processors.append(found[0][1] / found[1][1])
        losses.append(abs(found[0][2] - found[1][2]) / found[1][2])
        print(f"pair {number}: ours {found[0][0]:.3f} s, PEFT {found[1][0]:.3f} s, ratio {walls[-1]:.3f}", flush=True)
    print(
        f"median ratio of wall time {statistics.median(walls):.3f}, of processor time "
        f"{statistics.median(processors):.3f}; losses differ by at most {max(losses):.1e}"
    )


if __name__ == "__main__":
    main()
