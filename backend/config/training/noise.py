"""Options of train_network: the noise that is added, the times at which it is, and the loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)


class Noise(Section):
    """Noise and loss."""

    noise_offset: float | None = Field(None, ge=0)
    """Add the same random number, of about this size, to all of a channel's noise: lets pictures become darker and
    brighter than the base model makes them; 0.05 to 0.1 is usual."""

    noise_offset_random_strength: Annotated[bool, ADVANCED] = False
    """Draw the noise_offset of every picture between 0 and the given one."""

    adaptive_noise_scale: Annotated[float | None, ADVANCED] = None
    """Add this times the mean of a picture's latent channel to its noise_offset."""

    multires_noise_iterations: Annotated[int | None, ADVANCED] = Field(None, ge=0, le=20)
    """Add noise of so many coarser and coarser resolutions, another way to the same end as noise_offset; 6 to 10 is
    usual."""

    multires_noise_discount: Annotated[float, ADVANCED] = Field(0.3, ge=0, le=1)
    """How much each coarser resolution counts, relative to the one before it."""

    ip_noise_gamma: Annotated[float | None, ADVANCED] = Field(None, ge=0)
    """Disturb the noisy picture by so much more noise than the model is asked to find; 0.1 is usual
    (arXiv 2301.11706)."""

    ip_noise_gamma_random_strength: Annotated[bool, ADVANCED] = False
    """Draw the ip_noise_gamma of every picture between 0 and the given one."""

    min_timestep: Annotated[int, ADVANCED] = Field(0, ge=0)
    """Train on times from here: early times have little noise and are about details."""

    max_timestep: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Train on times below this; left out, all of the model's, which are 1000."""

    zero_terminal_snr: bool = False
    """Stretch the noise schedule so that it ends in pure noise (arXiv 2305.08891), for models that were trained so.
    Sample pictures are drawn with the same schedule."""

    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh down times whose signal is stronger than this times the noise; 5 is usual (arXiv 2303.09556)."""

    scale_v_pred_loss_like_noise_pred: Annotated[bool, ADVANCED] = False
    """For models that predict v: weigh every time as if the noise were predicted."""

    v_pred_like_loss: Annotated[float | None, ADVANCED] = Field(None, ge=0)
    """For models that predict the noise: add this times the loss as it would weigh if v were predicted."""

    debiased_estimation_loss: Annotated[bool, ADVANCED] = False
    """Weigh every time by what its error does to the picture (arXiv 2310.08442)."""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = "l2"
    """How an error counts: squared, absolute, or squared while small and absolute while large."""

    huber_schedule: Annotated[Literal["snr", "exponential", "constant"], ADVANCED] = "snr"
    """How the border between small and large errors moves with time, for huber and smooth_l1."""

    huber_c: Annotated[float, ADVANCED] = Field(0.1, gt=0, le=1)
    """Border between small and large errors, for huber and smooth_l1: at the end of the schedule, or all along."""

    huber_scale: Annotated[float, ADVANCED] = Field(1.0, gt=0)
    """The border is multiplied by this, for huber and smooth_l1."""

    @model_validator(mode="after")
    def _each_with_what_it_changes(self) -> "Noise":
        needs = {
            "noise_offset_random_strength": "noise_offset",
            "adaptive_noise_scale": "noise_offset",
            "ip_noise_gamma_random_strength": "ip_noise_gamma",
        }
        for name, other in needs.items():
            if getattr(self, name) and getattr(self, other) is None:
                reject(name, f"has no effect without {other}; give both or neither")
        if self.max_timestep is not None and self.min_timestep >= self.max_timestep:
            reject("min_timestep", f"must be below max_timestep {self.max_timestep}, got {self.min_timestep}")
        return self
