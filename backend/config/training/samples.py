"""Options of train_network: sample pictures drawn during training."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from backend.config.choices import SAMPLER_SPELLINGS, Sampler
from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)


class Samples(Section):
    """Sample pictures."""

    sample_prompts: Annotated[Path | None, Option(widget="file")] = None
    """Text file with one prompt a line; each may end in --w --h --s (steps) --l (guidance) --d (seed) --ss (sampler)
    --n (negative). Or a .toml or .json file of prompts as sd-scripts has them."""

    sample_every_n_epochs: int | None = Field(None, ge=1)
    """Draw the sample pictures after every so many epochs."""

    sample_every_n_steps: int | None = Field(None, ge=1)
    """Draw the sample pictures after every so many steps; sample_every_n_epochs wins."""

    sample_at_first: bool = False
    """Draw the sample pictures once before training too."""

    sample_sampler: Annotated[Sampler, Option(spellings=SAMPLER_SPELLINGS, advanced=True)] = "ddim"
    """Sampler of the sample pictures."""

    @model_validator(mode="after")
    def _prompts_and_times(self) -> "Samples":
        asked = [
            name for name in ("sample_every_n_epochs", "sample_every_n_steps", "sample_at_first") if getattr(self, name)
        ]
        if asked and self.sample_prompts is None:
            reject("sample_prompts", f"is required with {asked[0]}: a text file with one prompt a line")
        if self.sample_prompts is not None and not asked:
            reject(
                "sample_prompts",
                "also needs to know when: set sample_every_n_epochs, sample_every_n_steps or sample_at_first",
            )
        return self
