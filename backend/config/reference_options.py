"""Options of sd-scripts that are none here: passed over with a line, said in our words, or refused by name.

Flags and toml keys that no section declares are looked up here before they count as unknown. One that changes nothing
of the result is accepted; one that would is refused with what to do instead. A declared option always comes first.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backend.config.messages import shown

FLAG, VALUE, MANY = "flag", "value", "many"
Problems = list[tuple[str, str]]
Translation = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ReferenceOption:
    """One option of the reference.

    Attributes:
        reason: why it changes nothing here; of a refused one, what to do instead.
        takes: how many words follow it on a command line: FLAG, VALUE or MANY.
        refused: it would change the result.
        default: its default there, at which it says nothing; so do None, False and "".
        becomes: what it is in our options, from its value and all such options that are given; raises ValueError.
    """

    reason: str
    takes: str = FLAG
    refused: bool = False
    default: Any = None
    becomes: Translation | None = None

    def is_silent(self, value: Any) -> bool:
        """Whether a value is what the reference does by itself."""
        return value in (None, False, "", "false", [], {}, self.default)


def idle(reason: str, names: str, takes: str = FLAG, default: Any = None) -> dict[str, ReferenceOption]:
    """Options that change nothing of the result."""
    return {name: ReferenceOption(reason, takes, default=default) for name in names.split()}


def refused(reason: str, names: str, takes: str = VALUE, default: Any = None) -> dict[str, ReferenceOption]:
    """Options that would change the result."""
    return {name: ReferenceOption(reason, takes, refused=True, default=default) for name in names.split()}


def judge(command: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], Problems]:
    """What options of the reference come to.

    Args:
        command: that they are given to.
        given: by name, all in the command's table.

    Returns:
        Values of our own options, lines for the user, and problems as pairs of name and message.
    """
    table = REFERENCE_OPTIONS.get(command, {})
    values: dict[str, Any] = {}
    told: list[str] = []
    problems: Problems = []
    for name, value in given.items():
        option = table[name]
        if option.is_silent(value):
            continue
        if option.refused:
            problems.append((name, f"is an option of sd-scripts that is not here: {option.reason}"))
        elif option.becomes is None:
            told.append(f"{name} has no effect here: {option.reason}")
        else:
            try:
                values |= option.becomes(value, given)
            except ValueError as error:
                problems.append((name, str(error)))
    return values, told, problems


def known_to(command: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are options of the reference's command."""
    table = REFERENCE_OPTIONS.get(command, {})
    return [name for name in names if name in table]


def _precision(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = [name for name in ("float", "fp16", "bf16") if given.get(name) not in (None, False, "false")]
    if len(chosen) > 1:
        raise ValueError(f"cannot be set together with {chosen[1]}; give one save_precision")
    return {"save_precision": chosen[0] if chosen else str(value)}


def _share(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """`dynamic_method` with its `dynamic_param`. sv_fro keeps a share of the norm, so its square of the energy."""
    if value != "sv_fro":
        message = 'must be sv_fro here; or give --dynamic "energy=0.95", a share of the squared singular values'
        raise ValueError(f"{message}, got {shown(value)}")
    try:
        share = float(given.get("dynamic_param") or "")
    except ValueError:
        raise ValueError("needs dynamic_param, the share of the norm that is kept, from 0 to 1") from None
    if not 0 < share <= 1:
        raise ValueError(f"needs a dynamic_param above 0 and up to 1, got {share:g}")
    return {"dynamic": f"energy={share * share:.12f}"}


def _beside_its_method(_value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("dynamic_method") in (None, ""):
        raise ValueError("has no effect without dynamic_method; give both or neither")
    return {}


_TOKENIZER = idle("the vocabularies come with the program", "tokenizer_cache_dir", VALUE)
_KIND = "what kind of model it is is read from its file"
_LOG = "the log is what is printed; of a run in the browser it is kept"
_DEEPSPEED = "DeepSpeed is not supported; leave it out, and use num_processes for several GPUs"
_UPLOAD = "nothing is uploaded or fetched by a run; leave it out, and upload the files with `hf upload`"
_RESUMING = "the state knows its epoch and step; leave it out, and give resume"
OF_OTHER_FAMILIES = (
    *("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "blocks_to_swap", "text_encoder_batch_size"),
    *("clip_l", "clip_g", "t5xxl", "ae", "discrete_flow_shift", "timestep_sampling", "model_prediction_type"),
    *("guidance_scale", "t5xxl_max_token_length", "gemma2", "sigmoid_scale"),
)
_BLOCKS = "weights by block are not supported when merging; leave it out"

_TRAIN = {
    **_TOKENIZER,
    **idle("a model is loaded without a second copy in memory", "lowram"),
    **idle("models stay on the device that computes with them", "highvram"),
    **idle("files are mapped and read tensor by tensor", "disable_mmap_load_safetensors"),
    **idle(_LOG, "console_log_simple"),
    **idle(_LOG, "console_log_level console_log_file", VALUE),
    **idle("gradients are added up by hand, not by DistributedDataParallel", "ddp_gradient_as_bucket_view"),
    **idle("gradients are added up by hand, not by DistributedDataParallel", "ddp_static_graph"),
    **idle("pictures are measured at every start, so that nothing is out of date", "cache_info"),
    **idle("it is for training whole models, and has none on a network there either", "fused_backward_pass"),
    **idle("a network is saved as save_model_as says", "use_safetensors"),
    # kohya_ss' GUI writes these into its toml files; sd-scripts passes over them.
    **idle("sd-scripts passes over it too", "noise_offset_type stop_text_encoder_training epoch", VALUE, 0),
    **refused("it runs code of your own, which a config cannot bring along; leave it out", "dataset_class"),
    **refused(_RESUMING, "skip_until_initial_step", FLAG),
    **refused(_RESUMING, "initial_epoch initial_step"),
    **refused(_DEEPSPEED, "deepspeed zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients", FLAG),
    **refused(_DEEPSPEED, "zero_stage", default=2),
    **refused(
        _DEEPSPEED,
        "offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path",
    ),
    **refused(_UPLOAD, "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo"),
    **refused(_UPLOAD, "huggingface_repo_visibility"),
    **refused(_UPLOAD, "save_state_to_huggingface resume_from_huggingface async_upload", FLAG),
    **refused(
        "it is for model families that cannot be trained here; leave it out",
        " ".join(OF_OTHER_FAMILIES),
    ),
}

_ONE_PICTURE = "pictures are drawn from prompts alone; leave it out"
_NOT_DRAWN = "there is no such way of drawing here; leave it out"
_SDXL_SIZES = "Stable Diffusion XL is told the size that is drawn; leave it out"
_GENERATE = {
    **_TOKENIZER,
    **idle(_KIND, "sdxl v1"),
    **idle("pictures are written and not shown", "no_preview"),
    **idle("it only sets how fast and in how much memory the VAE works", "vae_batch_size vae_slices", VALUE),
    **idle("it only sets how fast attention is", "opt_channels_last network_pre_calc"),
    **idle("inspect_lora shows what a file says of itself", "network_show_meta"),
    "diffusers_xformers": ReferenceOption("", becomes=lambda _value, _given: {"xformers": True}),
    **refused(
        _ONE_PICTURE,
        "image_path mask_path strength guide_image_path control_net_models control_net_preps control_net_multipliers "
        "control_net_ratios control_net_lllite_models control_net_image_path clip_vision_strength",
        MANY,
    ),
    **refused(
        _NOT_DRAWN,
        "highres_fix_scale highres_fix_steps highres_fix_strength highres_fix_upscaler highres_fix_upscaler_args "
        "ds_depth_1 ds_timesteps_1 ds_depth_2 ds_timesteps_2 ds_ratio gradual_latent_timesteps gradual_latent_ratio "
        "gradual_latent_ratio_step gradual_latent_every_n_steps gradual_latent_s_noise gradual_latent_unsharp_params "
        "pyramid_noise_prob pyramid_noise_discount_range noise_offset_prob noise_offset_range ddim_eta negative_scale "
        "emb_normalize_mode network_regional_mask_max_color_codes network_args",
        MANY,
    ),
    **refused(
        _NOT_DRAWN,
        "highres_fix_save_1st highres_fix_latents_upscaling highres_fix_disable_control_net iter_same_seed "
        "force_scheduler_zero_steps_offset replace_clip_l14_336",
        FLAG,
    ),
    **refused("the model's own schedule is drawn on; leave it out", "zero_terminal_snr", FLAG),
    **refused("embeddings are not applied; leave it out", "textual_inversion_embeddings", MANY),
    **refused("it runs code of your own; give the prompts in from_file", "from_module prompter_module_args"),
    **refused("give the prompts in prompt or from_file", "interactive shuffle_prompts", FLAG),
    **refused("files are called by the time, their number and the seed", "sequential_file_name", FLAG),
    **refused("files are called by the time, their number and the seed", "use_original_file_name", FLAG),
    **refused(
        _SDXL_SIZES,
        "original_height original_width original_height_negative original_width_negative crop_top crop_left",
    ),
}

REFERENCE_OPTIONS: Mapping[str, Mapping[str, ReferenceOption]] = {
    "train_network": _TRAIN,
    "gen_img": _GENERATE,
    "merge_lora": refused(_BLOCKS, "lbws", MANY),
    "svd_merge_lora": {
        **refused(_BLOCKS, "lbws", MANY),
        **idle("what becomes of every layer is always told", "verbose"),
        "dynamic_method": ReferenceOption("", VALUE, becomes=_share),
        "dynamic_param": ReferenceOption("", VALUE, becomes=_beside_its_method),
    },
    "extract_lora_from_models": idle(
        "both files are read tensor by tensor", "load_original_model_to load_tuned_model_to", VALUE
    ),
    "convert_diffusers20_original_sd": {
        **idle(_KIND, "v1 v2 unet_use_linear_projection"),
        **idle("a folder is always written as safetensors", "use_safetensors"),
        **idle("schedule and vocabulary come with the program", "reference_model", VALUE),
        **idle("no program reads these numbers of a checkpoint", "epoch global_step", VALUE, 0),
        **{name: ReferenceOption("", becomes=_precision) for name in ("float", "fp16", "bf16")},
        "save_precision_as": ReferenceOption("", VALUE, default="no", becomes=_precision),
        **refused("no metadata can be given; leave it out", "metadata"),
        **refused("leave it out: whole precision is read before half where a folder has both", "variant"),
    },
}
