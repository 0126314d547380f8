"""The fields of the LoRA tab of kohya_ss' GUI whose names, values or meaning differ from sd-scripts' options."""

from typing import Any

PROGRAM = "kohya_ss' GUI"
# State of the GUI itself, and what it does not pass on.
OF_THE_PAGE = (
    *("model_list", "save_as_bool", "save_as", "file_path", "headless", "print_only", "training_preset", "sdxl"),
    *("stop_text_encoder_training", "stop_text_encoder_training_pct", "lowvram", "no_token_padding"),
)
RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
}
OF_SDXL = ("sdxl_no_half_vae", "sdxl_cache_text_encoder_outputs")
_ZERO_IS_UNSET = """
adaptive_noise_scale clip_skip ip_noise_gamma max_timestep min_snr_gamma min_timestep multires_noise_iterations
network_dropout noise_offset sample_every_n_epochs sample_every_n_steps save_every_n_epochs save_every_n_steps
save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state scale_weight_norms seed
v_pred_like_loss vae_batch_size
"""
ZERO_IS_UNSET = tuple(_ZERO_IS_UNSET.split())
# By noise_offset_type: the fields that count.
NOISE = {
    "original": ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
    "multires": ("multires_noise_iterations", "multires_noise_discount"),
}
HUBER = ("huber_schedule", "huber_c", "huber_scale")
# Of `accelerate launch`, with what the GUI has there at first.
LAUNCH: dict[str, Any] = {
    "num_cpu_threads_per_process": 2,
    "num_processes": 1,
    "num_machines": 1,
    "multi_gpu": False,
    "gpu_ids": "",
    "main_process_port": 0,
    "dynamo_backend": "no",
    "dynamo_mode": "default",
    "dynamo_use_fullgraph": False,
    "dynamo_use_dynamic": False,
    "extra_accelerate_launch_args": "",
}
# Of these, what the trainer has as options; several machines need addresses, which the GUI's file has not.
OWN_LAUNCH = ("num_processes", "main_process_port")

_BLOCKS = """
down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold block_dims block_alphas conv_block_dims
conv_block_alphas
"""
BLOCKS = tuple(_BLOCKS.split())
PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
CONV, DROPOUT = ("conv_dim", "conv_alpha"), ("rank_dropout", "module_dropout")
# By LoRA_type: the network module, and which fields become its arguments.
TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("networks.lora", (*BLOCKS, *DROPOUT)),
    "kohya locon": ("networks.lora", (*CONV, *BLOCKS, *DROPOUT)),
    "locon": ("networks.lora", (*CONV, *BLOCKS, *DROPOUT)),
    "lora-fa": ("networks.lora_fa", (*BLOCKS, *DROPOUT)),
    "kohya dylora": ("networks.dylora", (*CONV, *BLOCKS, *DROPOUT, "unit")),
    "kohya loha": ("networks.loha", (*CONV, *DROPOUT, "use_tucker")),
    "kohya lokr": ("networks.lokr", (*CONV, *DROPOUT, "use_tucker", "factor")),
}
LYCORIS, NATIVE = "lycoris/", "native fine-tuning"
# Fields with another name among LyCORIS' arguments.
LYCORIS_NAMES = {"LyCORIS_preset": "preset", "constrain": "constraint", "unit": "block_size"}
_WEIGHTS = ("bypass_mode", "dora_wd", "use_scalar")
LYCORIS_COMMON = ("LyCORIS_preset", *CONV, *DROPOUT, "rank_dropout_scale", "train_norm")
# By algorithm: the arguments that the GUI gives beside the common ones.
LYCORIS_OWN: dict[str, tuple[str, ...]] = {
    "diag-oft": ("use_tucker", "constrain", "rescaled"),
    "dylora": ("use_tucker", "unit"),
    "ia3": ("train_on_input",),
    "locon": ("use_tucker", *_WEIGHTS),
    "loha": ("use_tucker", *_WEIGHTS),
    "lokr": ("use_cp", "factor", "decompose_both", *_WEIGHTS),
    "boft": ("use_tucker",),
    "glora": ("use_tucker",),
}
ARGUMENTS = tuple(
    dict.fromkeys(
        (
            *(*BLOCKS, *PLUS, *LYCORIS_COMMON, "conv_dims", "conv_alphas", "ggpo_sigma", "ggpo_beta"),
            *("use_tucker", *(name for names in LYCORIS_OWN.values() for name in names)),
        )
    )
)

# By switch: another model family.
FAMILIES = {
    "flux1_checkbox": "FLUX",
    "sd3_checkbox": "Stable Diffusion 3",
    "hunyuan_image_checkbox": "HunyuanImage",
    "anima_checkbox": "Anima",
    "lumina_checkbox": "Lumina",
}
_OF_A_FAMILY = """
t5xxl_lr ae clip_l t5xxl discrete_flow_shift model_prediction_type timestep_sampling split_mode train_blocks
t5xxl_max_token_length enable_all_linear guidance_scale mem_eff_save apply_t5_attn_mask split_qkv train_t5xxl
cpu_offload_checkpointing blocks_to_swap single_blocks_to_swap double_blocks_to_swap show_timesteps
show_timesteps_resolution img_attn_dim img_mlp_dim img_mod_dim txt_attn_dim txt_mlp_dim txt_mod_dim single_dim
single_mod_dim in_dims train_double_block_indices train_single_block_indices model_type train_lora_ggpo
fp8_base_unet clip_g clip_g_dropout_rate logit_mean logit_std mode_scale pos_emb_random_crop_rate save_clip
save_t5xxl t5xxl_device t5xxl_dtype weighting_scheme
"""
OF_A_FAMILY = tuple(_OF_A_FAMILY.split())
BEGINNINGS = ("flux1_", "sd3_", "hunyuan_", "anima_", "lumina_")
