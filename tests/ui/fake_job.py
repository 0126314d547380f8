"""Stands in for a job, and takes seconds: `python -m tests.ui.fake_job FOLDER`."""

import json
import os
import signal
import sys
import time
import tomllib
import zipfile
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from backend import events
from backend.header import pack_header
from backend.states import NETWORK, OPTIMIZER, POSITION, Position, read_position
from tests.ui import fake_tool

PROMPTS = ("<img src=x onerror=alert(1)>", "a round red zorgon monster with two eyes and horns on a green background")


def main(folder: Path) -> int:
    """Train nothing, with the steps of the config; a comment of "stubborn" does not stop, "broken" fails."""
    command = json.loads((folder / "job.json").read_text())["command"]
    if command != "train_network":
        return fake_tool.main(folder, command)
    config = tomllib.loads((folder / "config.toml").read_text())
    save, states = config["save"], config.get("state", {})
    output, comment = Path(save["output_dir"]), save.get("training_comment", "")
    total, every, done = config["optim"]["max_train_steps"], save.get("save_every_n_steps"), 0
    if "resume" in states:
        done = read_position(Path(states["resume"])).step
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    print(f"Loading {config['model']['pretrained_model_name_or_path']}", flush=True)
    events.emit("phase", name="loading", step=0, total=1)
    if comment == "broken":
        events.emit("error", message="there is no <b>model</b> here", field="pretrained_model_name_or_path")
        return 2
    time.sleep(1 if done else 0)
    events.emit("phase", name="training", step=done, total=total)
    for step in range(done + 1, total + 1):
        time.sleep(0.02)
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
        if every and states.get("save_state") and step % every == 0:
            save_state(output, step, total)
        if asked and comment != "stubborn" and step < total:
            save_state(output, step, total)
            break
    whole = step == total
    name = save.get("output_name", "last")
    file = output / f"{name if whole else f'{name}-step{step:08d}'}.safetensors"
    file.write_bytes(b"weights" * 64)
    events.emit("file", path=str(file), step=step, epoch=2, final=whole)
    return 0 if whole else 130


def save_state(output: Path, step: int, total: int) -> None:
    """A state that can be read as far as the web side looks."""
    folder = output / f"last-step{step:08d}-state"
    folder.mkdir(exist_ok=True)
    position = Position(step, 0, total, 1, "")
    (folder / POSITION).write_text(json.dumps(asdict(position)))
    (folder / NETWORK).write_bytes(pack_header({}))
    zipfile.ZipFile(folder / OPTIMIZER, "w").close()
    events.emit("state", path=str(folder), step=step)


if __name__ == "__main__":
    events.VARIABLE in os.environ or sys.exit("no events file is named")
    sys.exit(main(Path(sys.argv[1])))
