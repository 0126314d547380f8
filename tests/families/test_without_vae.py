"""Models without a VAE, or with the leftovers of one: usable with a VAE that is named, else one line that says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.errors import UserError
from backend.families.base import Checkpoint, LoadOptions, load_model, read_checkpoint
from tests.families.checkpoints import assert_same, assert_same_checkpoint

VAE = "first_stage_model."
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def bare(single_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without its VAE."""
    path = tmp_path_factory.mktemp("bare") / "novae.safetensors"
    save_file({name: value for name, value in load_file(single_file).items() if not name.startswith(VAE)}, path)
    return path


@pytest.fixture(scope="module")
def vae(single_file: Path) -> dict[str, torch.Tensor]:
    """The VAE's tensors in the original's names."""
    found = load_file(single_file).items()
    return {name.removeprefix(VAE): value for name, value in found if name.startswith(VAE)}


def in_diffusers_names(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "vae/diffusion_pytorch_model.safetensors")


def with_old_names(tensors: dict[str, torch.Tensor], wide: bool) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in tensors.items():
        for new, old in OLD.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        attention = ".attentions.0." in name and name.endswith("weight") and value.dim() == 2
        found[name] = value[..., None, None].contiguous() if wide and attention else value
    return found


def leftovers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    beside = {"loss.discriminator.main.0.weight": 3, "loss.logvar": 1, "loss.perceptual_loss.lin0.model.1.weight": 2}
    beside |= {"model_ema.decay": 1, "model_ema.encoderconv_inweight": 4}
    return tensors | {name: torch.ones(count) for name, count in beside.items()}


def spellings(vae: dict[str, torch.Tensor], folder: Path) -> dict[str, Callable[[Path], None]]:
    """Ways in which people have a VAE, by the name of the file."""
    diffusers = in_diffusers_names(folder)
    moved = {name.replace("quant_conv.", "encoder.quant_conv.", 1) if name.startswith("quant_conv.") else name: value
             for name, value in vae.items()}  # fmt: skip
    moved = {name.replace("post_", "decoder.post_", 1) if name.startswith("post_") else name: value
             for name, value in moved.items()}  # fmt: skip
    flat = {name: value[:, :, 0, 0].contiguous() if ".attn_1." in name and value.dim() == 4 or "quant_conv.w" in name
            else value for name, value in vae.items()}  # fmt: skip
    return {
        "bare.vae.safetensors": lambda path: save_file(vae, path),
        "first.safetensors": lambda path: save_file({VAE + name: value for name, value in vae.items()}, path),
        "module.safetensors": lambda path: save_file({f"module.vae.{key}": value for key, value in vae.items()}, path),
        "loss.safetensors": lambda path: save_file(leftovers(vae), path),
        "flat.safetensors": lambda path: save_file(flat, path),
        "moved.safetensors": lambda path: save_file(moved, path),
        "diffusers.safetensors": lambda path: save_file(diffusers, path),
        "old.safetensors": lambda path: save_file(with_old_names(diffusers, wide=False), path),
        "old_wide.safetensors": lambda path: save_file(with_old_names(diffusers, wide=True), path),
        "a.vae.pt": lambda path: torch.save({"epoch": 3, "state_dict": leftovers(vae)}, path),
        "b.ckpt": lambda path: torch.save({"state_dict": {VAE + name: value for name, value in vae.items()}}, path),
        "c.pt": lambda path: torch.save(vae, path, _use_new_zipfile_serialization=False),
        "d.bin": lambda path: torch.save({"model": {"vae": vae}}, path),
    }


def test_every_usual_form_of_a_vae_is_read(bare: Path, vae: dict, folder: Path, tmp_path: Path) -> None:
    wanted = in_diffusers_names(folder)
    for name, write in spellings(vae, folder).items():
        write(tmp_path / name)
        found = read_checkpoint(bare, vae=str(tmp_path / name)).parts["vae"].tensors
        assert_same({key: value.contiguous() for key, value in found.items()}, wanted)


def test_a_vae_may_be_a_folder_or_lie_in_one(bare: Path, folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(folder / "vae", tmp_path / "told" / "vae")
    (tmp_path / "told" / "vae" / "config.json").unlink()
    for place in (folder, folder / "vae", tmp_path / "told"):
        assert_same_checkpoint(read_checkpoint(bare, vae=str(place)), checkpoint)


def test_a_model_without_a_vae_says_so_in_one_line(bare: Path, folder: Path, tmp_path: Path, capsys) -> None:
    torch.save({"state_dict": load_file(bare)}, tmp_path / "novae.ckpt")
    shutil.copytree(folder, tmp_path / "novae")
    shutil.rmtree(tmp_path / "novae" / "vae")
    for source in (bare, tmp_path / "novae.ckpt", tmp_path / "novae"):
        target = tmp_path / ("out.safetensors" if source.is_dir() else f"out{source.suffix[1:]}")
        assert main(["convert_diffusers20_original_sd", str(source), str(target)]) == 2
        assert capsys.readouterr().err == f"{source}: the VAE is missing (a NoVAE model); name one with --vae\n"
        assert main(["convert_diffusers20_original_sd", str(source), str(target), "--vae", str(folder)]) == 0
        model = load_model(source, options=LoadOptions(vae=str(folder)))
        assert model.latent_channels == 4 and model.vae_scale_factor == 8
        capsys.readouterr()
    assert load_file(tmp_path / "out.safetensors")[f"{VAE}encoder.conv_in.weight"].dtype == torch.float16


def test_leftovers_of_a_vae_are_told_and_replaced(bare: Path, single_file: Path, folder: Path, tmp_path: Path) -> None:
    whole = load_file(single_file)
    pieces = {
        "loss": {f"{VAE}loss.logvar": torch.zeros(1), f"{VAE}model_ema.decay": torch.zeros(1)},
        "encoder": {name: value for name, value in whole.items() if name.startswith(f"{VAE}encoder")},
        "last": {f"{VAE}decoder.conv_out.weight": whole[f"{VAE}decoder.conv_out.weight"]},
        "strange": {name: value for name, value in whole.items() if name.startswith(VAE)}
        | {f"{VAE}encoder.gate.weight": torch.zeros(1)},
    }
    words = {"loss": "VAE is missing", "strange": "encoder.gate.weight"}
    for name, left in pieces.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(load_file(bare) | left, path)
        with pytest.raises(UserError, match=words.get(name, "incomplete.*--vae")) as error:
            load_model(path)
        assert "\n" not in str(error.value)
        load_model(path, options=LoadOptions(vae=str(folder / "vae")))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "vae/config.json").write_text("{")
    load_model(broken, options=LoadOptions(vae=str(folder / "vae")))


def test_a_vae_of_another_kind_is_named(bare: Path, vae: dict, folder: Path, tmp_path: Path) -> None:
    def check(name: str, words: str) -> None:
        with pytest.raises(UserError, match=words) as error:
            read_checkpoint(bare, vae=str(tmp_path / name))
        assert "\n" not in str(error.value)

    wide = vae | {"decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}
    save_file({name: value for name, value in wide.items() if "quant_conv" not in name}, tmp_path / "sd3.safetensors")
    check("sd3.safetensors", "16 channels, the model's 4")
    save_file({name: value for name, value in vae.items() if "quant_conv" not in name}, tmp_path / "half.safetensors")
    check("half.safetensors", r"half.safetensors: the VAE does not fit together: 4 tensors are missing")
    save_file({"x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    check("lora.safetensors", "holds no VAE; it is a LoRA file")
    for name, change, words in (
        ("tiny", {"_class_name": "AutoencoderTiny"}, r"a tiny autoencoder \(TAESD\)"),
        ("moved", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "latents are shifted"),
        ("text", {"block_out_channels": "32"}, "block_out_channels = '32'; a list is expected"),
        ("huge", {"layers_per_block": 10**9}, "layers_per_block"),
    ):
        shutil.copytree(folder / "vae", tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        check(name, words)


def test_the_scale_of_a_models_own_vae_stays(folder: Path, vae: dict, tmp_path: Path) -> None:
    """A file of a VAE does not tell the scale of its latents."""
    shutil.copytree(folder, tmp_path / "m")
    config = tmp_path / "m/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    save_file(vae, tmp_path / "v.safetensors")
    found = read_checkpoint(tmp_path / "m", vae=str(tmp_path / "v.safetensors")).parts["vae"]
    assert found.config["scaling_factor"] == 0.5


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_tools_need_no_vae(kind: str, bare: Path, folder: Path, tmp_path: Path, capsys) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{key}.lora_down.weight": torch.randn(2, 32), f"{key}.lora_up.weight": torch.randn(32, 2)}
    save_file(lora, tmp_path / "l.safetensors")
    source = bare
    if kind == "folder":
        source = tmp_path / "m"
        shutil.copytree(folder, source)
        shutil.rmtree(source / "vae")
    made, out = str(tmp_path / "o.safetensors"), str(tmp_path / "d.safetensors")
    words = ["merge_lora", "--sd_model", str(source), "--models", str(tmp_path / "l.safetensors"), "--save_to", made]
    assert main([*words, "--save_precision", "float"]) == 0, capsys.readouterr().err
    assert not any(name.startswith(VAE) for name in load_file(made))
    words = ["extract_lora_from_models", "--model_org", str(source), "--model_tuned", made, "--save_to", out]
    assert main([*words, "--dim", "2"]) == 0, capsys.readouterr().err


def test_a_text_encoder_that_is_missing_is_named(single_file: Path, folder: Path, tmp_path: Path, capsys) -> None:
    tensors = {name: value for name, value in load_file(single_file).items() if not name.startswith("cond_stage")}
    save_file(tensors, tmp_path / "note.safetensors")
    shutil.copytree(folder, tmp_path / "note")
    shutil.rmtree(tmp_path / "note" / "text_encoder")
    lora = str(tmp_path / "l.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}, lora)
    for source in (tmp_path / "note.safetensors", tmp_path / "note"):
        target = str(tmp_path / ("x" if source.is_file() else "x.safetensors"))
        for words in (
            ["convert_diffusers20_original_sd", str(source), target],
            ["merge_lora", "--sd_model", str(source), "--models", lora, "--save_to", f"{target}.pt"],
        ):
            assert main(words) == 2
            error = capsys.readouterr().err.strip().splitlines()
            assert "the text encoder is missing" in error[-1] and "Traceback" not in "".join(error)
