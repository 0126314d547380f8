"""Options of train_network: pictures that are held out, and the loss on them."""

from typing import Annotated

from pydantic import Field

from backend.config.declare import Option, Section

ADVANCED = Option(advanced=True)


class Validation(Section):
    """Validation."""

    validation_split: float = Field(0.0, ge=0, le=1)
    """Share of the pictures that is held out of training, to see the loss on pictures that are not learnt by heart. A
    dataset with a validation_split of its own keeps that. Regularisation pictures are never held out."""

    validation_seed: Annotated[int | None, ADVANCED] = Field(None, ge=0, le=2**63 - 1)
    """Seed of which pictures are held out, and of the noise they are shown with; left out, that of the run."""

    validate_every_n_steps: int | None = Field(None, ge=1)
    """Take the loss on the held out pictures after every so many steps."""

    validate_every_n_epochs: int | None = Field(None, ge=1)
    """Take it after every so many epochs. With neither, after every epoch; at the end of the run it is always taken."""

    max_validation_steps: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Batches of held out pictures that are looked at each time at most; left out, all."""
