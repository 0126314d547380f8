"""Stop and Resume of the web side over real trainings: the weights are those of the run that went through."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.job import Job
from backend.jobs import Jobs
from backend.resuming import resume
from backend.workspace import Workspace
from tests.jobs.conftest import wait_for
from tests.train.conftest import draw_pictures

CONFIG = """
pretrained_model_name_or_path = "backend/demo/model"
train_data_dir = "{pictures}"
train_batch_size = 1
resolution = 64
network_dim = 4
learning_rate = 1e-3
lr_scheduler = "cosine"
max_train_steps = 60
cache_latents = true
seed = 3
output_dir = "{output}"
"""


@pytest.mark.long
def test_a_stopped_job_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    draw_pictures(pictures / "1_disc", 4)
    jobs = Jobs(Workspace(tmp_path / "workspace"))

    def ended(job: Job, stop: bool = False) -> Job:
        jobs.dispatch()
        if stop:
            wait_for(lambda: any(e.get("loss") and e["step"] > job.first_step for e in jobs.events(job.id)[0]), 400)
            jobs.stop(job.id)
        wait_for(lambda: not jobs.get(job.id).active, 400)
        return jobs.get(job.id)

    def begun() -> Job:
        return jobs.start("train_network", lambda output: CONFIG.format(pictures=pictures, output=output))

    whole = ended(begun())
    first = ended(begun(), stop=True)
    assert (whole.state, first.state) == ("finished", "stopped"), jobs.tail(first.id)[0]
    second = ended(resume(jobs, first.id), stop=True)
    third = ended(resume(jobs, second.id))
    assert (second.state, third.state) == ("stopped", "finished"), jobs.tail(third.id)[0]
    assert 0 < second.first_step < third.first_step < 60
    expected, found = (load_file(job.output / "last.safetensors") for job in (whole, third))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in found)
    steps = [event["step"] for event in jobs.events(third.id)[0] if "loss" in event]
    assert steps == sorted(set(steps)) and steps[-1] == 60 and min(steps) <= second.first_step
