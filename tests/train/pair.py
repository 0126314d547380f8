"""One of two processes of test_devices.py: trains one config after the other, so that imports are paid for once.

`pair.py FILE`: FILE has a list of options by name of a run; what came of each is left beside its outputs.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.config.training.devices import Devices
from backend.errors import UserError
from backend.processes import place
from backend.train.group import Group
from backend.train.joining import joined
from backend.train.loop import train
from backend.train.setup import prepare
from tests.train.conftest import loaded_once


def work(options: dict[str, object], group: Group) -> dict[str, object]:
    """Train as the options say; gives what this process knows of the run at its end."""
    AcceleratorState._reset_state(True)
    own = {name.removeprefix("second:"): value for name, value in options.items() if name.startswith("second:")}
    options = {name: value for name, value in options.items() if not name.startswith("second:")}
    # Nothing may be written there by the second process.
    options |= (own | {"output_dir": f"{options['output_dir']}-second"}) if group.rank else {}
    try:
        run = prepare(resolve(TrainNetwork, options), group)
        losses = train(run).losses
    except UserError as error:
        return {"error": str(error), "told": error.told}
    weights = {name: value.clone() for name, value in run.network.state_dict().items()}
    return {"losses": losses, "weights": weights}


def main() -> None:
    """Go through the file."""
    from backend.train import setup

    setup.load_model = loaded_once
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    with joined(Devices()) as group:
        for name, options in json.loads(Path(sys.argv[1]).read_text("utf-8")).items():
            found = work(options, group)
            torch.save(found, Path(sys.argv[1]).with_name(f"{name}-{place().rank}.pt"))


if __name__ == "__main__":
    main()
