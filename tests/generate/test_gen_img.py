"""`gen_img` and the worker, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.config.base import resolve
from backend.config.generate import GenImg
from backend.errors import UserError
from backend.generate.images import read_parameters
from backend.generate.run import run

ROOT = Path(__file__).parents[2]


def config(model_folder, tmp_path, **options: object) -> GenImg:
    defaults = {"ckpt": str(model_folder), "outdir": str(tmp_path / "out"), "steps": 2, "seed": 5}
    return resolve(GenImg, defaults | options)


def test_every_prompt_of_a_file_is_drawn_with_its_own_multipliers(model_folder, tmp_path, lora_file) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a disc\na disc --am 0\na disc --am 0.5,1 --w 72 --d 9\n", encoding="utf-8")
    loras = [str(lora_file(0)), str(lora_file(1, 8))]
    run(config(model_folder, tmp_path, from_file=str(prompts), network_weights=loras, network_mul=[0.8]))
    paths = sorted((tmp_path / "out").glob("*.png"))
    told = [read_parameters(path) for path in paths]
    expected = ["lora0_4 x 0.8; lora1_8 x 0.8", "lora0_4 x 0; lora1_8 x 0", "lora0_4 x 0.5; lora1_8 x 1"]
    assert [one["LoRA"] for one in told] == expected
    assert [(one["Seed"], one["Size"]) for one in told] == [("5", "64x64"), ("5", "64x64"), ("9", "72x64")]
    with Image.open(paths[0]) as dosed, Image.open(paths[1]) as plain:
        assert np.abs(np.asarray(dosed, int) - np.asarray(plain, int)).max() > 10


def test_pictures_of_earlier_runs_stay(model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _format: "20260101000000")
    for _ in range(2):
        run(config(model_folder, tmp_path, prompt="a disc", images_per_prompt=2, batch_size=2))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stem = "im_20260101000000_000"
    assert names == [f"{stem}_5.png", f"{stem}_5_2.png", f"{stem}_6.png", f"{stem}_6_2.png"]
    first, second = ((tmp_path / "out" / name).read_bytes() for name in names[:2])
    assert first == second


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path), int) for path in sorted(folder.glob("*.png"))]


def test_merged_networks_and_those_that_a_prompt_names_draw_the_same(model_folder, tmp_path, lora_file) -> None:
    first, second = str(lora_file(0)), str(lora_file(1, 8))
    files = {"network_weights": [first, second], "network_mul": [0.8, 0.5]}
    ways = {
        "plain": files | {"prompt": "a disc"},
        "merged": files | {"prompt": "a disc", "network_merge": True},
        "one": files | {"prompt": "a disc --am 0.5", "network_merge_n_models": 1},
        "named": {"prompt": f"a disc <lora:{Path(second).stem}:0.5>", "network_weights": [first], "network_mul": [0.8]},
        "without": {"prompt": "a disc"},
    }
    for name, options in ways.items():
        run(config(model_folder, tmp_path, outdir=str(tmp_path / name), **options))
    drawn = {name: pixels(tmp_path / name)[0] for name in ways}
    for name in ("merged", "one", "named"):
        assert np.abs(drawn[name] - drawn["plain"]).max() <= 1, name
    assert np.abs(drawn["without"] - drawn["plain"]).max() > 10
    told = {read_parameters(next((tmp_path / name).glob("*.png")))["LoRA"] for name in ways if name != "without"}
    assert told == {"lora0_4 x 0.8; lora1_8 x 0.5"}


def test_all_prompts_are_drawn_again_with_seeds_that_go_on(model_folder, tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a\nb --d 9\n")
    file = str(tmp_path / "p.txt")
    run(config(model_folder, tmp_path, from_file=file, n_iter=2, images_per_prompt=2, batch_size=2, steps=1))
    told = [read_parameters(path) for path in sorted((tmp_path / "out").glob("*.png"))]
    assert sorted((one["Prompt"], int(one["Seed"])) for one in told) == [
        *(("a", seed) for seed in (5, 6, 7, 8)),
        *(("b", seed) for seed in (9, 10, 11, 12)),
    ]


def test_fp16_without_a_gpu_says_so_and_goes_on(model_folder, tmp_path, capsys) -> None:
    run(config(model_folder, tmp_path, prompt="a disc --s 1", fp16=True, device="cpu"))
    assert "Warning: fp16 needs a GPU; there is none here, so float32 is used" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a --w 70"}, "width: 70 is not a multiple of 8"),
        ({"prompt": "a --am 1,2"}, "--am has 2 values for 0 files"),
        ({"prompt": "a <lora:gone:1>"}, "<lora:gone:1>: there is no LoRA of this name in the workspace"),
        ({"prompt": "a", "device": "cuda:7"}, "device: cuda:7 is not here"),
        ({"prompt": "a", "network_weights": ["gone.safetensors"]}, "gone.safetensors: no such file"),
    ],
)
def test_what_cannot_work_is_named_before_anything_is_drawn(model_folder, tmp_path, options, message) -> None:
    with pytest.raises(UserError, match=message):
        run(config(model_folder, tmp_path, **options))
    assert not (tmp_path / "out").exists()


def test_what_needs_no_model_is_checked_before_it_is_loaded(model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("backend.generate.run.load_generation_model", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="outdir: .*file/out cannot be a folder: .*/file is none"):
        run(config(model_folder, tmp_path, prompt="a", outdir=str(tmp_path / "file" / "out")))
    with pytest.raises(UserError, match="steps: 1000 is too many: ddim takes at most 999"):
        run(config(model_folder, tmp_path, prompt="a", steps=1000))


def ask(requests: list[object]) -> tuple[list[dict], str]:
    """The worker's answers to requests on its stdin, and its stderr."""
    lines = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in requests)
    done = subprocess.run(
        [sys.executable, "-m", "backend.generate"],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_worker_answers_draws_and_survives_mistakes(model_folder, tmp_path, lora_file) -> None:
    lora = str(lora_file())
    base = {"op": "generate", "model": str(model_folder), "prompt": "a disc", "out_dir": str(tmp_path), "steps": 2}
    base |= {"seed": 4}
    answers, _ = ask(
        [
            base | {"id": 1, "count": 2},
            base | {"id": 2, "loras": [{"path": lora, "multiplier": 0.9}]},
            base | {"id": 3, "loras": [{"path": lora, "multiplier": 0}]},
            "not json",
            base | {"id": 4, "colour": "red"},
            base | {"id": 5, "steps": "many"},
            base | {"id": 6, "loras": [{"path": "gone.safetensors", "multiplier": 1}]},
            base | {"id": 7, "out_dir": str(model_folder / "model_index.json")},
            {"id": 8, "op": "unload"},
            base | {"id": 9},
            {"id": 10, "op": "quit"},
            base | {"id": 11},
        ]
    )
    ends = {answer["id"]: answer for answer in answers if answer["event"] in ("done", "error")}
    assert [answer["id"] for answer in answers if answer["event"] == "phase"] == [1, 9]  # loaded once, hot after that
    assert [answer["step"] for answer in answers if answer["id"] == 1 and answer["event"] == "progress"] == [1, 2]
    assert ends[1]["seeds"] == [4, 5] and len(ends[1]["images"]) == 2 and ends[1]["seconds"] > 0
    pictures = {n: Path(ends[n]["images"][0]).read_bytes() for n in (1, 2, 3, 9)}
    shown = {n: np.asarray(Image.open(ends[n]["images"][0]), int) for n in (1, 2, 3, 9)}
    assert np.abs(shown[1] - shown[2]).max() > 10
    assert np.abs(shown[1] - shown[3]).max() <= 1 and np.array_equal(shown[3], shown[9])
    assert b"lora0_4" in pictures[2] and b"lora0_4" not in pictures[1]
    assert ends[None]["event"] == "error"
    fields = {n: ends[n]["field"] for n in (4, 5, 6) if ends[n]["event"] == "error"}
    assert fields == {4: "colour", 5: "steps", 6: "gone.safetensors"}
    assert ends[7]["event"] == "error" and "model_index.json" in json.dumps(ends[7])
    assert ends[7]["message"].startswith("cannot be read or written: ")
    assert ends[8] == {"id": 8, "event": "done"} and ends[10] == {"id": 10, "event": "done"}
    assert 11 not in ends


def test_the_worker_ends_a_drawing_within_a_step_and_stays_hot(model_folder, tmp_path) -> None:
    base = {"op": "generate", "model": str(model_folder), "prompt": "a disc", "out_dir": str(tmp_path), "seed": 4}
    with subprocess.Popen(
        [sys.executable, "-m", "backend.generate"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def send(**request: object) -> None:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()

        def heard(identity: int, *events: str) -> dict:
            return next(a for a in map(json.loads, process.stdout) if a["id"] == identity and a["event"] in events)

        send(**base, id=1, steps=900, count=2, batch_size=1)
        send(**base, id=2, steps=900)
        send(**base, id=3, steps=1)
        at = heard(1, "progress")["step"]
        send(op="cancel", id=2)  # which waits
        send(op="cancel", id=1)
        send(op="cancel", id=1)
        end = heard(1, "cancelled", "done")
        assert end == {"id": 1, "event": "cancelled", "images": [], "seeds": []} and at < 900
        assert heard(2, "cancelled", "done", "phase", "progress")["event"] == "cancelled"
        # Loaded once; a cancelled id can be used again.
        assert heard(3, "phase", "done")["event"] == "done"
        send(op="cancel", id=9)
        send(**base, id=1, steps=1)
        assert heard(1, "phase", "done", "cancelled")["event"] == "done"
        send(op="quit", id=5)
        assert heard(5, "done")
    assert process.returncode == 0 and len(list(tmp_path.iterdir())) == 2


def test_what_libraries_print_does_not_reach_the_protocol(tmp_path) -> None:
    program = (
        "import os, sys, backend.generate.worker as worker\n"
        "serve = worker.Worker.serve\n"
        "def noisy(self, lines):\n"
        "    print('noise from python')\n"
        "    os.system('echo noise from a child')\n"
        "    serve(self, lines)\n"
        "worker.Worker.serve = noisy\n"
        "worker.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        input='{"id": 1, "op": "unload"}\n',
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == '{"id": 1, "event": "done"}\n'
    assert "noise from python" in done.stderr and "noise from a child" in done.stderr
