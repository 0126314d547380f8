"""What a run saves on its way, which of it stays, and what the files say of themselves."""

import base64
import hashlib
import math
from io import BytesIO
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from backend import events
from backend.config.base import resolve
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.families import hashes
from backend.header import read_header
from backend.lora.file import read_lora
from backend.lora.metadata import file_hashes
from backend.train import saving
from backend.train.description import thumbnail
from backend.train.loop import train, training_step
from backend.train.outputs import SavePlan, old_epochs, old_steps
from backend.train.setup import prepare

LOCATION = {"pretrained_model_name_or_path": "model", "dataset_config": "d.toml", "output_dir": "out"}


def names(folder: Path) -> list[str]:
    """The LoRA files of a folder, without what all names begin and end with."""
    return sorted(
        path.name.removeprefix("test").removesuffix(".safetensors") for path in folder.glob("test*.safetensors")
    )


def kept_by_the_reference(saves: list[int], every: int, steps: int | None, epochs: int | None) -> list[int]:
    """kohya's rule (train_util.py: get_remove_step_no, get_remove_epoch_no): one number to remove after each save."""
    files: list[int] = []
    for now in saves:
        files.append(now)
        gone = now - every * epochs if epochs else (now - steps - 1) // every * every
        files = [file for file in files if file != gone]
    return files


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("last", [1, 2, 7, 30, 31])
def test_what_is_kept_is_what_the_reference_keeps(every, last) -> None:
    saves = list(range(every, 12 * every, every))
    for old, expected in (
        (old_steps, {"steps": last, "epochs": None}),
        (old_epochs, {"steps": None, "epochs": last}),
    ):
        files: list[int] = []
        for now in saves:
            files.append(now)
            gone = old(files, last)
            files = [file for file in files if file not in gone]
        assert files == kept_by_the_reference(saves, every, **expected)
        assert files[-1] == saves[-1]
    assert old_steps(saves, None) == old_epochs(saves, None) == []


def test_when_a_run_saves() -> None:
    def plan(epochs: int, **given: object) -> SavePlan:
        config = resolve(TrainNetwork, LOCATION | given)
        return SavePlan.of(config.save, config.state, epochs)

    assert [e for e in range(1, 11) if plan(10, save_every_n_epochs=3).after_epoch(e)] == [3, 6, 9]
    assert [s for s in range(1, 11) if plan(10, save_every_n_steps=4).after_step(s)] == [4, 8]
    # kohya: every floor(epochs / ratio) epochs, or every one.
    assert [plan(10, save_n_epoch_ratio=ratio).every_epochs for ratio in (1, 3, 4, 10, 11)] == [10, 3, 2, 1, 1]
    none = plan(10)
    assert not any(none.after_epoch(n) or none.after_step(n) for n in range(1, 11))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"save_n_epoch_ratio": 3, "save_every_n_epochs": 2}, "save_n_epoch_ratio: cannot be set together"),
        ({"save_last_n_epochs": 3}, "save_last_n_epochs: has no effect without save_every_n_epochs"),
        ({"save_last_n_epochs": 3, "save_every_n_steps": 1}, "save_last_n_epochs: has no effect"),
        ({"save_last_n_steps": 3, "save_every_n_epochs": 1}, "save_last_n_steps: has no effect without"),
        ({"save_every_n_steps": 0}, "save_every_n_steps: must be at least 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(TrainNetwork, LOCATION | given)


def test_steps_and_epochs_are_saved_and_only_this_runs_older_files_go(run_of, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events.jsonl"))
    folder = tmp_path / "output"
    folder.mkdir()
    others = ["test-000009.safetensors", "test-step00000003.safetensors", "test2-step00000002.safetensors"]
    for name in others:
        (folder / name).write_bytes(b"another run's")
    data = str(dataset(count=2, batch_size=1))
    given = {"dataset_config": data, "max_train_epochs": 4, "save_every_n_steps": 2, "save_last_n_steps": 2}
    run = run_of(**given, save_every_n_epochs=1, save_last_n_epochs=2)
    train(run)
    # Eight steps: 2, 4, 6, 8, of which 6 and 8 are within the last two; epochs 1 to 3, of which two are kept.
    own = ["", "-000002", "-000003", "-step00000006", "-step00000008"]
    assert names(folder) == sorted([*own, "-000009", "-step00000003", "2-step00000002"])
    assert all((folder / name).read_bytes() == b"another run's" for name in others)
    assert (run.saved.steps, run.saved.epochs) == ([6, 8], [2, 3])
    told, _ = events.read(tmp_path / "events.jsonl")
    saved = [(Path(e["path"]).stem, e["step"], e["epoch"], e["final"]) for e in told if e["event"] == "file"]
    assert saved == [
        ("test-step00000002", 2, 1, False),
        ("test-000001", 2, 1, False),
        ("test-step00000004", 4, 2, False),
        ("test-000002", 4, 2, False),
        ("test-step00000006", 6, 3, False),
        ("test-000003", 6, 3, False),
        ("test-step00000008", 8, 4, False),
        ("test", 8, 4, True),
    ]
    last, final = (read_lora(folder / f"test{name}.safetensors") for name in ("-step00000008", ""))
    assert (last.metadata["ss_steps"], last.metadata["ss_epoch"]) == ("8", "4")
    assert last.metadata["sshs_model_hash"] == final.metadata["sshs_model_hash"]
    assert read_lora(folder / "test-000002.safetensors").metadata["ss_steps"] == "4"


def test_saving_on_the_way_changes_nothing_of_the_training(run_of) -> None:
    losses = [train(run_of(max_train_steps=3, **given)).losses for given in ({}, {"save_every_n_steps": 1})]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_an_old_file_stays_until_the_new_one_is_written(run_of, tmp_path, monkeypatch) -> None:
    run = run_of(max_train_steps=3, save_every_n_steps=1, save_last_n_steps=1)
    write = run.network.save_weights

    def fail_at_the_third(path: Path, *rest: object) -> None:
        if path.stem.endswith("3"):
            raise UserError("the disk is full")
        write(path, *rest)

    monkeypatch.setattr(run.network, "save_weights", fail_at_the_third)
    with pytest.raises(UserError, match="the disk is full"):
        train(run)
    assert names(tmp_path / "output") == ["-step00000001", "-step00000002"]


def test_a_file_that_cannot_be_removed_costs_a_warning(tmp_path, capsys) -> None:
    folder = tmp_path / "test.safetensors"
    folder.mkdir()
    saving.remove(folder)
    assert f"Warning: {folder} could not be removed" in capsys.readouterr().out and folder.is_dir()
    saving.remove(tmp_path / "gone.safetensors")


def picture(path: Path, mode: str, size: tuple[int, int], colour: tuple[int, ...]) -> Path:
    Image.new(mode, size, colour).save(path)
    return path


def decoded(url: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize(
    ("mode", "colour", "name", "kind"),
    [
        ("RGB", (250, 10, 10), "a.png", "jpeg"),
        ("RGBA", (250, 10, 10, 255), "b.png", "jpeg"),
        ("RGBA", (250, 10, 10, 90), "c.png", "png"),
        ("RGB", (250, 10, 10), "d.jpg", "jpeg"),
    ],
)
def test_a_thumbnail_is_a_small_copy(tmp_path, mode, colour, name, kind) -> None:
    url = thumbnail(picture(tmp_path / name, mode, (1024, 512), colour))
    assert url.startswith(f"data:image/{kind};base64,") and len(url) < 8000
    small = decoded(url)
    assert small.size == (256, 128) and small.format.lower() == kind
    assert math.dist(small.convert("RGBA").getpixel((128, 64)), (*colour, 255)[:4]) < 12


def test_a_thumbnail_that_is_no_picture_is_refused_before_a_model_is_loaded(config_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    text = tmp_path / "words.png"
    text.write_text("no picture")
    for path, reason in ((tmp_path / "gone.png", "No such file"), (text, "not a picture"), (tmp_path, "directory")):
        with pytest.raises(UserError, match=f"metadata_thumbnail: .*{path.name} is no picture.*{reason}"):
            prepare(config_of(metadata_thumbnail=str(path)))


FIELDS = {
    "title": "Discs, finished",
    "author": "Ada",
    "description": "Discs on a\nbackground",
    "license": "CC0",
    "tags": "disc,colour",
    "usage_hint": "say disc",
    "merged_from": "one, two",
    "trigger_phrase": "a disc",
    "preprocessor": "none",
    "is_negative_embedding": "false",
}


@pytest.mark.parametrize("no_metadata", [False, True])
def test_the_file_says_what_it_is(run_of, tmp_path, no_metadata) -> None:
    given = {f"metadata_{name}": value for name, value in FIELDS.items()}
    given["metadata_thumbnail"] = str(picture(tmp_path / "a.png", "RGB", (64, 64), (9, 9, 200)))
    run = run_of(max_train_steps=1, no_metadata=no_metadata, **given)
    (tmp_path / "a.png").unlink()  # it was read at the start
    train(run)
    found = read_lora(run.outputs.final).metadata
    assert {name: found[f"modelspec.{name}"] for name in FIELDS} == FIELDS
    assert decoded(found["modelspec.thumbnail"]).size == (64, 64)
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert ("ss_steps" in found) != no_metadata
    header = read_header(run.outputs.final)
    body = hashlib.sha256(run.outputs.final.read_bytes()[header.size :]).hexdigest()
    assert found["modelspec.hash_sha256"] == f"0x{body}"
    assert file_hashes(run.outputs.final)["sshs_model_hash"] == found["sshs_model_hash"] == body


def test_fields_that_are_not_given_are_left_out(run_of) -> None:
    run = run_of(max_train_steps=1, metadata_author="")
    train(run)
    found = {key for key in read_lora(run.outputs.final).metadata if key.startswith("modelspec.")}
    least = {"sai_model_spec", "architecture", "implementation", "title", "resolution", "date", "prediction_type"}
    assert found == {f"modelspec.{name}" for name in (*least, "hash_sha256")}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"optimizer_type": "adafactor"},
            {
                "ss_optimizer": "transformers.optimization.Adafactor(relative_step=True)",
                "ss_lr_scheduler": "adafactor:0.0001",
                "ss_learning_rate": "None",
            },
        ),
        (
            {"optimizer_type": "SGDNesterov", "optimizer_args": ["momentum=0.5"]},
            {"ss_optimizer": "torch.optim.sgd.SGD(nesterov=True,momentum=0.5)", "ss_learning_rate": "0.0001"},
        ),
        (
            {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=1"]},
            {"ss_optimizer": "torch.optim.adamw.AdamW", "ss_lr_scheduler": "StepLR"},
        ),
    ],
)
def test_the_file_tells_which_optimizer_and_schedule_made_it(run_of, given, expected) -> None:
    run = run_of(max_train_steps=1, **given)
    found = saving.metadata(run, run.outputs.final, 1, 1)
    assert {name: found[name] for name in expected} == expected


def test_the_base_is_hashed_beside_the_steps_and_once(run_of, tmp_path, monkeypatch) -> None:
    """The hash of a VAE that is given for itself stands for the base model's: the tests' models are folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vae, taken, allowed = tmp_path / "vae.safetensors", [], Event()
    vae.write_bytes(b"the model is a stand-in, and so is its VAE")
    real = hashes.file_hashes

    def slow(path: Path) -> dict[str, str]:
        taken.append(path)
        assert allowed.wait(60)
        return real(path)

    monkeypatch.setattr(hashes, "file_hashes", slow)
    first = run_of(vae=str(vae), max_train_steps=1)
    fed = list(first.feed(first.batches_left(0, 0)))
    training_step(first, 0, fed)  # although no hash is there yet
    allowed.set()
    train(first)
    train(run_of(vae=str(vae), max_train_steps=1))
    assert taken == [vae]
    metadata = read_lora(first.outputs.final).metadata
    assert metadata["ss_new_vae_hash"] == hashlib.sha256(vae.read_bytes()).hexdigest()
