"""Several processes train what one does: the losses and weights of two with batch 2 are those of one with batch 4."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from backend import events
from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.config.training.devices import Devices
from backend.errors import UserError
from backend.families.base import save_diffusers
from backend.families.build import random_model
from backend.processes import Place, is_first, place
from backend.terminal import warn
from backend.train.joining import check_launch, meet
from backend.train.loop import train
from backend.train.setup import prepare
from tests.train.conftest import draw_pictures, loaded_once
from tests.train.listening import is_loopback, listening_below

PROJECT = Path(__file__).parents[2]
# Losses agree to 1e-5 of themselves, weights to this of their norm: AdamW divides by the size of each gradient, which
# makes the last digits of the smallest ones count.
LOSSES, WEIGHTS = 1e-5, 1e-4
BASE = {"seed": 7, "max_train_steps": 5, "learning_rate": 1e-3, "cache_latents": True, "max_data_loader_n_workers": 0}
DATA = 'caption_dropout_rate = 0.3\nshuffle_caption = true\ncaption_separator = " "\nflip_aug = true\n'
KINDS: dict[str, dict[str, object]] = {
    # Of 5 and 3 pictures in two buckets: the last batches have 1 and 3, so a process has no share of one.
    "plain": {"save_every_n_steps": 2, "save_state": True},
    "accumulation, DyLoRA": {
        "network_module": "networks.dylora",
        "network_args": ["unit=2"],
        "gradient_accumulation_steps": 2,
        "clip_skip": 2,
        "min_snr_gamma": 5.0,
        "max_train_steps": 3,
    },
    "dropouts": {
        "network_dropout": 0.3,
        "network_args": ["rank_dropout=0.2", "module_dropout=0.2"],
        "validation_split": 0.2,
        "validate_every_n_steps": 2,
    },
    "schedule-free": {"network_train_unet_only": True, "optimizer_type": "AdamWScheduleFree", "cache_latents": False},
    "norms": {
        "scale_weight_norms": 0.05,
        "network_train_unet_only": True,
        "cache_text_encoder_outputs": True,
        "data": "",
    },
    "bf16": {"mixed_precision": "bf16", "full_bf16": True, "max_train_steps": 2},
}
# Those that run without --long.
SHORT = ("plain", "accumulation, DyLoRA")
DISK = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
DISK |= {"network_train_unet_only": True, "max_train_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model and pictures, of which some serve as regularisation pictures."""
    made = tmp_path_factory.mktemp("devices")
    save_diffusers(random_model(0), made / "model")
    draw_pictures(made / "square", 3)
    draw_pictures(made / "wide", 2, (96, 64))
    draw_pictures(made / "reg", 3)
    return made


@pytest.fixture(scope="module")
def options_of(folder) -> Callable[..., dict[str, object]]:
    """options_of(batch_size, output_dir, option=value, ...): a run's options; `data` are lines of its dataset toml."""

    def make(batch_size: int, output: str, data: str = DATA, **options: object) -> dict[str, object]:
        buckets = "enable_bucket = true\nmin_bucket_reso = 32\nbucket_reso_steps = 32\n"
        text = f"[general]\nresolution = 64\nbatch_size = {batch_size}\n{buckets}{data}[[datasets]]\n"
        for name in ("square", "wide", "reg"):
            text += f'[[datasets.subsets]]\nimage_dir = "{folder / name}"\nis_reg = {str(name == "reg").lower()}\n'
        dataset = folder / f"{output}.toml"
        dataset.write_text(text, encoding="utf-8")
        model = {"pretrained_model_name_or_path": str(folder / "model"), "prior_loss_weight": 0.5}
        named = {"dataset_config": str(dataset), "output_dir": str(folder / output), "output_name": "test"}
        return {**BASE, **model, **named, **options}

    return make


def environment(**more: str) -> dict[str, str]:
    """As the tests', without what a launcher would say."""
    named = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ours = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", events.VARIABLE)}
    return {**ours, **named, **more}


def torchrun(*words: str, **more: str) -> subprocess.CompletedProcess:
    """Two processes of a command, by torchrun."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    env = environment(**more)
    return subprocess.run(line, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def pairs(folder, options_of, request) -> dict[str, tuple[dict, dict]]:
    """What both processes knew at the end of every run, by kind."""
    kinds = KINDS if request.config.getoption("--long") else SHORT
    work = {name: options_of(2, f"pair {name}", **KINDS[name]) for name in kinds}
    state = str(folder / "pair plain" / "test-step00000002-state")
    work["resumed"] = options_of(2, "pair resumed", resume=state)
    work["elsewhere"] = options_of(2, "pair elsewhere", **{"second:learning_rate": 2e-3})
    work["broken"] = options_of(2, "pair broken", **{"second:dataset_config": str(folder / "none.toml")})
    work["disk"] = options_of(2, "pair disk", data="", **DISK)
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    done = torchrun("-m", "tests.train.pair", str(folder / "work.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: tuple(torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)) for name in work}


@pytest.fixture
def alone(options_of, monkeypatch) -> Callable[..., tuple[list[float], dict[str, torch.Tensor]]]:
    """alone(option=value, ...): losses and weights of one process with batch 4."""

    def make(**options: object) -> tuple[list[float], dict[str, torch.Tensor]]:
        monkeypatch.setattr("backend.train.setup.load_model", loaded_once)
        run = prepare(resolve(TrainNetwork, {**options_of(4, "alone", **options), "overwrite": True}))
        losses = train(run).losses
        return losses, run.network.state_dict()

    return make


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of the norm of all weights together."""
    assert found.keys() == expected.keys()
    apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    size = sum(float(value.double().square().sum()) for value in expected.values())
    assert apart <= size * tolerance**2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in KINDS]
)
def test_two_processes_learn_what_one_does(pairs, alone, name) -> None:
    losses, weights = alone(**{key: value for key, value in KINDS[name].items() if not key.startswith("save")})
    first, second = pairs[name]
    coarse = name == "bf16"
    assert first["losses"] == pytest.approx(losses, rel=1e-2 if coarse else LOSSES)
    assert_close(first["weights"], weights, 1e-2 if coarse else WEIGHTS)
    assert second["losses"] == first["losses"]
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())


def test_the_first_process_alone_writes(pairs, folder) -> None:
    assert list(folder.glob("pair *-second")) == []
    names = {path.name for path in (folder / "pair plain").iterdir()}
    states = {f"test-step0000000{step}{end}" for step in (2, 4) for end in ("-state", ".safetensors")}
    assert names == {"test.safetensors", "test.config.toml", "test-state", *states}


def test_a_state_of_two_processes_goes_on_in_two_to_the_bit(pairs) -> None:
    whole, rest = pairs["plain"][0], pairs["resumed"][0]
    assert rest["losses"] == whole["losses"][2:]
    assert all(torch.equal(value, rest["weights"][key]) for key, value in whole["weights"].items())


def test_a_state_of_two_processes_goes_on_in_one_of_the_same_batch(pairs, folder, alone, capsys) -> None:
    losses, weights = alone(resume=str(folder / "pair plain" / "test-step00000002-state"))
    assert losses == pytest.approx(pairs["plain"][0]["losses"][2:], rel=LOSSES)
    assert_close(weights, pairs["plain"][0]["weights"], WEIGHTS)
    assert "other pictures" not in capsys.readouterr().out


def test_a_state_of_another_global_batch_warns(pairs, folder, options_of, monkeypatch, capsys) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", loaded_once)
    state = str(folder / "pair plain" / "test-step00000002-state")
    prepare(resolve(TrainNetwork, options_of(2, "small", resume=state)))
    assert "other pictures, captions or batch sizes" in capsys.readouterr().out


def test_processes_that_would_train_differently_are_refused(pairs) -> None:
    message = "the option learning_rate differs between process 0 and process 1 (0.002, not 0.001)"
    assert [found["error"].startswith(message) for found in pairs["elsewhere"]] == [True, True]
    assert [found["told"] for found in pairs["elsewhere"]] == [False, True]


def test_a_mistake_of_one_process_ends_both_and_is_told_once(pairs) -> None:
    first, second = pairs["broken"]
    assert re.match(r"process 1 of 2, on \S+: .*none\.toml", first["error"]) and not first["told"]
    assert second["told"]


def test_the_disk_cache_of_two_processes_is_that_of_one(pairs, folder, alone) -> None:
    def kept(kind: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob(f"*/.lora_loom_cache/{kind}/*")}

    before = kept("latents"), kept("captions")
    assert len(before[0]) == 8 and before[1]
    losses, _ = alone(data="", **DISK)
    assert (kept("latents"), kept("captions")) == before
    assert pairs["disk"][0]["losses"] == pairs["disk"][1]["losses"] == pytest.approx(losses, rel=LOSSES)


def test_the_file_tells_of_the_whole_batch(pairs, folder) -> None:
    with safe_open(folder / "pair plain" / "test.safetensors", "pt") as file:
        told = file.metadata()
    # Of 3 + 2 pictures and 5 of regularisation (with repeats) in two buckets, by four.
    assert (told["ss_num_batches_per_epoch"], told["ss_num_epochs"]) == ("3", "2")
    assert json.loads(told["ss_datasets"])[0]["batch_size_per_device"] == 2


@pytest.mark.long
def test_the_command_line_in_two_processes(pairs, folder, options_of) -> None:
    words = words_of(options_of(2, "command"))
    done = torchrun("-m", "backend", "train_network", *words, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Loading ") == 1
    found = load_file(folder / "command" / "test.safetensors")
    assert_close(found, pairs["plain"][0]["weights"], 1e-6)


def words_of(options: Mapping[str, object]) -> list[str]:
    """Options as flags; a switch is one that is on."""
    pairs = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in options.items()]
    return [word for pair in pairs for word in pair]


def started(*words: str, lines: Callable[[str], bool], log: Path, **more: str) -> subprocess.Popen:
    """A command whose log has come to a line."""
    with log.open("w") as file:
        line = [sys.executable, "-m", "backend", "train_network", *words]
        process = subprocess.Popen(line, cwd=PROJECT, env=environment(**more), stdout=file, stderr=subprocess.STDOUT)
    end = time.monotonic() + 200
    while not lines(log.read_text()) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process


def process_of_rank(parent: int, rank: int) -> int:
    """The process of a rank among those that one has started."""
    for number in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        if f"RANK={rank}" in Path(f"/proc/{number}/environ").read_text().split("\0"):
            return number
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_lost_process_ends_the_run_with_a_line_and_a_state(options_of, folder, alone, rank) -> None:
    name, log = f"lost {rank}", folder / f"lost {rank}.txt"
    options = options_of(2, name, max_train_steps=400, save_every_n_steps=5, save_state=True, num_processes=2)
    process = started(*words_of(options), lines=lambda text: "-step00000005-state" in text, log=log)
    assert all(map(is_loopback, listening_below(process.pid)))
    os.kill(process_of_rank(process.pid, rank), signal.SIGKILL)
    assert process.wait(200) == (1 if rank else 137)
    text = log.read_text()
    assert "Traceback" not in text
    told = re.findall(rf"^process {rank} of 2 was lost in step (\d+) of 400; (.*)$", text, re.MULTILINE)
    assert len(told) == 1
    said = r"--resume (.*-state) goes on" if rank else r"newest state is (.*-state):"
    state = Path(re.search(said, told[0][1])[1])
    step = int(re.search(r"step(\d+)-state", state.name)[1])
    assert step == int(told[0][0]) - 1 if rank else step % 5 == 0
    losses, _ = alone(resume=str(state), max_train_steps=step + 1, save_state=False)
    assert len(losses) == 1


@pytest.mark.long
def test_a_stop_ends_all_after_the_same_step(options_of, folder) -> None:
    log = folder / "stopped.txt"
    words = words_of(options_of(2, "stopped", max_train_steps=400, num_processes=2))
    process = started(*words, lines=lambda text: "step 20/" in text, log=log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    text = log.read_text()
    assert text.count("Stopped after step") == text.count("stopped by an interrupt") == 1
    step = int(re.search(r"Stopped after step (\d+)", text)[1])
    assert (folder / "stopped" / f"test-step{step:08d}-state").is_dir()


@pytest.mark.long
def test_two_machines_find_each_other_by_address(options_of, folder, alone) -> None:
    with machines() as (first, second):
        shared = {"num_processes": 2, "num_machines": 2, "main_process_ip": first.address, "main_process_port": 29611}
        runs = []
        for rank, machine in enumerate((first, second)):
            words = words_of(options_of(2, f"machine {rank}", max_train_steps=2, machine_rank=rank, **shared))
            line = [*machine.begin, sys.executable, "-m", "backend", "train_network", *words]
            with (folder / f"machine {rank}.txt").open("w") as file:
                runs.append(
                    subprocess.Popen(line, cwd=PROJECT, env=environment(), stdout=file, stderr=subprocess.STDOUT)
                )
        texts = [(run.wait(300), (folder / f"machine {rank}.txt").read_text()) for rank, run in enumerate(runs)]
    assert [code for code, _ in texts] == [0, 0], texts
    assert "on machine 1: python -m backend train_network" in texts[0][1]
    assert not (folder / "machine 1").exists()
    _, weights = alone(max_train_steps=2)
    assert_close(load_file(folder / "machine 0" / "test.safetensors"), weights, WEIGHTS)


@dataclass(frozen=True)
class Machine:
    """A network of its own: what a command line on it begins with, and its address."""

    begin: tuple[str, ...]
    address: str


@contextmanager
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two network namespaces, joined by a cable; skips the test where the system does not allow them."""
    names = [f"loom{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.231.57.1", "10.231.57.2"]

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")

    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: there is no program ip")
    try:
        for name in names:
            ip("netns", "add", name)
        peer = ("peer", "name", "cable", "netns", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", *peer)
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield tuple(
            Machine(("ip", "netns", "exec", name), address) for name, address in zip(names, addresses, strict=True)
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.parametrize(
    ("told", "place_of"),
    [
        ({}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
        ({"WORLD_SIZE": "2", "RANK": "2"}, Place()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
    ],
)
def test_the_environment_tells_the_place(told, place_of) -> None:
    assert place(told) == place_of


def test_the_first_process_alone_tells(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events"))
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert is_first() is (rank == 0)
        warn(f"from {rank}")
    events.emit("error", message="of the second alone")
    assert capsys.readouterr().out == "Warning: from 0\n"
    assert [event["message"] for event in events.read(tmp_path / "events")[0]] == ["from 0", "of the second alone"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate makes processes of them where there is a GPU")
def test_launched_processes_that_accelerate_does_not_make_are_refused(monkeypatch) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    # It would wait for the other process, and makes one of each all the same.
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **_: None)
    with pytest.raises(UserError, match="2 processes were launched.*accelerate makes 1.*ACCELERATE_USE_CPU=true"):
        meet(Devices(), place())


def test_a_launch_that_does_not_fit_the_options_is_refused() -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "1"}
    check_launch(Devices(), place(launched), launched)
    check_launch(Devices(num_processes=2), place(launched), launched)
    with pytest.raises(UserError, match="num_processes: is 3, but 2 were launched"):
        check_launch(Devices(num_processes=3), place(launched), launched)
    silent = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(UserError, match="asked for several processes and has started one"):
        check_launch(Devices(), Place(), silent)
    check_launch(Devices(), Place(), {"ACCELERATE_MIXED_PRECISION": "no"})
