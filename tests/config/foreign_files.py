"""Configs of other programs as the tests of the dialects use them."""

import json
from pathlib import Path
from typing import Any

from backend.config.dialects.foreign import read_foreign
from backend.config.dialects.reading import Imported
from backend.header import METADATA_KEY, pack_header

REQUIRED = {"pretrained_model_name_or_path": "m", "dataset_config": "d", "output_dir": "o"}
# A config as the GUI's LoRA tab saves it: every field of its pages for Stable Diffusion, many at their defaults.
GUI: dict[str, Any] = {
    "LoRA_type": "Kohya LoCon",
    "LyCORIS_preset": "full",
    "adaptive_noise_scale": 0,
    "additional_parameters": '--log_prefix=xl "--training_comment=by hand" --base_weights a.safetensors b.safetensors',
    "async_upload": False,
    "block_alphas": "",
    "block_dims": "",
    "block_lr_zero_threshold": "",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64.0,
    "cache_latents": True,
    "cache_latents_to_disk": False,
    "caption_dropout_every_n_epochs": 0.0,
    "caption_dropout_rate": 0,
    "caption_extension": ".txt",
    "clip_skip": "2",
    "color_aug": False,
    "conv_alpha": 4,
    "conv_block_alphas": "",
    "conv_block_dims": "",
    "conv_dim": 8,
    "dataset_config": "",
    "debiased_estimation_loss": False,
    "decompose_both": False,
    "deepspeed": True,
    "dim_from_weights": False,
    "down_lr_weight": "",
    "dynamo_backend": "no",
    "enable_bucket": True,
    "epoch": 10,
    "extra_accelerate_launch_args": "",
    "factor": -1,
    "flip_aug": False,
    "flux1_checkbox": False,
    "fp8_base": False,
    "full_bf16": False,
    "full_fp16": False,
    "gpu_ids": "",
    "gradient_accumulation_steps": 1.0,
    "gradient_checkpointing": True,
    "guidance_scale": 3.5,
    "huber_c": 0.1,
    "huber_schedule": "snr",
    "huggingface_token": "hf_secret",
    "keep_tokens": "0",
    "learning_rate": "0.0001",
    "log_with": "",
    "logging_dir": "",
    "loss_type": "l2",
    "lr_scheduler": "cosine",
    "lr_scheduler_args": "",
    "lr_scheduler_num_cycles": "",
    "lr_scheduler_power": "",
    "lr_warmup": 10,
    "lr_warmup_steps": 0,
    "max_bucket_reso": 2048,
    "max_data_loader_n_workers": "0",
    "max_grad_norm": 1,
    "max_resolution": "512,512",
    "max_timestep": 1000,
    "max_token_length": "75",
    "max_train_epochs": "",
    "max_train_steps": "",
    "mem_eff_attn": False,
    "mid_lr_weight": "0",
    "min_bucket_reso": 256,
    "min_snr_gamma": 0,
    "min_timestep": 0,
    "mixed_precision": "bf16",
    "model_list": "custom",
    "module_dropout": 0,
    "multi_gpu": True,
    "multires_noise_discount": 0.2,
    "multires_noise_iterations": 8,
    "network_alpha": 16,
    "network_dim": 32,
    "network_dropout": 0,
    "noise_offset": 0,
    "noise_offset_type": "Original",
    "num_cpu_threads_per_process": 2,
    "optimizer": "adamw8bit",
    "optimizer_args": '"weight_decay=0.1" "betas=0.9,0.99"',
    "output_dir": "/outputs",
    "output_name": "mine",
    "persistent_data_loader_workers": 1,
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
    "prior_loss_weight": 1.0,
    "random_crop": False,
    "rank_dropout": 0.1,
    "resume": "",
    "sample_every_n_epochs": 2,
    "sample_every_n_steps": 0,
    "sample_prompts": "a red fox --w 512\na blue fox",
    "sample_sampler": "euler_a",
    "save_every_n_epochs": 1,
    "save_model_as": "safetensors",
    "save_precision": "fp16",
    "scale_weight_norms": 0,
    "sdxl": False,
    "sdxl_no_half_vae": True,
    "seed": "",
    "stop_text_encoder_training": 0,
    "text_encoder_lr": 0,
    "token_like_nothing_known": "x",
    "train_norm": False,
    "training_comment": "a comment",
    "unet_lr": 0.0002,
    "unit": 1,
    "up_lr_weight": "",
    "use_tucker": False,
    "v2": False,
    "v_parameterization": False,
    "vae_batch_size": 0,
    "wandb_api_key": "",
    "xformers": "sdpa",
}


def gui(**changes: Any) -> Imported:
    return read_foreign(json.dumps(GUI | changes).encode(), "mine.json")


def toml(text: str) -> Imported:
    return read_foreign(text.encode(), "mine.toml")


def lora(metadata: dict[str, str]) -> Imported:
    return read_foreign(pack_header({METADATA_KEY: metadata}), "mine.safetensors")


def notes(found: Imported, kind: str) -> dict[str, str]:
    return {note.key: note.text for note in found.of(kind)}


def unaccounted(found: Imported, keys: Any) -> set[str]:
    """Keys of a file that are neither taken nor named anywhere."""
    told = {*found.taken, *found.idle, *found.facts, *(note.key for note in found.notes)}
    return {key for key in keys if key not in told and key.removeprefix("ss_") not in told}


CHANGED_VALUES: dict[str, Any] = {
    **REQUIRED,
    "network_module": "networks.lora",
    "network_args": {"conv_dim": 4, "conv_alpha": 1.0, "block_dims": (2,) * 25, "down_lr_weight": "sine+.5"},
    "network_dim": 12,
    "network_alpha": 0.0,
    "optimizer_args": {"betas": (0.9, 0.95), "weight_decay": 0.1, "amsgrad": True},
    "learning_rate": 2e-6,
    "text_encoder_lr": (1e-4, 5e-5),
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 30.0,
    "base_weights": (Path("a b.safetensors"),),
    "base_weights_multiplier": (0.5,),
    "max_token_length": 150,
    "seed": 7,
    "cache_latents": True,
    "training_comment": 'with "quotes" and = signs',
    "mixed_precision": "bf16",
}
