"""The table of the learning proof: every option of training, and what it changes in a short run.

A row names the options that are set, the aspects of a run (see traces.py) that change through them, and what has to be
set in both runs for the option to have a meaning. Every other aspect has to stay as it is, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.config.dataset import DATASET_KEYS, SUBSET_KEYS
from backend.config.training.dataset import FLAGS, TOML_ONLY

# What follows from a change, downstream: of the loss; of the model's input or target; of the network.
LOSS = "losses learnt"
TARGET = f"target {LOSS}"
SEEN = f"seen {LOSS}"
NOISE = f"noise seen target {LOSS}"
TEXT = f"captions conditioning {LOSS}"
LATENTS = f"latents {SEEN}"
NETWORK = f"start {LOSS}"
# Of a run of more or fewer batches.
BATCHES = f"pictures sizes captions latents masks times {NOISE}"
MODULES = f"start optimizer {LOSS}"


@dataclass(frozen=True)
class Proof:
    """One row.

    Attributes:
        options: what the second run sets and the first does not.
        changes: the aspects that change, with spaces between them; none for an option that changes no result.
        base: what both runs set.
        shown_by: instead of two runs, the test elsewhere that shows what the option does, as file::function.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    changes: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)
    shown_by: str = ""


def elsewhere(test: str) -> Proof:
    """A row whose option cannot show in a trace, or not in ten steps."""
    return Proof(shown_by=test)


FAMILIES = "tests/families/test_options.py"
RUN, STEP, NETS = "tests/train/test_run.py", "tests/train/test_step.py", "tests/train/test_networks.py"
STRANGE = "tests/tools/test_strange_loras.py"
OF_FAMILIES, PRECISION, LOSSES = (f"tests/train/test_{name}.py" for name in ("families", "precision", "loss"))
SETS, PIXELS, DISK = (
    "tests/train/test_dataset_options.py",
    "tests/train/test_pixels.py",
    "tests/data_pieces/test_disk_cache.py",
)
RESUME = "tests/train/test_resume.py"
DEVICES, MACHINES = "tests/train/test_devices.py", "test_two_machines_find_each_other_by_address"
FLAGS_OF_SETS, SAVING = "tests/config/test_config_dataset_flags.py", "tests/train/test_saving.py"
DATA, VALIDATION, LOGGING = "tests/data_pieces", "tests/train/test_validation.py", "tests/train/test_logging.py"
SPACES = {"dataset.caption_separator": " "}
# Tensors of 4096 numbers, from which on bitsandbytes keeps their state in 8 bits.
LARGE = {"network_dim": 16}
EXPONENTIAL = {"lr_scheduler_type": "torch.optim.lr_scheduler.ExponentialLR", "lr_scheduler_args": ["gamma=0.5"]}
# Captions of several parts: "a green disc on red" taken apart at its spaces.
PARTS = {"dataset.caption_separator": " ", "dataset.shuffle_caption": True}

PROOFS: dict[str, Proof] = {
    # Model
    "pretrained_model_name_or_path": elsewhere(f"{OF_FAMILIES}::test_the_loss_of_a_step_is_the_one_written_out"),
    "revision": elsewhere("tests/families/test_hub.py::test_only_the_needed_files_are_fetched"),
    "v2": elsewhere(f"{FAMILIES}::test_v2_is_checked"),
    "v_parameterization": elsewhere(f"{FAMILIES}::test_v_parameterization_decides_where_the_file_says_nothing"),
    "vae": elsewhere(f"{FAMILIES}::test_another_vae_takes_the_place_of_the_models_own"),
    "clip_skip": Proof({"clip_skip": 2}, f"conditioning {LOSS} kinds"),
    "max_token_length": Proof({"max_token_length": 150}, f"conditioning {LOSS}"),
    "no_half_vae": Proof({"no_half_vae": True}, ""),
    # Data
    "dataset_config": elsewhere(
        "tests/config/test_config_dataset.py::test_values_are_looked_up_in_subset_then_dataset_then_general_then_default"
    ),
    "train_data_dir": elsewhere(f"{SETS}::test_folders_train_as_the_same_toml_does"),
    "reg_data_dir": elsewhere(f"{SETS}::test_folders_train_as_the_same_toml_does"),
    "in_json": elsewhere(f"{FLAGS_OF_SETS}::test_in_json_is_one_subset"),
    "debug_dataset": elsewhere(f"{SETS}::test_the_listing_loads_nothing_and_writes_nothing"),
    "weighted_captions": Proof(
        {"weighted_captions": True}, f"conditioning {LOSS}", {"dataset.caption_prefix": "(blue:1.5)"}
    ),
    "cache_latents_to_disk": elsewhere(f"{PIXELS}::test_a_second_start_encodes_no_picture_and_learns_the_same"),
    "cache_text_encoder_outputs_to_disk": elsewhere(
        f"{PIXELS}::test_a_second_start_encodes_no_caption_and_learns_the_same"
    ),
    "skip_cache_check": elsewhere(f"{DISK}::test_skip_cache_check_believes_size_and_time_and_reads_nothing"),
    "masked_loss": elsewhere(f"{PIXELS}::test_half_a_mask_is_half_the_loss_of_its_picture"),
    "cache_latents": elsewhere(f"{STEP}::test_cached_latents_change_no_loss"),
    "vae_batch_size": elsewhere("tests/data_pieces/test_latent_cache.py::test_the_batch_size_changes_no_latent"),
    "cache_text_encoder_outputs": elsewhere(f"{OF_FAMILIES}::test_text_encoders_are_dropped_and_nothing_else_changes"),
    "prior_loss_weight": Proof({"prior_loss_weight": 0.5}, LOSS),
    "max_data_loader_n_workers": Proof({"max_data_loader_n_workers": 2}, "", {"cache_latents": False}),
    "persistent_data_loader_workers": Proof(
        {"persistent_data_loader_workers": True}, "", {"cache_latents": False, "max_data_loader_n_workers": 1}
    ),
    # Network
    "network_dim": Proof({"network_dim": 8}, NETWORK),
    "network_alpha": Proof({"network_alpha": 2.0}, NETWORK),
    "network_module": Proof({"network_module": "networks.dylora", "network_dim": 4}, LOSS),
    "network_args": Proof({"network_args": ["conv_dim=2"]}, MODULES),
    "network_weights": elsewhere(f"{NETS}::test_training_goes_on_from_a_file_at_its_own_strength"),
    "dim_from_weights": elsewhere(f"{NETS}::test_the_file_tells_its_own_rank_alpha_and_unit"),
    "base_weights": elsewhere(f"{NETS}::test_base_weights_are_merged_before_training"),
    "base_weights_multiplier": elsewhere(f"{NETS}::test_base_weights_are_merged_before_training"),
    "allow_unmatched": elsewhere(f"{STRANGE}::test_training_merges_and_goes_on_from_what_matches"),
    "network_train_unet_only": Proof({"network_train_unet_only": True}, f"{MODULES} rates"),
    "network_train_text_encoder_only": Proof({"network_train_text_encoder_only": True}, f"{MODULES} rates"),
    "network_dropout": Proof({"network_dropout": 0.5}, LOSS),
    "scale_weight_norms": Proof({"scale_weight_norms": 1e-4}, LOSS),
    # Optimizer and schedule
    "learning_rate": Proof({"learning_rate": 2e-3}, f"rates {LOSS}"),
    "unet_lr": Proof({"unet_lr": 2e-3}, f"rates {LOSS}"),
    "text_encoder_lr": Proof({"text_encoder_lr": 2e-3}, f"rates {LOSS}"),
    "optimizer_type": Proof({"optimizer_type": "AdamW8bit"}, f"optimizer {LOSS}", LARGE),
    "optimizer_args": Proof({"optimizer_args": ["betas=0.5,0.9"]}, f"optimizer {LOSS}"),
    "max_grad_norm": Proof({"max_grad_norm": 1e-9}, LOSS),
    "lr_scheduler": Proof({"lr_scheduler": "cosine"}, f"rates {LOSS}"),
    "lr_warmup_steps": Proof({"lr_warmup_steps": 2}, f"rates {LOSS}", {"lr_scheduler": "constant_with_warmup"}),
    "use_8bit_adam": Proof({"use_8bit_adam": True}, f"optimizer {LOSS}", LARGE),
    "use_lion_optimizer": Proof({"use_lion_optimizer": True}, f"optimizer {LOSS}"),
    "lr_decay_steps": Proof(
        {"lr_decay_steps": 2}, "rates learnt", {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 1}
    ),
    "lr_scheduler_num_cycles": Proof(
        {"lr_scheduler_num_cycles": 3}, f"rates {LOSS}", {"lr_scheduler": "cosine_with_restarts"}
    ),
    "lr_scheduler_power": Proof({"lr_scheduler_power": 2.0}, f"rates {LOSS}", {"lr_scheduler": "polynomial"}),
    "lr_scheduler_timescale": Proof({"lr_scheduler_timescale": 1}, f"rates {LOSS}", {"lr_scheduler": "inverse_sqrt"}),
    "lr_scheduler_min_lr_ratio": Proof(
        {"lr_scheduler_min_lr_ratio": 0.5},
        f"rates {LOSS}",
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.1},
    ),
    "lr_scheduler_type": Proof(EXPONENTIAL, f"rates {LOSS}"),
    "lr_scheduler_args": Proof({"lr_scheduler_args": ["gamma=0.1"]}, f"rates {LOSS}", EXPONENTIAL),
    "max_train_steps": Proof({"max_train_steps": 2}, f"{BATCHES} rates"),
    "max_train_epochs": Proof({"max_train_epochs": 2}, f"{BATCHES} rates"),
    "gradient_accumulation_steps": Proof({"gradient_accumulation_steps": 2}, BATCHES),
    "seed": Proof({"seed": 8}, f"start pictures captions latents times conditioning {NOISE}"),
    # Noise and loss
    "noise_offset": Proof({"noise_offset": 0.1}, NOISE),
    "noise_offset_random_strength": Proof({"noise_offset_random_strength": True}, NOISE, {"noise_offset": 0.1}),
    "adaptive_noise_scale": Proof({"adaptive_noise_scale": 0.1}, NOISE, {"noise_offset": 0.1}),
    "multires_noise_iterations": Proof({"multires_noise_iterations": 3}, NOISE),
    "multires_noise_discount": Proof({"multires_noise_discount": 0.8}, NOISE, {"multires_noise_iterations": 3}),
    "ip_noise_gamma": Proof({"ip_noise_gamma": 0.1}, SEEN),
    "ip_noise_gamma_random_strength": Proof({"ip_noise_gamma_random_strength": True}, SEEN, {"ip_noise_gamma": 0.1}),
    "min_timestep": Proof({"min_timestep": 900}, f"times {SEEN} kinds"),
    "max_timestep": Proof({"max_timestep": 100}, f"times {SEEN} kinds"),
    "zero_terminal_snr": Proof({"zero_terminal_snr": True}, f"base {SEEN}"),
    "min_snr_gamma": Proof({"min_snr_gamma": 0.5}, LOSS),
    "scale_v_pred_loss_like_noise_pred": elsewhere(f"{LOSSES}::test_weights_of_times_are_their_closed_forms"),
    "v_pred_like_loss": Proof({"v_pred_like_loss": 0.5}, LOSS),
    "debiased_estimation_loss": Proof({"debiased_estimation_loss": True}, LOSS),
    "loss_type": Proof({"loss_type": "l1"}, LOSS),
    "huber_schedule": Proof({"huber_schedule": "exponential"}, LOSS, {"loss_type": "huber"}),
    "huber_c": Proof({"huber_c": 0.5}, LOSS, {"loss_type": "smooth_l1"}),
    "huber_scale": Proof({"huber_scale": 2.0}, LOSS, {"loss_type": "huber"}),
    # Precision, memory, speed
    "mixed_precision": Proof({"mixed_precision": "bf16"}, f"base conditioning {LOSS}"),
    "gradient_checkpointing": Proof({"gradient_checkpointing": True}, ""),
    "cpu_offload_checkpointing": Proof({"cpu_offload_checkpointing": True}, "", {"gradient_checkpointing": True}),
    "full_bf16": Proof({"full_bf16": True}, f"start {LOSS} kinds", {"mixed_precision": "bf16"}),
    "fp8_base": Proof({"fp8_base": True}, f"base conditioning {LOSS}", {"mixed_precision": "bf16"}),
    "fp8_base_unet": Proof({"fp8_base_unet": True}, f"base {LOSS}", {"mixed_precision": "bf16"}),
    "full_fp16": elsewhere(f"{PRECISION}::test_gradients_in_fp16_are_unscaled"),
    "xformers": Proof({"xformers": True}, ""),
    "sdpa": Proof({"sdpa": True}, ""),
    "mem_eff_attn": Proof({"mem_eff_attn": True}, "base losses learnt"),
    **dict.fromkeys(("num_processes", "num_machines", "machine_rank"), elsewhere(f"{DEVICES}::{MACHINES}")),
    **dict.fromkeys(("main_process_ip", "main_process_port"), elsewhere(f"{DEVICES}::{MACHINES}")),
    "ddp_timeout": elsewhere("tests/train/test_launch.py::test_who_does_not_come_in_time_is_taken_for_lost"),
    "torch_compile": elsewhere(f"{PRECISION}::test_a_compiled_model_learns_the_same"),
    "dynamo_backend": elsewhere(f"{PRECISION}::test_a_backend_that_cannot_compile_is_named_before_training"),
    # Saving
    "output_dir": elsewhere(f"{RUN}::test_a_run_saves_under_kohyas_names_with_its_config_beside"),
    "output_name": Proof({"output_name": "other"}, "files"),
    "save_model_as": Proof({"save_model_as": "ckpt"}, "files kinds"),
    "save_precision": Proof({"save_precision": "fp16"}, "kinds"),
    "save_every_n_epochs": Proof({"save_every_n_epochs": 1}, "files", {"max_train_epochs": 2}),
    "save_every_n_steps": Proof({"save_every_n_steps": 1}, "files"),
    "save_n_epoch_ratio": Proof({"save_n_epoch_ratio": 2}, "files", {"max_train_epochs": 2}),
    "save_last_n_epochs": Proof({"save_last_n_epochs": 1}, "files", {"max_train_epochs": 3, "save_every_n_epochs": 1}),
    "save_last_n_steps": Proof({"save_last_n_steps": 1}, "files", {"save_every_n_steps": 1}),
    "metadata_title": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_author": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_description": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_trigger_phrase": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_tags": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_license": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_usage_hint": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_thumbnail": elsewhere(f"{SAVING}::test_a_thumbnail_is_a_small_copy"),
    "metadata_merged_from": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_preprocessor": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "metadata_is_negative_embedding": elsewhere(f"{SAVING}::test_the_file_says_what_it_is"),
    "training_comment": elsewhere(f"{RUN}::test_the_file_tells_how_it_was_trained"),
    "no_metadata": Proof({"no_metadata": True}, "kinds"),
    "overwrite": elsewhere(f"{RUN}::test_existing_outputs_are_refused_before_anything_is_loaded"),
    # Sample pictures
    "sample_prompts": elsewhere(f"{RUN}::test_sample_pictures_change_nothing_in_training"),
    "sample_every_n_epochs": elsewhere(f"{RUN}::test_sampling_by_epochs_wins_over_steps"),
    "sample_every_n_steps": elsewhere(f"{RUN}::test_sampling_by_epochs_wins_over_steps"),
    "sample_at_first": elsewhere(f"{RUN}::test_sample_pictures_change_nothing_in_training"),
    "sample_sampler": elsewhere(f"{RUN}::test_sample_pictures_change_nothing_in_training"),
    # Resuming
    "save_state": elsewhere(f"{RESUME}::test_every_state_of_a_run_leads_to_the_same_end"),
    "save_state_on_train_end": elsewhere(f"{RESUME}::test_a_finished_run_can_be_made_longer"),
    "save_last_n_epochs_state": elsewhere(f"{RESUME}::test_states_go_with_the_files_and_old_ones_are_removed"),
    "save_last_n_steps_state": elsewhere(f"{RESUME}::test_states_go_with_the_files_and_old_ones_are_removed"),
    "resume": elsewhere(f"{RESUME}::test_a_resumed_run_ends_bit_for_bit_as_one_that_went_through"),
    # Validation and logs
    "validation_split": elsewhere(f"{VALIDATION}::test_validating_leaves_training_as_it_is_bit_for_bit"),
    "validation_seed": elsewhere(f"{VALIDATION}::test_the_choice_hangs_on_seed_and_contents_alone"),
    "validate_every_n_steps": elsewhere(f"{VALIDATION}::test_when_it_is_taken"),
    "validate_every_n_epochs": elsewhere(f"{VALIDATION}::test_when_it_is_taken"),
    "max_validation_steps": elsewhere(f"{VALIDATION}::test_the_loss_is_told_and_the_file_knows_of_it"),
    "logging_dir": elsewhere(f"{LOGGING}::test_logging_changes_no_loss"),
    "log_with": elsewhere(f"{LOGGING}::test_wandb_is_told_the_same_curves"),
    "log_prefix": elsewhere(f"{LOGGING}::test_tensorboard_reads_the_run_back"),
    "log_tracker_name": elsewhere(f"{LOGGING}::test_tensorboard_reads_the_run_back"),
    "log_tracker_config": elsewhere(f"{LOGGING}::test_tensorboard_reads_the_run_back"),
    "wandb_run_name": elsewhere(f"{LOGGING}::test_wandb_is_told_the_same_curves"),
    "log_config": elsewhere(f"{LOGGING}::test_tensorboard_reads_the_run_back"),
    # The dataset toml
    "dataset.validation_split": elsewhere(f"{VALIDATION}::test_a_datasets_own_split_counts_before_the_runs"),
    "dataset.validation_seed": elsewhere(f"{VALIDATION}::test_a_datasets_own_split_counts_before_the_runs"),
    "dataset.resolution": Proof({"dataset.resolution": 96}, f"pictures sizes captions latents conditioning {NOISE}"),
    "dataset.batch_size": Proof(
        {"dataset.batch_size": 1}, f"pictures sizes captions latents times conditioning {NOISE}"
    ),
    "dataset.enable_bucket": elsewhere("tests/tables/test_buckets.py::test_buckets_and_choices_equal_the_reference"),
    "dataset.min_bucket_reso": elsewhere("tests/tables/test_buckets.py::test_buckets_and_choices_equal_the_reference"),
    "dataset.max_bucket_reso": elsewhere("tests/tables/test_buckets.py::test_buckets_and_choices_equal_the_reference"),
    "dataset.bucket_reso_steps": elsewhere(
        "tests/tables/test_buckets.py::test_buckets_and_choices_equal_the_reference"
    ),
    "dataset.bucket_no_upscale": elsewhere(
        "tests/data_pieces/test_training_set.py::test_no_upscale_keeps_small_pictures"
    ),
    "dataset.image_dir": elsewhere(
        "tests/data_pieces/test_training_set.py::test_pictures_carry_size_bucket_caption_and_repeats"
    ),
    "dataset.is_reg": elsewhere(f"{STEP}::test_regularisation_pictures_count_by_their_weight"),
    "dataset.num_repeats": Proof({"dataset.num_repeats": 3}, f"pictures captions latents {SEEN}"),
    "dataset.class_tokens": elsewhere(
        "tests/data_pieces/test_captions.py::test_a_missing_caption_is_the_class_tokens_an_empty_one_is_empty"
    ),
    "dataset.caption_extension": elsewhere(
        "tests/data_pieces/test_training_set.py::test_the_subsets_caption_extension_comes_first"
    ),
    "dataset.shuffle_caption": Proof({"dataset.shuffle_caption": True}, TEXT, {"dataset.caption_separator": " "}),
    "dataset.keep_tokens": Proof({"dataset.keep_tokens": 2}, TEXT, PARTS),
    "dataset.caption_separator": Proof({"dataset.caption_separator": " "}, TEXT, {"dataset.shuffle_caption": True}),
    "dataset.caption_prefix": Proof({"dataset.caption_prefix": "sks"}, TEXT),
    "dataset.caption_suffix": Proof({"dataset.caption_suffix": "sks"}, TEXT),
    "dataset.flip_aug": Proof({"dataset.flip_aug": True}, f"pictures {LATENTS}"),
    "dataset.caption_dropout_rate": Proof({"dataset.caption_dropout_rate": 0.5}, TEXT),
    "dataset.network_multiplier": Proof({"dataset.network_multiplier": 0.5}, LOSS),
    "dataset.metadata_file": elsewhere(f"{DATA}/test_metadata_file.py::test_pictures_and_captions_are_the_files"),
    "dataset.keep_tokens_separator": Proof({"dataset.keep_tokens_separator": "on"}, TEXT, PARTS),
    "dataset.secondary_separator": Proof({"dataset.secondary_separator": "disc"}, TEXT, PARTS),
    "dataset.enable_wildcard": Proof({"dataset.enable_wildcard": True}, TEXT, {"dataset.caption_prefix": "{old|new}"}),
    "dataset.caption_dropout_every_n_epochs": Proof({"dataset.caption_dropout_every_n_epochs": 1}, TEXT),
    "dataset.caption_tag_dropout_rate": Proof({"dataset.caption_tag_dropout_rate": 0.5}, TEXT, SPACES),
    "dataset.token_warmup_min": Proof(
        {"dataset.token_warmup_min": 3}, TEXT, {**SPACES, "dataset.token_warmup_step": 100}
    ),
    "dataset.token_warmup_step": Proof({"dataset.token_warmup_step": 100}, TEXT, SPACES),
    "dataset.custom_attributes": elsewhere(f"{SETS}::test_attributes_of_ones_own_are_kept_in_the_file"),
    "dataset.color_aug": Proof({"dataset.color_aug": True}, LATENTS, {"cache_latents": False}),
    "dataset.random_crop": Proof(
        {"dataset.random_crop": True}, f"sizes {LATENTS}", {"cache_latents": False, "dataset.resolution": 32}
    ),
    "dataset.face_crop_aug_range": elsewhere(f"{DATA}/test_augment.py::test_face_crops_are_what_training_shows"),
    "dataset.resize_interpolation": Proof(
        {"dataset.resize_interpolation": "nearest"}, LATENTS, {"dataset.resolution": 32}
    ),
    "dataset.alpha_mask": elsewhere(f"{DATA}/test_masks.py::test_transparency_is_the_mask_and_white_the_ground"),
    "dataset.conditioning_data_dir": elsewhere(f"{PIXELS}::test_half_a_mask_is_half_the_loss_of_its_picture"),
}

# Keys of the dataset toml given as flags are the same declarations: what they change is shown above, that they arrive
# is shown there.
PROOFS |= {
    FLAGS.get(key, key): elsewhere(f"{FLAGS_OF_SETS}::test_every_flag_arrives")
    for key in (*DATASET_KEYS, *SUBSET_KEYS)
    if key not in TOML_ONLY
}
