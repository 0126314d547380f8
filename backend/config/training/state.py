"""Options of train_network: the state from which a run that ended early goes on."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from backend.config.declare import Option, Section, reject

ADVANCED = Option(advanced=True)


class State(Section):
    """Resuming."""

    save_state: bool = False
    """With every file that is saved, also save the state of the run, from which it goes on exactly: a folder of about
    three times the size of the LoRA. A run that is stopped always leaves one."""

    save_state_on_train_end: bool = False
    """Save the state at the end of the run, so that it can be made longer."""

    save_last_n_epochs_state: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Of the states saved after epochs keep so many; left out, as save_last_n_epochs says."""

    save_last_n_steps_state: Annotated[int | None, ADVANCED] = Field(None, ge=1)
    """Of the states saved after steps keep those of the last so many steps; left out, as save_last_n_steps says."""

    resume: Annotated[Path | None, Option(widget="folder")] = None
    """Go on from the state in this folder, whose name ends in -state. Options are those of the run that wrote it, but
    for its length, and for what is saved, sampled and logged."""

    @model_validator(mode="after")
    def _states_to_keep(self) -> "State":
        for name in ("save_last_n_epochs_state", "save_last_n_steps_state"):
            if getattr(self, name) and not self.save_state:
                reject(name, "has no effect without save_state; set it too")
        return self
