"""DyLoRA: are the rows before the drawn rank trained along, or frozen as the paper's second variant has it?

    python -m benchmarks.dylora_rows [--steps 400] [--rank 16] [--unit 4]

Trains the demo dataset on the demo model with either variant and the same draws, cuts both to every rank, and prints
the mean loss on the training pictures over noise and time steps that training has not seen, beside plain LoRAs that
were trained at that rank alone. Lower is better; 0 steps' loss is that of the model without a network.
"""

import argparse
import tempfile

import torch
from torch import Tensor, nn

from backend.config.base import read_toml, resolve
from backend.config.train import TrainNetwork
from backend.train.loop import training_step
from backend.train.loss import per_sample, squared_error
from backend.train.noise import draw_noise, draw_timesteps
from backend.train.setup import Run, prepare

PRESET = "presets/train_network/demo.toml"
SEED = 4711
ROUNDS = 12


def make_run(steps: int, rank: int, **options: object) -> Run:
    """A prepared run of the demo preset without samples."""
    preset = read_toml(TrainNetwork, PRESET)
    for name in ("sample_prompts", "sample_every_n_epochs", "save_every_n_epochs"):
        preset.pop(name, None)
    changes = {"output_dir": tempfile.mkdtemp(), "max_train_steps": steps, "network_dim": rank, "network_alpha": rank}
    return prepare(resolve(TrainNetwork, preset, changes | options))


def freeze_earlier_rows(network: nn.Module, unit: int) -> None:
    """Let only the last `unit` rows of the drawn rank have gradients."""
    for adapter in network.adapters():
        for weight, axis in ((adapter.lora_down.weight, 0), (adapter.lora_up.weight, 1)):
            weight.register_hook(lambda grad, adapter=adapter, axis=axis: _last_rows(grad, adapter, axis, unit))


def _last_rows(grad: Tensor, adapter: nn.Module, axis: int, unit: int) -> Tensor:
    rows = adapter.rows or adapter.lora_dim
    mask = torch.zeros(adapter.lora_dim, dtype=grad.dtype, device=grad.device)
    mask[rows - unit : rows] = 1
    return grad * mask.view([-1 if dimension == axis else 1 for dimension in range(grad.dim())])


def train_all(run: Run) -> None:
    """All steps of the run."""
    step = epoch = 0
    while step < run.total_steps:
        for pair in run.feed(run.training_set.epoch_batches(run.seed, epoch)):
            training_step(run, step, [pair])
            step += 1
            if step == run.total_steps:
                return
        epoch += 1


@torch.no_grad()
def held_out_loss(run: Run) -> float:
    """Mean loss over the pictures of one epoch with draws of another seed."""
    run.network.eval()
    losses = []
    for number in range(ROUNDS):
        for batch, latents, _ in run.feed(run.training_set.epoch_batches(run.seed, 0)):
            indices = range(len(batch.items))
            noise = draw_noise(SEED, number, indices, latents.shape[1:])
            timesteps = draw_timesteps(SEED, number, indices, len(run.diffusion.alphas_cumprod))
            noisy = run.diffusion.noisy(latents, noise, timesteps)
            conditioning = run.encode_captions([item.caption for item in batch.items])
            predicted = run.model.family.predict(run.model, noisy, timesteps, conditioning)
            kept = torch.tensor([not item.picture.is_reg for item in batch.items])
            losses += per_sample(squared_error(predicted, noise))[kept].tolist()
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--unit", type=int, default=4)
    options = parser.parse_args()
    ranks = range(options.unit, options.rank + 1, options.unit)
    untrained = make_run(options.steps, options.rank)
    print(f"without a network {held_out_loss(untrained):.5f}", flush=True)
    for name in ("trained along", "frozen"):
        dylora = {"network_module": "networks.dylora", "network_args": [f"unit={options.unit}"]}
        run = make_run(options.steps, options.rank, **dylora)
        if name == "frozen":
            freeze_earlier_rows(run.network, options.unit)
        train_all(run)
        for rank in ranks:
            run.network.set_rank(rank)
            print(f"earlier rows {name}, rank {rank}: {held_out_loss(run):.5f}", flush=True)
    for rank in ranks:
        run = make_run(options.steps, rank)
        train_all(run)
        print(f"plain LoRA, rank {rank}: {held_out_loss(run):.5f}", flush=True)


if __name__ == "__main__":
    main()
