"""What OneTrainer calls its options, and what it does unless it is told otherwise."""

from typing import Any

PROGRAM = "OneTrainer"
# Model types that are Stable Diffusion 1, 2 or XL as they are trained here; others are named as they stand.
FAMILIES = (
    *("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_20", "STABLE_DIFFUSION_20_BASE", "STABLE_DIFFUSION_21"),
    *("STABLE_DIFFUSION_21_BASE", "STABLE_DIFFUSION_XL_10_BASE"),
)
# What a file that does not say them means, where that differs from what we do.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-6,
    "learning_rate_warmup_steps": 200.0,
    "learning_rate_scheduler": "CONSTANT",
    "epochs": 100,
    "batch_size": 1,
    "resolution": "512",
    "train_dtype": "FLOAT_16",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "aspect_ratio_bucketing": True,
    "latent_caching": True,
}
PRECISIONS = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "no", "TFLOAT_32": "no"}
SAVED = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "float"}
NETWORKS = {"LORA": "networks.lora", "LOHA": "networks.loha"}
SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
    "ADAFACTOR": "adafactor",
}
_ADAM = ("weight_decay", "eps", "amsgrad")
_ADAPT = ("weight_decay", "eps", "d0", "growth_rate", "decouple", "use_bias_correction")
# By optimizer: its name here, and those of its fields that are arguments of the same name here.
OPTIMIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ADAGRAD": ("Adagrad", ("weight_decay", "eps", "lr_decay")),
    "ADAM": ("Adam", _ADAM),
    "ADAMW": ("AdamW", _ADAM),
    "ADAMW_8BIT": ("AdamW8bit", ("weight_decay", "eps")),
    "LION": ("Lion", ("weight_decay",)),
    "LION_8BIT": ("Lion8bit", ("weight_decay",)),
    "RMSPROP": ("RMSprop", ("weight_decay", "eps", "alpha", "momentum", "centered")),
    "SGD": ("SGD", ("weight_decay", "momentum", "dampening", "nesterov")),
    "SCHEDULE_FREE_ADAMW": ("AdamWScheduleFree", ("weight_decay", "eps", "r", "weight_lr_power")),
    "SCHEDULE_FREE_SGD": ("SGDScheduleFree", ("weight_decay", "momentum", "r", "weight_lr_power")),
    "DADAPT_ADA_GRAD": ("DAdaptAdaGrad", ("weight_decay", "eps", "d0", "growth_rate", "momentum")),
    "DADAPT_ADAM": ("DAdaptAdam", _ADAPT),
    "DADAPT_ADAN": ("DAdaptAdan", ("weight_decay", "eps", "d0", "growth_rate", "no_prox")),
    "DADAPT_LION": ("DAdaptLion", ("weight_decay", "d0")),
    "DADAPT_SGD": ("DAdaptSGD", ("weight_decay", "d0", "growth_rate", "momentum")),
    "PRODIGY": (
        "Prodigy",
        ("weight_decay", "eps", "d0", "d_coef", "growth_rate", "decouple", "use_bias_correction", "safeguard_warmup"),
    ),
    "ADAFACTOR": (
        "AdaFactor",
        ("weight_decay", "clip_threshold", "decay_rate", "relative_step", "scale_parameter", "warmup_init"),
    ),
}
# Fields that are given together as one argument.
BETAS = ("beta1", "beta2")
WITH_BETAS = ("ADAM", "ADAMW", "ADAMW_8BIT", "LION", "LION_8BIT", "DADAPT_ADAM", "DADAPT_LION", "PRODIGY")
# Set to these, an argument of an optimizer says nothing.
SILENT: tuple[Any, ...] = (None, False)

# Options of the same meaning under another name, with the value at which they say nothing.
RENAMED: dict[str, tuple[str, Any]] = {
    "base_model_name": ("pretrained_model_name_or_path", None),
    "epochs": ("max_train_epochs", None),
    "batch_size": ("train_batch_size", None),
    "lora_rank": ("network_dim", None),
    "lora_alpha": ("network_alpha", None),
    "lora_model_name": ("network_weights", None),
    "dropout_probability": ("network_dropout", 0),
    "dataloader_threads": ("max_data_loader_n_workers", None),
    "latent_caching": ("cache_latents", False),
    "aspect_ratio_bucketing": ("enable_bucket", False),
    "offset_noise_weight": ("noise_offset", 0),
    "rescale_noise_scheduler_to_zero_terminal_snr": ("zero_terminal_snr", False),
    "force_v_prediction": ("v_parameterization", False),
}
# Where it keeps its things, how it shows them, and how it computes; nothing of the result depends on them here.
_OF_THE_PROGRAM = """
__version training_method model_type debug_mode debug_dir workspace_dir cache_dir huggingface_cache_dir offline_mode
tensorboard tensorboard_expose tensorboard_always_on tensorboard_port continue_last_backup prevent_overwrites
include_train_config only_cache clear_cache_before_training train_device temp_device enable_autocast_cache
async_offloading compile fallback_train_dtype gradient_reduce_precision fused_gradient_reduce async_gradient_reduce
async_gradient_reduce_buffer output_model_format frames backup_after backup_after_unit rolling_backup
rolling_backup_count backup_before_save save_skip_first save_filename_prefix sample_skip_first sample_image_format
sample_video_format sample_audio_format samples_to_tensorboard non_ema_sampling optimizer_defaults ema_decay
ema_update_step_interval embedding_learning_rate preserve_embedding_norm embedding additional_embeddings
embedding_weight_dtype bundle_additional_embeddings lora_weight_dtype lora_decompose_norm_epsilon
lora_decompose_output_axis oft_block_size oft_block_share oft_scaled lokr_dim lokr_decompose_both
lokr_decompose_factor lokr_use_tucker lokr_weight_decompose lokr_dora_on_output lokr_full_matrix lokr_vec_trick
quantization prior transformer unconditional_transformer text_encoder_3 text_encoder_4 text_encoder_3_layer_skip
text_encoder_4_layer_skip text_encoder_sequence_length text_encoder_2_sequence_length effnet_encoder decoder
decoder_text_encoder decoder_vqgan dynamic_timestep_shifting weight_dtype gradient_checkpointing_offload
enable_activation_offloading layer_offload_fraction validate_after validate_after_unit unmasked_probability
unmasked_weight normalize_masked_area_loss masked_prior_preservation_weight huber_delta vb_loss_strength
layer_filter_regex scheduler_params log_cosh_strength_unit weight_decay sample_definition_file_name
"""
OF_THE_PROGRAM = tuple(_OF_THE_PROGRAM.split())
# Machines, keys and passwords: never shown and never carried.
OF_THE_MACHINE = ("cloud", "secrets", "multi_gpu", "device_indexes")
# What changes the result and is not here, with the value at which it says nothing.
LOST: dict[str, Any] = {
    "ema": "OFF",
    "lora_decompose": False,
    "learning_rate_min_factor": 0,
    "learning_rate_scaler": "NONE",
    "custom_learning_rate_scheduler": None,
    "loss_scaler": "NONE",
    "masked_training": False,
    "custom_conditioning_image": False,
    "validation": False,
    "generalized_offset_noise": False,
    "force_epsilon_prediction": False,
    "force_circular_padding": False,
    "timestep_distribution": "UNIFORM",
    "noising_weight": 0,
    "noising_bias": 0,
    "timestep_shift": 1,
    "log_cosh_strength": 0,
    "huber_strength": 0,
    "text_encoder_2_layer_skip": 0,
}
