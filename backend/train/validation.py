"""The loss on pictures that are held out of training: what tells learning from learning by heart."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from backend.config.training.validation import Validation as ValidationOptions
from backend.data.batches import Batch
from backend.data.dataset import TrainingSet
from backend.data.split import Split
from backend.draws import draw_key
from backend.errors import UserError
from backend.families.model import Model
from backend.train.feed import Feed
from backend.train.loss import element_error, masked, per_sample
from backend.train.noise import Diffusion
from backend.train.text import CaptionEncoder, KnownCaptions

# Where on the way to pure noise the loss is taken, in thousandths of the model's time steps.
MOMENTS = (200, 400, 600, 800)
THOUSAND = 1000


@dataclass(frozen=True)
class Held:
    """The loss on the held out pictures at one point of training.

    Attributes:
        loss: mean over pictures and time steps.
        by_timestep: mean over pictures, by time step.
    """

    loss: float
    by_timestep: dict[int, float]


@dataclass(frozen=True)
class Validation:
    """What is looked at, and when.

    Attributes:
        batches: of held out pictures; none where nothing is held out.
        options: when to look.
        seed: of the noise.
        feed: batches to latents, apart from that of training, which may be under way.
        encode: captions to conditioning; remembers nothing, so that it leaves no trace in training.
    """

    batches: tuple[Batch, ...]
    options: ValidationOptions
    seed: int
    feed: Feed
    encode: CaptionEncoder | KnownCaptions

    def after_step(self, step: int) -> bool:
        """Whether to look after so many steps."""
        every = self.options.validate_every_n_steps
        return bool(self.batches and every) and step % every == 0

    def after_epoch(self, epoch: int, step: int, final: bool) -> bool:
        """Whether to look after so many epochs, which end with step `step`; not if it was done for that step."""
        if not self.batches or self.after_step(step):
            return False
        every = self.options.validate_every_n_epochs
        if every is None and self.options.validate_every_n_steps is None:
            every = 1
        return final or bool(every) and epoch % every == 0

    @torch.no_grad()
    def loss(self, model: Model, network: nn.Module, diffusion: Diffusion, accelerator: Accelerator) -> Held:
        """The mean squared error at fixed times and with fixed noise, of the network at rest; nothing is changed by it.

        No dropout, no rank that is drawn, no weight of a sample: what remains is what the network knows. It acts on the
        pictures of a dataset as strongly as it is trained on them.

        Args:
            model: with the network applied.
            network: in evaluation meanwhile, so that a DyLoRA has its full rank.
            diffusion: the noising process of training.
            accelerator: for the device and the precision of training.
        """
        times = moments(len(diffusion.alphas_cumprod))
        found: dict[int, list[Tensor]] = defaultdict(list)
        with in_evaluation(model.unet, *model.text_encoders, network):
            for batch, latents, masks in self.feed(self.batches):
                indices = [item.index_in_epoch for item in batch.items]
                network.set_multiplier(batch.multiplier)
                with accelerator.autocast():
                    conditioning = self.encode([item.caption for item in batch.items])
                    conditioning = model.family.with_sizes(conditioning, [item.sizes for item in batch.items])
                for number, time in enumerate(times):
                    noise = fixed_noise(self.seed, indices, number, latents.shape[1:]).to(latents.device)
                    at = torch.full((len(indices),), time)
                    noisy, target = diffusion.noisy(latents, noise, at), diffusion.target(latents, noise, at)
                    with accelerator.autocast():
                        predicted = model.family.predict(model, noisy, at.to(latents.device), conditioning)
                    found[time].append(per_sample(masked(element_error(predicted, target), masks)))
        network.set_multiplier(1.0)
        by_timestep = {time: float(torch.cat(losses).mean()) for time, losses in found.items()}
        return Held(sum(by_timestep.values()) / len(by_timestep), by_timestep)


def moments(count: int) -> tuple[int, ...]:
    """The time steps of `MOMENTS` in a schedule of `count`."""
    return tuple(moment * count // THOUSAND for moment in MOMENTS)


def fixed_noise(seed: int, indices: Sequence[int], moment: int, shape: Sequence[int]) -> Tensor:
    """Unit normal noise [B, *shape] on the CPU, the same every time, for the held out pictures `indices`."""
    generators = [torch.Generator().manual_seed(draw_key(seed, "validation noise", index, moment)) for index in indices]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


@contextmanager
def in_evaluation(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules are in evaluation mode; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.train(mode)


def split_of(options: ValidationOptions, seed: int) -> Split:
    """The run's own split: which pictures are held out hangs on `validation_seed`, else on the run's seed."""
    return Split(options.validation_split, noise_seed(options, seed))


def noise_seed(options: ValidationOptions, seed: int) -> int:
    """`validation_seed`, else the run's seed."""
    return seed if options.validation_seed is None else options.validation_seed


def check_validation(options: ValidationOptions, training_set: TrainingSet) -> None:
    """See that options of validation have something to work on.

    Raises:
        UserError: nothing is held out.
    """
    if training_set.validation:
        return
    if any(dataset.validation_split for dataset in training_set.datasets):
        message = "holds no picture out: there are too few of them, or all serve as regularisation pictures too"
        raise UserError(message, field="validation_split")
    for name in ("validation_seed", "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps"):
        if getattr(options, name) is not None:
            raise UserError("has no effect without held out pictures: set validation_split", field=name)


def make_validation(
    options: ValidationOptions,
    training_set: TrainingSet,
    seed: int,
    feed: Feed,
    encode: CaptionEncoder | KnownCaptions,
    looks: bool = True,
) -> Validation:
    """What a run looks at.

    Args:
        options: when, and at how much of it.
        training_set: whose held out pictures are looked at.
        seed: of the run.
        feed, encode: see `Validation`.
        looks: whether this process is the one that does.
    """
    own = noise_seed(options, seed)
    batches = training_set.validation_batches(own)[: options.max_validation_steps] if looks else ()
    return Validation(batches, options, own, feed, encode)
