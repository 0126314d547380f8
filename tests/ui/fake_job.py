"""Stands in for a job, and takes seconds: `python -m tests.ui.fake_job FOLDER`."""

import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

from PIL import Image

from backend import events
from tests.ui import fake_tool

PROMPTS = ("<img src=x onerror=alert(1)>", "a round red zorgon monster with two eyes and horns on a green background")


def main(folder: Path) -> int:
    """Train nothing, with the steps of the config; a comment of "stubborn" does not stop, "broken" fails."""
    command = json.loads((folder / "job.json").read_text())["command"]
    if command != "train_network":
        return fake_tool.main(folder, command)
    config = tomllib.loads((folder / "config.toml").read_text())
    save = config["save"]
    output, comment = Path(save["output_dir"]), save.get("training_comment", "")
    total = config["optim"]["max_train_steps"]
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    print(f"Loading {config['model']['pretrained_model_name_or_path']}", flush=True)
    events.emit("phase", name="loading", step=0, total=1)
    if comment == "broken":
        events.emit("error", message="there is no <b>model</b> here", field="pretrained_model_name_or_path")
        return 2
    events.emit("phase", name="training", step=0, total=total)
    for step in range(1, total + 1):
        time.sleep(0.02)
        if asked and comment != "stubborn":
            break
        events.emit(
            "progress", step=step, total=total, epoch=1, epochs=2, loss=0.2 + 1 / (step + 1), loss_average=0.3,
            lr={"unet": 1e-3 * (1 - step / total), "text_encoder": 1e-4}, gradient_norm=0.1 + 1 / step,
            weight_norm={"mean": step / total, "max": 2 * step / total}, memory={"process": 1_500_000_000},
            seconds_per_step=0.02, pictures_per_second=200.0, seconds_left=0.02 * (total - step),
        )  # fmt: skip
        if step % 25 == 0:
            events.emit("validation", step=step, epoch=1, loss=0.4 + 1 / (step + 9), by_timestep={"200": 0.1})
        print(f"step {step}/{total}", flush=True)
        if step % 20 == 10 and step < 300:
            for index, prompt in enumerate(PROMPTS):
                picture = output / "sample" / f"picture-{step}-{index}.png"
                picture.parent.mkdir(exist_ok=True)
                Image.new("RGB", (64, 64), (step % 256, 128, 60 * index)).save(picture)
                events.emit("sample", path=str(picture), prompt=prompt, step=step, index=index, seed=7 + index)
    whole = step == total
    name = save.get("output_name", "last")
    file = output / f"{name if whole else f'{name}-step{step:08d}'}.safetensors"
    file.write_bytes(b"weights" * 64)
    events.emit("file", path=str(file), step=step, epoch=2, final=whole)
    return 0 if whole else 130


if __name__ == "__main__":
    events.VARIABLE in os.environ or sys.exit("no events file is named")
    sys.exit(main(Path(sys.argv[1])))
