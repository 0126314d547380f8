"""The original single-file layout: read as diffusers reads it, written bit for bit, refused by name."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.errors import UserError
from backend.families import build
from backend.families.base import FAMILIES, Checkpoint, Part, load_model, read_checkpoint, write_single_file
from tests.families.checkpoints import assert_same, assert_same_checkpoint, distinct

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
Tensors = dict[str, Tensor]


@pytest.fixture
def rewrite(single_file: Path, tmp_path: Path) -> Callable[[Callable[[Tensors], Tensors]], Path]:
    """Write the small single file again with changed tensors."""

    def write(change: Callable[[Tensors], Tensors]) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file({name: value.contiguous() for name, value in change(load_file(single_file)).items()}, path)
        return path

    return write


def test_diffusers_own_converter_reads_what_we_write(single_file: Path, checkpoint: Checkpoint) -> None:
    tensors, parts = load_file(single_file), checkpoint.parts
    assert_same(parts["unet"].tensors, convert_ldm_unet_checkpoint(dict(tensors), parts["unet"].config))
    assert_same(parts["vae"].tensors, convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config))
    clip = convert_ldm_clip_checkpoint(dict(tensors))
    clip = {name.removeprefix("text_model."): value for name, value in clip.items() if "position_ids" not in name}
    assert_same(parts["text_encoder"].tensors, clip)


def test_layout_of_the_file(single_file: Path) -> None:
    tensors = load_file(single_file)
    assert tensors[CLIP + "text_model.embeddings.position_ids"].tolist() == [list(range(77))]
    assert tensors[VAE + "encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert tensors[UNET + "input_blocks.1.1.proj_in.weight"].shape == (32, 32, 1, 1)
    assert {name.split(".")[0] for name in tensors} == {"model", "first_stage_model", "cond_stage_model"}


def test_widths_and_layers_are_read_from_the_tensors(single_file: Path) -> None:
    model = load_model(single_file)
    assert model.unet.config.block_out_channels == [32, 64, 96, 128]
    assert model.unet.config.cross_attention_dim == 64
    assert model.unet.config.attention_head_dim == 8
    assert model.vae.config.block_out_channels == [32, 64, 64, 64]
    assert model.vae.config.scaling_factor == 0.18215
    text = model.text_encoders[0].config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size) == (
        64,
        2,
        1,
        256,
    )
    assert (text.hidden_act, text.vocab_size, text.max_position_embeddings) == ("quick_gelu", 49408, 77)
    assert model.scheduler["beta_schedule"] == "scaled_linear"
    assert (model.scheduler["beta_start"], model.scheduler["beta_end"]) == (0.00085, 0.012)
    assert (model.vae_scale_factor, model.latent_channels, model.resolution) == (8, 4, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_round_trip_keeps_every_bit(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    original = distinct(dtype)
    # Files of mixed precision exist; each tensor keeps its own type.
    vae = original.parts["vae"].tensors
    vae["encoder.conv_in.weight"] = vae["encoder.conv_in.weight"].float()
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    write_single_file(original, first)
    again = read_checkpoint(first)
    assert_same_checkpoint(again, original)
    write_single_file(again, second)
    if suffix == ".safetensors":
        assert first.read_bytes() == second.read_bytes()
    else:
        assert_same(torch.load(first)["state_dict"], torch.load(second)["state_dict"])


def test_a_size_that_nobody_ships(tmp_path: Path) -> None:
    """Nothing is assumed: other widths, a deeper text encoder, a VAE of three levels and one layer."""
    config = build.sd1_configs()
    config["unet"] |= {"block_out_channels": [32, 32, 64, 96], "cross_attention_dim": 128}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    config["vae"] |= blocks | {"block_out_channels": [32, 32, 64], "layers_per_block": 1}
    config["text_encoder"] |= {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    parts = {}
    for name in ("unet", "vae", "text_encoder"):
        tensors = FAMILIES["sd1"].build(name, config[name]).state_dict()
        parts[name] = Part(config[name], {key: torch.randn_like(value) for key, value in tensors.items()})
    original = Checkpoint("sd1", parts, config["scheduler"], "odd")
    write_single_file(original, tmp_path / "odd.safetensors")
    assert_same_checkpoint(read_checkpoint(tmp_path / "odd.safetensors"), original)
    model = load_model(tmp_path / "odd.safetensors")
    assert model.vae_scale_factor == 4
    assert model.text_encoders[0].config.num_attention_heads == 2


def test_averages_schedules_and_training_state_are_ignored(rewrite: Callable, checkpoint: Checkpoint) -> None:
    def add(tensors: Tensors) -> Tensors:
        ema = {f"model_ema.{name.replace('.', '')}": value + 1 for name, value in tensors.items() if UNET in name}
        rest = {"betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.tensor(0.9)}
        rest |= {
            CLIP + "text_projection.weight": torch.ones(2),
            VAE + "model_ema.num_updates": torch.tensor(3),
            "cond_stage_model.logit_scale": torch.tensor(1.0),
        }
        return tensors | ema | rest

    assert_same_checkpoint(read_checkpoint(rewrite(add)), checkpoint)


def without_position_ids(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if "position_ids" not in name}


def without_text_model(tensors: Tensors) -> Tensors:
    return {name.replace(".text_model.", "."): value for name, value in tensors.items()}


def with_attention_as_matrices(tensors: Tensors) -> Tensors:
    return {
        name: value[:, :, 0, 0] if ".attn_1." in name and value.dim() == 4 else value for name, value in tensors.items()
    }


def with_attention_renamed(tensors: Tensors) -> Tensors:
    names = {".q.": ".to_q.", ".k.": ".key.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}
    renamed = {}
    for name, value in tensors.items():
        if ".attn_1." in name:
            for old, new in names.items():
                name = name.replace(f"attn_1{old}", f"attn_1{new}")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    "change", [without_position_ids, without_text_model, with_attention_as_matrices, with_attention_renamed]
)
def test_spellings_that_are_about(change: Callable, rewrite: Callable, checkpoint: Checkpoint) -> None:
    assert_same_checkpoint(read_checkpoint(rewrite(change)), checkpoint)


def drop(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def drop_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(prefix)}


def put(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape)}


INCOMPLETE = {
    "one tensor missing": (drop(UNET + "out.0.weight"), ["1 tensors are missing", "unet.conv_norm_out.weight"]),
    "no text encoder": (drop_prefix("cond_stage_model."), ["text encoder is missing"]),
    "no VAE": (drop_prefix(VAE), ["VAE is missing", "--vae"]),
    "one too many": (put(UNET + "input_blocks.1.0.gate.weight", 3), ["unexpected", "down_blocks.0.resnets.0.gate"]),
    "an unknown module": (put(UNET + "input_hint_block.0.weight", 3), ["does not have", "input_hint_block.0.weight"]),
    "a wrong shape": (
        put(VAE + "encoder.norm_out.weight", 3),
        ["wrong shape", "norm_out.weight [3] instead of [64]"],
    ),
    "an inpainting model": (put(UNET + "input_blocks.0.0.weight", 32, 9, 3, 3), ["9 channels", "inpainting"]),
}


@pytest.mark.parametrize("case", list(INCOMPLETE))
def test_a_model_that_does_not_fit_is_one_clear_line(case: str, rewrite: Callable) -> None:
    change, words = INCOMPLETE[case]
    path = rewrite(change)
    with pytest.raises(UserError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message


OTHERS = [
    ("LoRA", {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8), "x.alpha": ()}),
    ("Stable Diffusion XL refiner", {"conditioner.embedders.0.model.transformer.resblocks.0.ln_1.bias": (1280,)}),
    ("Stable Diffusion 3", {UNET + "joint_blocks.0.context_block.attn.qkv.weight": (8, 8)}),
    ("FLUX", {"double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    ("ControlNet", {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}),
    ("textual inversion", {"emb_params": (2, 768)}),
    ("other blocks", {UNET + f"input_blocks.{row}.0.op.weight": (8, 8, 3, 3) for row in (2, 4)}),
    ("U-Net alone", {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}),
    ("a VAE", {"decoder.up.0.block.0.conv1.weight": (8, 8, 3, 3)}),
    ("text encoder", {"text_model.final_layer_norm.weight": (8,)}),
    ("is known here", {"fc.weight": (2, 2)}),
]


@pytest.mark.parametrize(("words", "shapes"), OTHERS)
def test_another_kind_of_file_is_named_as_what_it_is(words: str, shapes: dict, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(UserError, match=words) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "a Stable Diffusion 1, Stable Diffusion 2 or Stable Diffusion XL model is needed" in str(caught.value)


def test_garbage_and_damage(tmp_path: Path, single_file: Path) -> None:
    for name in ("a.safetensors", "a.ckpt", "a.pt"):
        (tmp_path / name).write_bytes(b"this is no model at all, only a line of text")
        with pytest.raises(UserError, match=name):
            load_model(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=name):
            load_model(tmp_path / name)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(single_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(cut)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(UserError, match="not a model file"):
        load_model(text)


class Bomb:
    """Pickles as a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_never_runs_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "extra": Bomb(tmp_path / "ran")}, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match="more than tensors"):
        load_model(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "ran").exists()


def test_trainer_state_of_the_first_checkpoints_is_skipped(
    tmp_path: Path, single_file: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 1.4's own file pickles a class of pytorch_lightning beside its weights."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, module if part == name else types.ModuleType(part))
    content = {"state_dict": load_file(single_file), "global_step": 470000}
    content["callbacks"] = {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}}
    torch.save(content, tmp_path / "v1-4.ckpt")
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.delitem(sys.modules, part)
    assert_same_checkpoint(read_checkpoint(tmp_path / "v1-4.ckpt"), checkpoint)


def test_old_pickle_format(tmp_path: Path, single_file: Path, checkpoint: Checkpoint) -> None:
    torch.save(load_file(single_file), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert_same_checkpoint(read_checkpoint(tmp_path / "old.ckpt"), checkpoint)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"attention_head_dim": 4}),
        ("vae", {"scaling_factor": 0.13}),
        ("text_encoder", {"hidden_act": "gelu"}),
        ("scheduler", {"beta_end": 0.02}),
    ],
)
def test_what_a_single_file_cannot_say_is_not_written(part: str, change: dict, tmp_path: Path) -> None:
    checkpoint = distinct()
    (checkpoint.scheduler if part == "scheduler" else checkpoint.parts[part].config).update(change)
    with pytest.raises(UserError, match=next(iter(change))):
        write_single_file(checkpoint, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
