"""Metadata and hashes of LoRA files."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch

from backend.header import read_header
from backend.lora.metadata import OFF, TrainingFacts, file_hashes, minimum_metadata, modelspec, training_metadata

REFERENCE = Path(__file__).parents[1] / "data" / "sd15_c3lier_dim1.safetensors"


def test_recomputed_hashes_equal_those_in_the_references_file() -> None:
    metadata = read_header(REFERENCE).metadata
    assert file_hashes(REFERENCE) == {
        "sshs_model_hash": metadata["sshs_model_hash"],
        "sshs_legacy_hash": metadata["sshs_legacy_hash"],
    }


def test_hashes_do_not_change_with_metadata_that_is_not_the_trainers(tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(REFERENCE)
    metadata = read_header(REFERENCE).metadata | {"modelspec.title": "another title", "extra": "x" * 5000}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert file_hashes(tmp_path / "a.safetensors") == file_hashes(REFERENCE)


def test_hashes_of_a_short_file_without_metadata(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.arange(10.0)}, tmp_path / "a.safetensors")
    expected = hashlib.sha256(struct.pack("<10f", *range(10))).hexdigest()
    assert file_hashes(tmp_path / "a.safetensors") == {
        "sshs_model_hash": expected,
        "sshs_legacy_hash": "e3b0c442",  # the SHA-256 of nothing
    }


def test_training_metadata_is_text_and_complete() -> None:
    facts = TrainingFacts(
        base_model_version="sd_v1",
        network_args={"conv_dim": 4, "block_dims": [2, 4]},
        steps=10,
    )
    options = {"network_dim": 8, "network_alpha": 1.0, "text_encoder_lr": None, "seed": None, "output_dir": "/private"}
    metadata = training_metadata(options, facts, {"seed": 42})
    assert {f"ss_{name}": str(value) for name, value in OFF.items()}.items() <= metadata.items()
    assert {name: value for name, value in metadata.items() if name.removeprefix("ss_") not in OFF} == {
        "ss_zero_terminal_snr": "False",
        "ss_network_dim": "8",
        "ss_network_alpha": "1.0",
        "ss_text_encoder_lr": "None",
        "ss_seed": "42",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_args": '{"conv_dim": "4", "block_dims": "2,4"}',
        "ss_steps": "10",
    }


def test_no_metadata_keeps_what_a_reader_needs() -> None:
    metadata = training_metadata({"network_module": "networks.lora", "seed": 1}, TrainingFacts("sd_v1", steps=3))
    assert set(minimum_metadata(metadata)) == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_args",
    }


def test_modelspec_of_an_sd1_lora() -> None:
    assert modelspec("stable-diffusion-v1", "monster", (512, 768), 0.9) == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "monster",
        "modelspec.resolution": "512x768",
        "modelspec.date": "1970-01-01T00:00:00",
        "modelspec.prediction_type": "epsilon",
    }


def test_headers_and_hashes_need_no_torch() -> None:
    code = (
        "import sys; from backend.lora.metadata import file_hashes; from backend.lora.spelling import split_name;"
        f"file_hashes({str(REFERENCE)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
