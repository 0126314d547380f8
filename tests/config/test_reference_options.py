"""Options of sd-scripts that are none here: accepted with one line, said in our words, or refused by name."""

import json

import pytest

from backend.__main__ import main, overview
from backend.commands import ALIASES, COMMANDS, find
from backend.config.base import from_argv, problems, resolve
from backend.config.declare import leaves
from backend.config.merge import collect
from backend.config.reference_options import FLAG, MANY, REFERENCE_OPTIONS
from backend.config.train import TrainNetwork
from backend.errors import ConfigError

REQUIRED = {
    "train_network": ["--pretrained_model_name_or_path=m", "--dataset_config=d.toml", "--output_dir=o"],
    "gen_img": ["--ckpt=m", "--prompt=x", "--outdir=o"],
    "merge_lora": ["--models", "a", "--save_to=x.safetensors"],
    "svd_merge_lora": ["--models", "a", "--save_to=x.safetensors"],
    "extract_lora_from_models": ["--model_org=a", "--model_tuned=b", "--save_to=x.safetensors"],
    "convert_diffusers20_original_sd": ["a", "b"],
}
ALL = [(command, name) for command, table in REFERENCE_OPTIONS.items() for name in table]
# Options of the reference's parsers, command by command, that have to be known one way or another.
THEIRS = {
    "train_network": """
        tokenizer_cache_dir lowram highvram disable_mmap_load_safetensors console_log_level console_log_file
        console_log_simple ddp_gradient_as_bucket_view ddp_static_graph deepspeed zero_stage offload_optimizer_device
        offload_optimizer_nvme_path offload_param_device offload_param_nvme_path zero3_init_flag zero3_save_16bit_model
        fp16_master_weights_and_gradients dataset_class cache_info skip_until_initial_step initial_epoch initial_step
        huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility
        save_state_to_huggingface resume_from_huggingface async_upload fused_backward_pass use_safetensors networkdim
        """,
    "gen_img": """
        sdxl v1 tokenizer_cache_dir vae_batch_size vae_slices no_preview opt_channels_last network_pre_calc
        network_show_meta diffusers_xformers image_path mask_path strength highres_fix_scale control_net_models
        textual_inversion_embeddings interactive from_module sequential_file_name iter_same_seed ds_depth_1
        gradual_latent_ratio crop_top original_width zero_terminal_snr emb_normalize_mode network_args
        """,
    "merge_lora": "lbws concat shuffle no_metadata precision save_precision v2",
    "svd_merge_lora": "lbws model verbose dynamic_method dynamic_param new_rank new_conv_rank device",
    "extract_lora_from_models": "load_original_model_to load_tuned_model_to min_diff clamp_quantile load_precision",
    "convert_diffusers20_original_sd": """
        v1 v2 unet_use_linear_projection fp16 bf16 float save_precision_as epoch global_step metadata variant
        reference_model use_safetensors
        """,
}


def words(command, name):
    option = REFERENCE_OPTIONS[command][name]
    value = "bf16" if name == "save_precision_as" else "1"
    return [f"--{name}", *({FLAG: [], MANY: [value, value]}.get(option.takes, [value]))]


@pytest.mark.parametrize("command", THEIRS)
def test_every_option_of_the_reference_is_known(command):
    own = {alias for leaf in leaves(COMMANDS[command].config_class()).values() for alias in (leaf.name, *leaf.aliases)}
    assert set(THEIRS[command].split()) <= own | set(REFERENCE_OPTIONS[command])


@pytest.mark.parametrize(("command", "name"), ALL)
def test_an_option_is_accepted_with_a_line_or_refused_by_name(command, name, capsys):
    command_class = COMMANDS[command].config_class()
    if name in leaves(command_class):
        return  # declared by now, which comes first
    option = REFERENCE_OPTIONS[command][name]
    try:
        # What follows must not be taken for its value, nor its value for something else.
        config = from_argv(command_class, [*words(command, name), *REQUIRED[command]])
    except ConfigError as error:
        assert option.refused or option.becomes
        assert [field for field, _ in error.problems] == [name]
        return
    assert not option.refused
    plain = from_argv(command_class, REQUIRED[command])
    told = [line for line in capsys.readouterr().out.splitlines() if name in line]
    if option.becomes is None:
        assert config == plain and len(told) == 1 and "has no effect here" in told[0]
    else:
        assert config != plain or command == "svd_merge_lora"


@pytest.mark.parametrize(("command", "name"), ALL)
def test_what_the_reference_does_by_itself_says_nothing(command, name):
    """Its --output_config writes every option, and such a file is one of ours."""
    option = REFERENCE_OPTIONS[command][name]
    told = []
    silent = option.default if option.default is not None else False
    found, wrong = collect(COMMANDS[command].config_class(), {"section": {name: silent}}, told=told)
    assert (wrong, told) == ([], []) and (not found or name in leaves(COMMANDS[command].config_class()))


def test_toml_and_flags_tell_the_same(tmp_path, capsys):
    (tmp_path / "c.toml").write_text('[general]\nlowram = true\nconsole_log_level = "DEBUG"\nzero_stage = 2\n')
    from_argv(TrainNetwork, [*REQUIRED["train_network"], "--config_file", str(tmp_path / "c.toml")])
    from_toml = capsys.readouterr().out.splitlines()
    from_argv(TrainNetwork, [*REQUIRED["train_network"], "--lowram", "--console_log_level", "DEBUG"])
    assert from_toml == capsys.readouterr().out.splitlines() and len(from_toml) == 2
    (tmp_path / "c.toml").write_text('deepspeed = true\ndataset_class = "my.Set"\n')
    with pytest.raises(ConfigError) as caught:
        from_argv(TrainNetwork, [*REQUIRED["train_network"], "--config_file", str(tmp_path / "c.toml")])
    assert [field for field, _ in caught.value.problems] == ["deepspeed", "dataset_class"]
    assert all("leave it out" in message for _, message in caught.value.problems)


def test_a_secret_is_refused_and_never_shown(capsys):
    for name in ("wandb_api_key", "huggingface_token"):
        assert main(["train_network", *REQUIRED["train_network"], f"--{name}=hush-hush"]) == 2
        said = capsys.readouterr().err
        assert "secrets are never written into a config" in said and "hush" not in said
        assert "environment" in problems(TrainNetwork, {name: "hush-hush"})[name]


def test_a_flag_that_is_switched_off_says_nothing(capsys):
    from_argv(TrainNetwork, [*REQUIRED["train_network"], "--lowram=false"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (["--dynamic_method", "sv_fro", "--dynamic_param", "0.9"], "energy=0.810000000000"),
        (["--dynamic_param=1", "--dynamic_method=sv_fro"], "energy=1.000000000000"),
    ],
)
def test_resize_lora_is_svd_merge_with_one_model(given, becomes):
    command = ["--model", "a.safetensors", "--save_to", "b.safetensors", "--new_rank", "8", "--verbose"]
    config = from_argv(find("resize_lora").config_class(), [*command, *given])
    assert [str(path) for path in config.mixture.models] == ["a.safetensors"]
    assert (config.svd.dynamic, config.svd.new_rank) == (becomes, 8)
    assert config.svd.energy == pytest.approx(float(becomes.partition("=")[2]))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (["--dynamic_method=sv_ratio", "--dynamic_param=3"], "dynamic_method"),
        (["--dynamic_method=sv_fro"], "dynamic_method"),
        (["--dynamic_method=sv_fro", "--dynamic_param=2"], "dynamic_method"),
        (["--dynamic_method=sv_fro", "--dynamic_param=x"], "dynamic_method"),
        (["--dynamic_param=0.5"], "dynamic_param"),
        (["--dynamic_method=sv_fro", "--dynamic_param=0.5", "--dynamic=energy=0.5"], "dynamic"),
    ],
)
def test_what_resize_lora_cannot_have_here_is_told(given, field):
    with pytest.raises(ConfigError) as caught:
        from_argv(find("resize_lora").config_class(), [*REQUIRED["svd_merge_lora"], *given])
    assert [name for name, _ in caught.value.problems] == [field]


@pytest.mark.parametrize(
    ("given", "precision"),
    [(["--v1"], None), (["--v2", "--fp16"], "fp16"), (["--save_precision_as", "bf16"], "bf16"), (["--float"], "float")],
)
def test_convert_takes_the_flags_of_the_reference(given, precision):
    command_class = COMMANDS["convert_diffusers20_original_sd"].config_class()
    config = from_argv(command_class, [*given, "src", "dst"])
    assert config.convert.save_precision == precision and str(config.convert.src) == "src"
    with pytest.raises(ConfigError, match="give one save_precision"):
        from_argv(command_class, ["src", "dst", "--fp16", "--bf16"])


def test_commands_are_known_by_the_names_of_the_reference():
    for alias, name in {
        "sdxl_train_network": "train_network",
        "sdxl_gen_img": "gen_img",
        "gen_img_diffusers": "gen_img",
        "sdxl_merge_lora": "merge_lora",
        "resize_lora": "svd_merge_lora",
        "networks\\merge_lora.py": "merge_lora",
        "networks/svd_merge_lora.py": "svd_merge_lora",
    }.items():
        assert find(alias) is COMMANDS[name]
    assert all(alias in overview() for alias in ALIASES)


def test_networkdim_is_network_dim():
    assert from_argv(TrainNetwork, [*REQUIRED["train_network"], "--networkdim=7"]).network.network_dim == 7
    given = {"pretrained_model_name_or_path": "m", "dataset_config": "d", "output_dir": "o", "networkdim": 7}
    assert resolve(TrainNetwork, json.loads(json.dumps(given))).network.network_dim == 7


def test_an_option_that_is_here_is_not_told_to_be_elsewhere():
    for command, table in REFERENCE_OPTIONS.items():
        known = leaves(COMMANDS[command].config_class())
        ours = {name for leaf in known.values() for name in (leaf.name, *leaf.aliases)}
        assert not ours & set(table), command
