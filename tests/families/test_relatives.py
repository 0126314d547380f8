"""Relatives of the families, and what is broken: named for what it is, in one line, and never worse."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.errors import UserError
from backend.families import folder as folders
from backend.families import relatives
from backend.families.base import (
    FAMILIES,
    Checkpoint,
    Part,
    empty_modules,
    load_model,
    read_checkpoint,
    write_single_file,
)
from backend.families.build import empty_checkpoint
from backend.families.recognize import family_in, recognize
from backend.families.vae import read_vae
from backend.families.weights import open_weights, weights_of
from backend.families.widths import family_config
from tests.families.checkpoints import assert_same_checkpoint, distinct

UNET = "model.diffusion_model."
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(source: Path, words: str) -> None:
    """Every way in says the same, in one line."""
    for read in (load_model, open_weights):
        with pytest.raises(UserError, match=words) as error:
            read(source)
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600


FOLDERS = {
    "LCM": ({"time_cond_proj_dim": 16}, r"latent consistency model \(LCM\)"),
    "class embeddings": ({"class_embed_type": "projection"}, "class embeddings"),
    "classes": ({"num_class_embeds": 1000}, "class embeddings"),
    "projected": ({"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}, "projection of what its text"),
    "no middle": ({"mid_block_type": None}, "another middle block"),
    "SSD-1B": ({"reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}, "distilled Stable Diffusion XL"),
    "inpainting": ({"in_channels": 9}, r"inpainting model \(9 channels\)"),
    "pix2pix": ({"in_channels": 8}, "InstructPix2Pix"),
    "depth": ({"in_channels": 5}, "depth-to-image"),
    "upscaler": ({"in_channels": 7}, "upscaler"),
    "pixels": ({"in_channels": 3, "out_channels": 6}, "draws pixels"),
    "GLIGEN": ({"attention_type": "gated"}, "GLIGEN"),
    "DeepFloyd": ({"resnet_time_scale_shift": "scale_shift"}, "DeepFloyd"),
    "AnimateDiff": ({"_class_name": "UNetMotionModel"}, "AnimateDiff"),
    "SVD": ({"_class_name": "UNetSpatioTemporalConditionModel"}, "Stable Video Diffusion"),
    "ControlNet": ({"_class_name": "ControlNetModel"}, "ControlNet"),
    "unknown": ({"_class_name": "SomethingNew"}, "SomethingNew"),
    "depths": ({"transformer_layers_per_block": [0, [2, 1], [4, 4, 10], 1]}, "other|SSD-1B|transformer_layers"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_relative_is_named(name: str, copy: Path) -> None:
    change, words = FOLDERS[name]
    change_json(copy / "unet/config.json", **change)
    refused(copy, words)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_another_process_of_noise_is_named(name: str, copy: Path) -> None:
    change_json(copy / "scheduler/scheduler_config.json", _class_name=name)
    refused(copy, f"another process of noise .{name}")


def test_a_folder_that_is_no_model_is_named(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "an empty folder")
    refused(copy / "vae", "the folder of one part, a VAE alone")
    refused(copy / "unet", "the folder of one part, a U-Net alone")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/m.safetensors").write_bytes(b"")
    refused(tmp_path / "files", "it holds m.safetensors, so name that file")
    (copy / "unet").rename(copy / "transformer")
    change_json(copy / "transformer/config.json", _class_name="FluxTransformer2DModel")
    refused(copy, "this is FLUX .a transformer")


def renamed(tensors: dict, **names: tuple[int, ...]) -> dict:
    return tensors | {name: torch.zeros(shape) for name, shape in names.items()}


FILES: dict[str, tuple[str, Callable[[dict], dict], str]] = {
    "LCM": ("sd1", lambda t: renamed(t, **{f"{UNET}time_embed.cond_proj.weight": (32, 16)}), "LCM"),
    "unCLIP": ("sd2", lambda t: renamed(t, **{f"{UNET}label_emb.0.0.weight": (128, 64)}), "class embeddings"),
    "noise": ("sd2", lambda t: renamed(t, **{"noise_augmentor.data_mean": (1, 64)}), "unCLIP"),
    "projected": ("sdxl", lambda t: renamed(t, **{f"{UNET}encoder_hid_proj.weight": (64, 96)}), "projection of what"),
    "inpainting": ("sdxl", lambda t: renamed(t, **{f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}), "inpainting"),
    "pix2pix": ("sd1", lambda t: renamed(t, **{f"{UNET}input_blocks.0.0.weight": (32, 8, 3, 3)}), "InstructPix2Pix"),
    "no middle": ("sdxl", lambda t: {n: v for n, v in t.items() if "middle_block.1." not in n}, "SSD-1B"),
    "shallow": (
        "sdxl",
        lambda t: {n: v for n, v in t.items() if "output_blocks.1.1.transformer_blocks.1." not in n},
        "SSD-1B",
    ),
    "refiner": ("sdxl", lambda t: renamed(t, **{"conditioner.embedders.0.model.ln_final.bias": (4,)}), "refiner"),
    "motion": (
        "sd1",
        lambda t: renamed(t, **{f"{UNET}input_blocks.1.0.motion_modules.0.temporal_transformer.norm.bias": (4,)}),
        "AnimateDiff",
    ),
    "nf4": ("sd1", lambda t: renamed(t, **{f"{UNET}out.2.weight.absmax": (4,)}), "quantised"),
    "integers": ("sd1", lambda t: t | {f"{UNET}out.2.weight": torch.zeros(4, 32, 3, 3).char()}, "quantised"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_relative_is_named(name: str, tmp_path: Path) -> None:
    family, change, words = FILES[name]
    write_single_file(distinct(family=family), tmp_path / "m.safetensors")
    save_file(change(load_file(tmp_path / "m.safetensors")), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=words) as error:
        load_model(tmp_path / "m.safetensors")
    assert len(str(error.value).splitlines()) == 1


BROKEN = {
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a surrogate": b'{"a": "\\ud800"}',
    "a huge number": b'{"sample_size": 1' + b"0" * 40 + b"}",
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "bytes": bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_configuration_is_named(name: str, copy: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        file = copy / part / "config.json"
        before = file.read_bytes()
        file.write_bytes(BROKEN[name])
        refused(copy, f"{part}/config.json")
        file.write_bytes(before)
    (copy / "scheduler/scheduler_config.json").write_bytes(BROKEN[name])
    refused(copy, "scheduler/scheduler_config.json")


def test_a_configuration_that_is_a_pipe_or_in_another_encoding(copy: Path, checkpoint: Checkpoint) -> None:
    file = copy / "vae/config.json"
    text = file.read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        file.write_text(text, encoding=encoding)
        assert_same_checkpoint(read_checkpoint(copy), checkpoint)
    file.unlink()
    os.mkfifo(file)
    refused(copy, "vae/config.json is a device or a pipe")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"block_out_channels": "32"}, "block_out_channels = '32'; a list is expected"),
        ("unet", {"block_out_channels": ["32"] * 4}, "whole numbers are expected"),
        ("unet", {"block_out_channels": [10**9] * 4}, "no such number"),
        ("unet", {"block_out_channels": [0] * 4}, "block_out_channels|makes no model"),
        ("unet", {"cross_attention_dim": {}}, "cross_attention_dim"),
        ("unet", {"attention_head_dim": "8"}, "attention_head_dim"),
        ("unet", {"attention_head_dim": 0}, "attention_head_dim|makes no model"),
        ("unet", {"transformer_layers_per_block": 10**6}, "transformer_layers_per_block"),
        ("unet", {"norm_num_groups": 7}, "makes no model"),
        ("unet", {"act_fn": "nothing"}, "makes no model"),
        ("unet", {"sample_size": [1, 2]}, "sample_size"),
        ("unet", {"center_input_sample": "no"}, "true or false"),
        ("vae", {"scaling_factor": "x"}, "a number is expected"),
        ("vae", {"down_block_types": ["Nothing"] * 4}, "makes no model"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("text_encoder", {"hidden_size": -1}, "whole numbers are expected"),
        ("text_encoder", {"hidden_act": "nothing"}, "makes no model"),
        ("text_encoder", {"num_attention_heads": "3"}, "whole numbers are expected"),
        ("scheduler", {"beta_start": "x"}, "a number is expected"),
        ("scheduler", {"num_train_timesteps": 10**12}, "no such number"),
    ],
)
def test_values_of_the_wrong_type_are_named(part: str, change: dict, words: str, copy: Path) -> None:
    change_json(copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **change)
    refused(copy, words)


def shards(place: Path, count: int = 2, variant: str = "") -> None:
    """Cut a part's file in pieces, with their index."""
    tensors = load_file(place / f"{WEIGHTS}.safetensors")
    names, where = sorted(tensors), {}
    for number in range(count):
        file = f"{WEIGHTS}{variant}-0000{number + 1}-of-0000{count}.safetensors"
        save_file({name: tensors[name] for name in names[number::count]}, place / file)
        where |= dict.fromkeys(names[number::count], file)
    index = f"{WEIGHTS}.safetensors.index{variant}.json"
    (place / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_of_several_sets_of_files_the_whole_one_is_taken(copy: Path, checkpoint: Checkpoint) -> None:
    unet = copy / "unet"
    shards(unet, variant=".fp16")
    broken = {"weight_map": {"x": f"{WEIGHTS}-00001-of-00001.safetensors"}}
    (unet / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(broken))
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)  # beside a whole file
    whole = (unet / f"{WEIGHTS}.safetensors").read_bytes()
    (unet / f"{WEIGHTS}.safetensors").unlink()
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)  # one index has its pieces
    (unet / f"{WEIGHTS}.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)  # a file that is none
    for file in unet.glob("*-of-*"):
        file.unlink()
    (unet / f"{WEIGHTS}.bf16.safetensors").write_bytes(whole)
    assert_same_checkpoint(read_checkpoint(copy), checkpoint)
    (unet / f"{WEIGHTS}.bf16.safetensors").unlink()
    (unet / f"{WEIGHTS}.safetensors").unlink()
    refused(copy, r"index.json: names 1 files that are not there: .*; fetch them")


INDICES = [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"[" * 10**5]


@pytest.mark.parametrize("content", INDICES)
def test_a_broken_index_is_named(content: bytes, copy: Path) -> None:
    (copy / f"unet/{WEIGHTS}.safetensors").unlink()
    (copy / f"unet/{WEIGHTS}.safetensors.index.json").write_bytes(content)
    refused(copy, "index.json")


def test_paths_that_are_no_models_are_one_line(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    long = "x" * 5000
    for name, words in (
        ("pipe.safetensors", "a device or a pipe"),
        ("empty.safetensors", "not a readable safetensors"),
        ("empty.ckpt", "no file of tensors"),
        ("folder.safetensors", "an empty folder"),
        ("m.gguf", "GGUF"),
        (long, "too long"),
        ("a\0b", "has nul in it"),
    ):
        for words_of in (["gen_img", "--prompt", "x", "--outdir", str(tmp_path), "--ckpt"],):
            assert main([*words_of, str(tmp_path / name)]) == 2
            error = capsys.readouterr().err
            assert words in error.lower().replace("gguf", "GGUF") and "Traceback" not in error
    assert main(["gen_img", "--prompt", "x", "--outdir", str(tmp_path), "--ckpt", "/dev/zero"]) == 2
    assert "a device" in capsys.readouterr().err


@pytest.fixture(scope="module")
def meta() -> dict[str, dict[str, torch.Tensor]]:
    """Small single files of every family without numbers."""
    return {name: FAMILIES[name].write_original(empty_checkpoint(family=name))[0] for name in FAMILIES}


PIECES = st.sampled_from(
    ["input_blocks", "0", "1", "2", "op", "weight", "transformer_blocks", "attn", "encoder", "down", "layers", "bias"]
)
NAMES = st.lists(PIECES, min_size=1, max_size=6).map(".".join) | st.text(max_size=20)
PREFIXES = st.sampled_from(
    ["", UNET, "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner."]
)
SHAPES = st.lists(st.integers(0, 9), max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_set_of_tensors_is_a_model_or_one_line(data: st.DataObject, meta: dict) -> None:
    family = data.draw(st.sampled_from(sorted(meta)))
    tensors = dict(meta[family])
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.sampled_from(sorted({name[: name.find(".", 20)] for name in meta[family]})))
        tensors = {name: value for name, value in tensors.items() if not name.startswith(start)}
    for _ in range(data.draw(st.integers(0, 4))):
        name = data.draw(PREFIXES) + data.draw(NAMES) if data.draw(st.booleans()) or not tensors else None
        name = name or data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = torch.empty(data.draw(SHAPES), device="meta")
    fields = st.sampled_from(["modelspec.resolution", "modelspec.architecture"])
    metadata = data.draw(st.dictionaries(fields, st.text()))
    try:
        found = family_in({name: tuple(value.shape) for name, value in tensors.items()}, "m")
        checkpoint = FAMILIES[found].read_original(tensors, metadata, "m")
        empty_modules(checkpoint)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    try:
        weights_of(tensors, metadata, "m")
    except UserError as error:
        assert len(str(error).splitlines()) == 1


VALUES = st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=5)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))


@settings(deadline=None)
@given(st.data())
def test_any_configuration_makes_a_module_or_one_line(data: st.DataObject) -> None:
    family = "sd1"
    part = data.draw(st.sampled_from(["unet", "vae", "text_encoder"]))
    usual = empty_checkpoint(family=family).parts[part].config
    keys = st.sampled_from(sorted(usual)) | st.sampled_from(sorted(relatives._FEATURES)) | st.text(max_size=5)
    config = dict(usual) | data.draw(st.dictionaries(keys, JSON, max_size=3))
    try:
        words = relatives.relative_words(config) if part == "unet" else None
        assert words is None or len(words.splitlines()) == 1
        if words is None:
            made = Part(relatives.checked(config, family_config(family)[part], Path("config.json")), {})
            empty_modules(Checkpoint(family, {part: made}, {}, "m"))
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_as_config_or_index_is_read_or_one_line(content: bytes, tmp_path_factory) -> None:
    place = tmp_path_factory.getbasetemp() / "any"
    place.mkdir(exist_ok=True)
    for name, read in (
        ("config.json", lambda: folders.read_part(place, "vae", family_config("sd1")["vae"])),
        (f"{WEIGHTS}.safetensors.index.json", lambda: folders.read_weights(place, "unet")),
        (f"{WEIGHTS}.safetensors", lambda: folders.read_weights(place, "vae")),
    ):
        (place / name).write_bytes(content)
        try:
            read()
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        (place / name).unlink()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tensors_as_a_vae_are_one_or_one_line(data: st.DataObject, meta: dict, tmp_path_factory) -> None:
    own = {name.removeprefix("first_stage_model."): torch.zeros(value.shape) for name, value in meta["sd1"].items()
           if name.startswith("first_stage_model.")}  # fmt: skip
    prefix = data.draw(st.sampled_from(["", "first_stage_model.", "a.b."]))
    tensors = {prefix + name: value for name, value in own.items() if data.draw(st.integers(0, 200))}
    for _ in range(data.draw(st.integers(0, 3))):
        tensors[data.draw(st.sampled_from(sorted(own)) | NAMES)] = torch.zeros(data.draw(SHAPES))
    path = tmp_path_factory.getbasetemp() / "any-vae.safetensors"
    save_file(tensors, path)
    try:
        read_vae(str(path), Part(family_config("sd1")["vae"], {}))
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        path.unlink()
    assert recognize({}) is None
