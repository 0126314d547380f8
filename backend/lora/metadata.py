"""The text fields of a LoRA file: what training writes (`ss_*`), ModelSpec (`modelspec.*`) and the hashes (`sshs_*`).

Plain values in, text out; knows no torch. All fields are text because the file format has nothing else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.header import METADATA_KEY, pack_header, read_header

MODEL_HASH, LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
# ModelSpec's hash covers the same bytes as the first of these.
MODEL_SPEC, MODEL_SPEC_HASH = "modelspec.sai_model_spec", "modelspec.hash_sha256"
# The old hash of the WebUI's extension covers these bytes of the file and nothing else.
LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
CHUNK = 1 << 20

# Options of a training run that go into the file as they are, under `ss_` and their name.
OPTIONS = (
    "output_name",
    "learning_rate",
    "text_encoder_lr",
    "unet_lr",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "max_train_steps",
    "lr_warmup_steps",
    "lr_scheduler",
    "network_module",
    "network_dim",
    "network_alpha",
    "network_dropout",
    "mixed_precision",
    "v2",
    "clip_skip",
    "max_token_length",
    "cache_latents",
    "seed",
    "training_comment",
    "max_grad_norm",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "prior_loss_weight",
    "scale_weight_norms",
    "noise_offset",
    "noise_offset_random_strength",
    "adaptive_noise_scale",
    "multires_noise_iterations",
    "multires_noise_discount",
    "ip_noise_gamma",
    "ip_noise_gamma_random_strength",
    "min_snr_gamma",
    "loss_type",
    "huber_schedule",
    "huber_scale",
    "huber_c",
    "full_fp16",
    "fp8_base",
    "fp8_base_unet",
    "validation_split",
    "validation_seed",
    "max_validation_steps",
    "validate_every_n_epochs",
    "validate_every_n_steps",
)
# Fields whose option has another name.
RENAMED: Mapping[str, str] = {"debiased_estimation": "debiased_estimation_loss"}
# What readers look for of options that this trainer does not have, with the values that these have while they are off.
# A row goes when its option comes.
OFF: Mapping[str, Any] = {
    "lowram": False,
}
# What `no_metadata` keeps: without it a reader cannot tell what the file is for.
MINIMUM = ("v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args")


@dataclass(frozen=True)
class TrainingFacts:
    """What a run knows beyond its options and its pictures. A field that is None is left out.

    Attributes:
        base_model_version: "sd_v1" and its like.
        network_args: the network's own options.
        session_id: any number that tells runs apart.
        training_started_at, training_finished_at: unix time in seconds.
        steps, epoch: how far training was when the file was written.
        num_batches_per_epoch: of all devices together.
        optimizer: its class with its arguments.
        zero_terminal_snr: the base model's schedule ends in pure noise.
        sd_model_hash, new_sd_model_hash: of the checkpoint file, the WebUI's short old hash and its SHA-256.
        vae_name, vae_hash, new_vae_hash: the same of the VAE, where it is not the model's own.
    """

    base_model_version: str
    network_args: Mapping[str, Any] = field(default_factory=dict)
    v2: bool = False
    session_id: int | None = None
    training_started_at: float | None = None
    training_finished_at: float | None = None
    steps: int | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    num_batches_per_epoch: int | None = None
    optimizer: str | None = None
    zero_terminal_snr: bool = False
    sd_model_name: str | None = None
    sd_model_hash: str | None = None
    new_sd_model_hash: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    new_vae_hash: str | None = None


def training_metadata(
    options: Mapping[str, Any], facts: TrainingFacts, changes: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The `ss_*` fields of a training run.

    Args:
        options: the run's resolved options by name; those in `OPTIONS` are written, None as "None", and `OFF`.
        facts: what the run knows beyond its options.
        changes: values that override both, such as a seed that was drawn or a rank read from a file.
    """
    found = dict(OFF) | {name: options[name] for name in OPTIONS if name in options}
    found |= {name: options[option] for name, option in RENAMED.items() if option in options}
    rates = found.get("text_encoder_lr")
    if isinstance(rates, tuple):
        # One rate for all text encoders, as readers know it, or a list where each has its own.
        found["text_encoder_lr"] = None if not rates else rates[0] if len(rates) == 1 else list(rates)
    found |= {name: value for name, value in vars(facts).items() if value is not None}
    found["network_args"] = {name: _argument(value) for name, value in facts.network_args.items()}
    found |= dict(changes or {})
    return {f"ss_{name}": _text(value) for name, value in found.items()}


def minimum_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The fields that stay when the user wants no metadata."""
    kept = {f"ss_{name}" for name in MINIMUM}
    return {name: value for name, value in metadata.items() if name in kept}


def modelspec(
    architecture: str,
    title: str,
    resolution: tuple[int, int],
    written_at: float,
    prediction_type: str = "epsilon",
    implementation: str = "diffusers",
    described: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The `modelspec.*` fields of a LoRA (ModelSpec 1.0.1, https://github.com/Stability-AI/ModelSpec).

    Args:
        architecture: of the base model, such as "stable-diffusion-v1".
        title: of the file.
        resolution: (width, height) that it was trained at.
        written_at: unix time in seconds.
        prediction_type: "epsilon" or "v".
        implementation: the code that the file is meant for.
        described: further fields by name, such as "author", "timestep_range" (the text "0,1000") or "encoder_layer" (of
            the text encoder, from the end); a title among them is taken in place of `title`. None is left out.
    """
    fields = {
        MODEL_SPEC: "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
        "modelspec.date": datetime.fromtimestamp(int(written_at), UTC).replace(tzinfo=None).isoformat(),
        "modelspec.prediction_type": prediction_type,
    }
    return fields | {f"modelspec.{name}": str(value) for name, value in (described or {}).items() if value is not None}


def hashes(metadata: Mapping[str, str], tensors: Mapping[str, object], body: Iterable[bytes]) -> dict[str, str]:
    """Both `sshs_*` hashes of a file.

    The first is the SHA-256 of all tensor bytes. The second covers 64 KiB at a fixed place of the file, as it would be
    if the `ss_*` fields were the only metadata; of a file too short for that it is the hash of nothing.

    Args:
        metadata: of the file; only its `ss_*` fields count.
        tensors: the entries of the file's header, without the metadata.
        body: the bytes after the header, in pieces.
    """
    kept = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    start = pack_header({METADATA_KEY: kept, **tensors} if kept else dict(tensors))
    model, legacy = hashlib.sha256(), hashlib.sha256()
    legacy.update(start[LEGACY_START : LEGACY_START + LEGACY_LENGTH])
    position = len(start)
    for piece in body:
        model.update(piece)
        first, last = max(LEGACY_START - position, 0), max(LEGACY_START + LEGACY_LENGTH - position, 0)
        legacy.update(piece[first:last])
        position += len(piece)
    return {MODEL_HASH: model.hexdigest(), LEGACY_HASH: legacy.hexdigest()[:8]}


def file_hashes(path: str | Path) -> dict[str, str]:
    """Both `sshs_*` hashes, recomputed from the tensors of a safetensors file.

    Raises:
        UserError: the file is missing or is no complete safetensors file.
    """
    header = read_header(path)
    with open(path, "rb") as file:
        file.seek(header.size)
        return hashes(header.metadata, header.entries, iter(lambda: file.read(CHUNK), b""))


def _argument(value: Any) -> str:
    """A network's option as it would be written on a command line; other programs expect text here."""
    return ",".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
