"""Toml files of sd-scripts (kohya-ss/sd-scripts, train_network.py): flat or in sections, leniently read.

sd-scripts itself checks no key and no value, so such files may hold anything. `--config_file` reads them strictly.
"""

from collections.abc import Mapping
from typing import Any

from backend.config.declare import leaves
from backend.config.dialects.judging import finish
from backend.config.dialects.networks import settle_network
from backend.config.dialects.reading import OPEN, Imported, Note, Reading, items_of, same
from backend.config.messages import shown
from backend.config.reference_options import OF_OTHER_FAMILIES
from backend.config.train import TrainNetwork
from backend.errors import UserError

PROGRAM = "sd-scripts"
# Options that sd-scripts' parser takes as key=value pairs; a table of this name is no section.
PAIRS = ("network_args", "optimizer_args", "lr_scheduler_args")
_SWITCHES = """
alpha_mask async_upload bucket_no_upscale cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk color_aug console_log_simple cpu_offload_checkpointing ddp_gradient_as_bucket_view
ddp_static_graph debiased_estimation_loss debug_dataset deepspeed dim_from_weights disable_mmap_load_safetensors
enable_bucket enable_wildcard flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16
fused_backward_pass gradient_checkpointing highvram ip_noise_gamma_random_strength log_config lowram masked_loss
mem_eff_attn network_train_text_encoder_only network_train_unet_only no_half_vae no_metadata
noise_offset_random_strength persistent_data_loader_workers random_crop resume_from_huggingface sample_at_first
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred sdpa shuffle_caption
skip_cache_check skip_until_initial_step torch_compile use_8bit_adam use_lion_optimizer use_safetensors v2
v_parameterization weighted_captions xformers zero3_init_flag zero3_save_16bit_model zero_terminal_snr
"""
_WITHOUT_DEFAULT = """
adaptive_noise_scale base_weights base_weights_multiplier caption_extention caption_prefix caption_suffix clip_skip
conditioning_data_dir console_log_file console_log_level dataset_class dataset_config ddp_timeout face_crop_aug_range
huggingface_path_in_repo huggingface_repo_id huggingface_repo_type huggingface_repo_visibility huggingface_token in_json
initial_epoch initial_step ip_noise_gamma log_prefix log_tracker_config log_tracker_name log_with logging_dir
lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_timescale max_timestep max_train_epochs max_validation_steps
metadata_author metadata_description metadata_is_negative_embedding metadata_license metadata_merged_from
metadata_preprocessor metadata_tags metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint
min_snr_gamma min_timestep multires_noise_iterations network_args network_dim network_dropout network_module
network_weights noise_offset offload_optimizer_device offload_optimizer_nvme_path offload_param_device
offload_param_nvme_path optimizer_args output_dir output_name pretrained_model_name_or_path reg_data_dir
resize_interpolation resolution resume sample_every_n_epochs sample_every_n_steps sample_prompts save_every_n_epochs
save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state
save_n_epoch_ratio save_precision scale_weight_norms secondary_separator seed text_encoder_lr tokenizer_cache_dir
train_data_dir training_comment unet_lr v_pred_like_loss vae validate_every_n_epochs validate_every_n_steps
validation_seed wandb_api_key wandb_run_name
"""
# Every option of sd-scripts' trainers for Stable Diffusion, with its default.
DEFAULTS: dict[str, Any] = (
    dict.fromkeys(_SWITCHES.split(), False)
    | dict.fromkeys(_WITHOUT_DEFAULT.split())
    | {
        "bucket_reso_steps": 64,
        "caption_dropout_every_n_epochs": 0,
        "caption_dropout_rate": 0.0,
        "caption_extension": ".caption",
        "caption_separator": ",",
        "caption_tag_dropout_rate": 0.0,
        "dataset_repeats": 1,
        "dynamo_backend": "inductor",
        "gradient_accumulation_steps": 1,
        "huber_c": 0.1,
        "huber_scale": 1.0,
        "huber_schedule": "snr",
        "keep_tokens": 0,
        "keep_tokens_separator": "",
        "learning_rate": 2e-6,
        "loss_type": "l2",
        "lr_decay_steps": 0,
        "lr_scheduler": "constant",
        "lr_scheduler_num_cycles": 1,
        "lr_scheduler_power": 1,
        "lr_scheduler_type": "",
        "lr_warmup_steps": 0,
        "max_bucket_reso": 1024,
        "max_data_loader_n_workers": 8,
        "max_grad_norm": 1.0,
        "max_token_length": 75,
        "max_train_steps": 1600,
        "min_bucket_reso": 256,
        "mixed_precision": "no",
        "multires_noise_discount": 0.3,
        "network_alpha": 1,
        "optimizer_type": "AdamW",
        "prior_loss_weight": 1.0,
        "sample_sampler": "ddim",
        "save_model_as": "safetensors",
        "token_warmup_min": 1,
        "token_warmup_step": 0,
        "train_batch_size": 1,
        "vae_batch_size": 1,
        "validation_split": 0.0,
        "zero_stage": 2,
    }
)
OTHER_TRAINING = "belongs to another kind of training (fine-tuning, DreamBooth or textual inversion)"
DEEPSPEED = "belongs to DeepSpeed, which is not supported"
REASONS = {
    "lowram": "has no counterpart here: a model is loaded without a second copy",
    "highvram": "has no counterpart here",
    "tokenizer_cache_dir": "is not needed: the vocabularies come with the program",
    "dataset_class": "runs code of your own, which a config cannot bring along",
    **dict.fromkeys(("deepspeed", "zero3_init_flag", "zero3_save_16bit_model", "zero_stage"), DEEPSPEED),
    **dict.fromkeys(OF_OTHER_FAMILIES, "is for model families that cannot be trained here"),
    **dict.fromkeys((name for name in DEFAULTS if name.startswith(("offload_", "fp16_master"))), DEEPSPEED),
    **dict.fromkeys(
        (
            *("learning_rate_te", "learning_rate_te1", "learning_rate_te2", "train_text_encoder", "token_string"),
            *("init_word", "num_vectors_per_token", "use_object_template", "use_style_template", "block_lr"),
            *("no_token_padding", "diffusers_xformers", "conditioning_dim", "cond_emb_dim"),
        ),
        OTHER_TRAINING,
    ),
}
# Written by kohya_ss' GUI into its toml files; sd-scripts passes over them.
PASSED_OVER = ("config_file", "output_config", "epoch", "noise_offset_type", "stop_text_encoder_training")
PROMPT_FILES = (".txt", ".toml", ".json")
LORA_SCRIPTS = "lora-scripts"
LORA_SCRIPTS_KINDS = ("sd-lora", "sdxl-lora")
BESIDE_DATASET = ("train_data_dir", "reg_data_dir", "in_json")


def read_scripts(tables: Mapping[str, Any]) -> Imported:
    """The options of a toml of sd-scripts.

    Args:
        tables: of the file, as they stand.
    """
    reading = reading_of(tables)
    reading.drop(*PASSED_OVER)
    given = set(reading.left)
    sort_scripts(reading)
    for name, leaf in leaves(TrainNetwork).items():
        theirs = DEFAULTS.get(name)
        if name not in given and theirs is not None and leaf.default is not None and not same(leaf.default, theirs):
            text = f"is not given: {PROGRAM} would take {shown(theirs)}, here it is {shown(leaf.default)}"
            reading.notes.append(Note(name, "", text, OPEN))
    return finish(reading, f"toml of {PROGRAM}")


def read_lora_scripts(tables: Mapping[str, Any], name: str) -> Imported:
    """The options of a toml of lora-scripts (SD-Trainer), whose page adds some fields to sd-scripts' options.

    Raises:
        UserError: it is for another kind of training or another model family.
    """
    reading = reading_of(tables)
    kind = reading.text("model_train_type")
    if kind not in LORA_SCRIPTS_KINDS:
        raise UserError(f"is a config of lora-scripts for {shown(kind)}, which cannot be trained here", name)
    reading.drop("model_train_type", *PASSED_OVER)
    prompts = reading.text("sample_prompts")
    if prompts and not prompts.lower().endswith(PROMPT_FILES):
        # Its page has a field for the prompts themselves.
        if reading.text("sample_every_n_epochs") or reading.text("sample_every_n_steps"):
            reading.prompts = prompts
            reading.taken.append("sample_prompts")
            reading.left.pop("sample_prompts")
        else:
            reading.drop("sample_prompts")
    sort_scripts(reading, LORA_SCRIPTS)
    return finish(reading, f"config of {LORA_SCRIPTS}")


def reading_of(tables: Mapping[str, Any]) -> Reading:
    """The keys of a toml without its sections; of a key that is given twice the last counts, as in sd-scripts."""
    reading = Reading({})
    for key, value in items_of(tables, DEFAULTS):
        if key in reading.left:
            reading.lose(key, f"is given twice; {PROGRAM} takes the last")
        reading.left[key] = value
    return reading


def sort_scripts(reading: Reading, program: str = PROGRAM) -> None:
    """Sort keys that mean what they mean to sd-scripts; `program` has written them."""
    for switch, optimizer in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if reading.on(switch):
            reading.change(switch, f"is optimizer_type {optimizer} here")
            reading.take(switch, "optimizer_type", optimizer)
            reading.drop("optimizer_type")
    if reading.text("dataset_config"):
        for key in BESIDE_DATASET:
            if reading.text(key):
                reading.lose(key, f"has no effect in {PROGRAM} beside dataset_config")
    reading.by_name(DEFAULTS, REASONS, program)
    settle_network(reading)


def differs(name: str, value: Any) -> bool:
    """Whether sd-scripts would not have this value by itself."""
    return not same(value, DEFAULTS[name])
