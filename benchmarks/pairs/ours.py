"""Our side of the comparison: a run as `python -m backend train_network` makes it, step by step."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from backend.config.base import from_argv
from backend.config.train import TrainNetwork
from backend.train import setup
from backend.train.device import DTYPES
from backend.train.feed import MicroBatch, grouped
from backend.train.loop import Done, current_rates, follow, training_step
from backend.train.noise import draw_timesteps, training_noise
from benchmarks.pairs.models import DEMO, random_model
from benchmarks.pairs.settings import Settings


def command_line(settings: Settings) -> list[str]:
    """The words of a command line of train_network for these settings."""
    pictures = settings.folder / "pictures"
    data = settings.folder / "data.toml"
    data.write_text(
        f"[general]\nresolution = {settings.resolution}\nbatch_size = {settings.batch_size}\n[[datasets]]\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures}'\n",
        encoding="utf-8",
    )
    options = {
        "pretrained_model_name_or_path": settings.checkpoint or DEMO,
        "dataset_config": data,
        "output_dir": settings.folder / "output",
        "max_train_steps": settings.steps,
        "mixed_precision": settings.precision,
        "network_dim": settings.rank,
        "network_alpha": settings.rank,
        "learning_rate": 1e-4,
        "optimizer_type": "AdamW",
        "seed": 1,
        "max_data_loader_n_workers": 0,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--network_train_unet_only", "--cache_latents", "--overwrite"]
    words += ["--cache_text_encoder_outputs"] if settings.inputs == "given" else []
    words += ["--gradient_checkpointing"] if settings.checkpointing else []
    return [*words, *settings.extra]


class Ours:
    """A run that has been prepared.

    Attributes:
        size: numbers that are trained.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.checkpoint is None:
            dtype = DTYPES[settings.precision]
            setup.load_model = lambda *_, **__: random_model(settings.family, settings.device, dtype)
        self.run = setup.prepare(from_argv(TrainNetwork, command_line(settings)))
        self.size = sum(parameter.numel() for parameter in self.run.parameters)
        self._settings = settings
        self._progress = follow(self.run, 0)
        self._fed = self._batches()
        self._done = 0

    def _batches(self) -> Iterator[list[MicroBatch]]:
        run = self.run
        for epoch in range(run.epochs):
            yield from grouped(run.feed(run.batches_left(epoch * run.steps_per_epoch, epoch)), 1)

    def get_ready(self, count: int) -> None:
        """Nothing has to be laid out for the next steps."""

    def steps(self, count: int) -> list[Tensor]:
        """Do steps as `backend.train.loop.train` does them; returns their losses."""
        losses = []
        for _ in range(count):
            micro_batches = next(self._fed)
            loss = training_step(self.run, self._done, micro_batches)
            self._done += 1
            pictures = sum(len(batch.items) for batch, *_ in micro_batches)
            done = Done(self._done, 1, loss, current_rates(self.run), self.run.gradient_norm, pictures)
            self._progress.step(done)
            losses.append(loss)
        return losses

    @torch.no_grad()
    def hand_over(self, path: Path) -> None:
        """Write what the other side needs to do the same: the network's start, and each step's inputs and draws.

        It must be asked before the first step.
        """
        run, fed, given = self.run, self._batches(), []
        for step in range(self._settings.steps):
            ((batch, latents, _),) = next(fed)
            indices = range(len(batch.items))
            with run.accelerator.autocast():
                known = run.encode_captions([item.caption for item in batch.items])
            known = run.model.family.with_sizes(known, [item.sizes for item in batch.items])
            one = {
                "latents": latents,
                "noise": training_noise(run.config.noise, run.seed, step, indices, latents),
                "timesteps": draw_timesteps(run.seed, step, indices, run.objective.times.stop),
                "hidden": known.hidden,
                **({} if known.pooled is None else {"pooled": known.pooled, **known.extra}),
            }
            given.append({name: value.to("cpu") for name, value in one.items()})
        weights = {name: value.to("cpu") for name, value in run.network.state_dict().items()}
        torch.save({"given": given, "weights": weights}, path)

    def profile(self, count: int) -> str:
        """The operators that take most of a few steps."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        with torch.profiler.profile(activities=kinds) as found:
            self.steps(count)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        return found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
