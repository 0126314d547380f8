"""A model's widths are found without torch: from a folder's configs, from a file's header, else the usual ones."""

import json
import math
import os
from pathlib import Path

import pytest

from backend.header import pack_header
from backend.tables.sizes import FULL_SIZE, ModelWidths, sized_targets
from backend.tables.widths import find_widths, widths_of_shapes

UNET = {
    "block_out_channels": [32, 64, 96, 128],
    "cross_attention_dim": 48,
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
TEXT = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 100}


def shapes_of(widths: ModelWidths) -> dict[str, tuple[int, ...]]:
    """What the header of a checkpoint of these widths says."""
    shapes = {}
    for one in sized_targets(widths):
        kernel = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}[one.target.kind]
        shape = (one.outputs, one.inputs // (9 if kernel == (3, 3) else 1), *kernel)
        shapes[one.target.checkpoint_key] = shape if one.target.third is None else (3 * one.outputs, one.inputs)
    if widths.family == "sd2":
        shapes["cond_stage_model.model.transformer.resblocks.23.mlp.c_fc.weight"] = (4096, 1024)
    return shapes


def write_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    path.write_bytes(pack_header(entries))
    os.truncate(path, path.stat().st_size + end)  # the numbers take no place on the disk
    return path


def write_folder(root: Path, unet: object, **texts: object) -> Path:
    for name, config in {"unet": unet, **texts}.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("family", FULL_SIZE)
def test_a_file_tells_its_widths(tmp_path: Path, family: str) -> None:
    path = write_file(tmp_path / "any.safetensors", shapes_of(FULL_SIZE[family]))
    found = find_widths(str(path))
    assert found.widths == FULL_SIZE[family]
    assert found.source == "read from the model's file"


def test_a_folder_tells_its_widths_anew_when_it_changes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", UNET, text_encoder=TEXT)
    found = find_widths(str(folder))
    assert (found.widths.family, found.widths.unet.channels, found.widths.unet.cross) == ("sd1", (32, 64, 96, 128), 48)
    assert found.widths.texts[0].inner == 100
    (folder / "unet" / "config.json").write_text(json.dumps({**UNET, "cross_attention_dim": 1024}))
    assert find_widths(str(folder)).widths.family == "sd2"


def test_an_xl_folder_has_two_text_encoders_and_23_blocks(tmp_path: Path) -> None:
    xl = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
    }
    texts = [{"num_hidden_layers": n, "hidden_size": w, "intermediate_size": 4 * w} for n, w in ((12, 768), (32, 1280))]
    folder = write_folder(tmp_path / "model", xl, text_encoder=texts[0], text_encoder_2=texts[1])
    widths = find_widths(str(folder)).widths
    assert widths == FULL_SIZE["sdxl"] and widths.unet.shape.blocks.count == 23


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("runwayml/stable-diffusion-v1-5", "sd1"),
        ("stabilityai/stable-diffusion-2-1-base", "sd2"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("someone/pixlart", "sd1"),
        ("\0", "sd1"),
        ("", "sd1"),
    ],
)
def test_what_is_not_here_gets_the_usual_widths_of_its_name(name: str, family: str) -> None:
    found = find_widths(name)
    assert found.widths is FULL_SIZE[family]
    assert found.source.startswith("usual ones of Stable Diffusion")


@pytest.mark.parametrize(
    "unet",
    [
        [1, 2],
        {**UNET, "block_out_channels": [32, 64]},
        {**UNET, "block_out_channels": ["32", 64, 96, 128]},
        {**UNET, "block_out_channels": [1 << 40, 64, 96, 128]},
        {**UNET, "layers_per_block": 10**9},
        {**UNET, "transformer_layers_per_block": [10**9] * 4},
        {**UNET, "down_block_types": ["DownBlock2D"] * 5000, "block_out_channels": [8] * 5000},
        {**UNET, "addition_embed_type": "text_time"},
    ],
)
def test_a_broken_config_is_said_and_costs_nothing(tmp_path: Path, unet: object) -> None:
    found = find_widths(str(write_folder(tmp_path / "model", unet, text_encoder=TEXT)))
    assert found.widths is FULL_SIZE["sd1"] and found.source.endswith("could not be read")


def test_a_pipe_in_the_place_of_a_config_hangs_nobody(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", UNET, text_encoder=TEXT)
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    assert find_widths(str(folder)).source.endswith("could not be read")


def test_a_file_that_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    path = write_file(tmp_path / "any.safetensors", {"lora_unet_a.lora_down.weight": (4, 8)})
    assert find_widths(str(path)).source.endswith("could not be read")
    path.write_bytes(b"\xff" * 100)
    assert find_widths(str(path)).source.endswith("could not be read")
    with pytest.raises(KeyError):
        widths_of_shapes({})
