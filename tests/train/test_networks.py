"""Kinds and options of networks in a training run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from backend.__main__ import main
from backend.config.argv import from_argv
from backend.config.base import read_toml, resolve
from backend.config.train import TrainNetwork
from backend.errors import ConfigError, UserError
from backend.families.base import Model, load_model
from backend.header import read_header
from backend.lora.file import read_lora
from backend.lora.metadata import file_hashes
from backend.networks.dylora import draw_rank
from backend.networks.modules import find_modules
from backend.train.feed import MicroBatch
from backend.train.loop import train, training_step
from backend.train.noise import draw_noise, draw_timesteps
from backend.train.setup import prepare

ROOT = Path(__file__).parents[2]
KINDS = {
    "c3lier": {"network_args": ["conv_dim=4", "conv_alpha=1"]},
    "dylora": {"network_module": "networks.dylora", "network_dim": 8, "network_args": ["unit=2", "conv_dim=8"]},
    "loha": {"network_module": "loha", "network_args": ["conv_dim=2"]},
    "blocks": {"network_args": ["down_lr_weight=sine+.5", "block_dims=" + ",".join(["0", *["2"] * 24])]},
    "dropouts": {"network_dropout": 0.1, "network_args": ["rank_dropout=0.2", "module_dropout=0.2"]},
}


@pytest.fixture(scope="session")
def model(model_folder) -> Model:
    """A whole one here: options by block count on the modules that each block of Stable Diffusion has."""
    return load_model(model_folder, dtype=None)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_every_kind_is_trained_and_saved(run_of, options: dict) -> None:
    run = run_of(max_train_steps=3, **options)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    progress = train(run)
    assert len(progress.losses) == 3 and all(torch.isfinite(torch.tensor(progress.losses)))
    file = read_lora(run.outputs.final)
    assert set(file.layers) == {item.lora_name for item in run.network.adapters()}
    after = run.network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if "alpha" not in name)
    assert file.metadata["ss_network_module"] == run.config.network.network_module
    assert file_hashes(run.outputs.final).items() <= read_header(run.outputs.final).metadata.items()


@pytest.mark.parametrize("name", ["dylora", "dropouts"])
def test_random_parts_repeat_with_the_seed_and_under_checkpointing(run_of, name: str) -> None:
    losses = [
        train(run_of(max_train_steps=4, learning_rate=1e-2, gradient_checkpointing=again, **KINDS[name])).losses
        for again in (False, False, True)
    ]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] != train(run_of(max_train_steps=4, learning_rate=1e-2, seed=8, **KINDS[name])).losses


@pytest.mark.parametrize("name", ["dylora", "dropouts"])
def test_one_batch_of_four_is_micro_batches_of_two(run_of, name: str) -> None:
    whole, cut = (run_of(**KINDS[name]) for _ in range(2))
    (pair,) = list(whole.feed(whole.training_set.epoch_batches(7, 0)))
    batch, latents, _ = pair
    halves = [
        MicroBatch(replace(batch, items=batch.items[half], global_size=2), latents[half])
        for half in (slice(0, 2), slice(2, 4))
    ]
    losses = [
        [float(training_step(run, step, micro)) for step in range(3)] for run, micro in ((whole, [pair]), (cut, halves))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_dylora_trains_the_drawn_rank(run_of) -> None:
    run = run_of(**KINDS["dylora"], learning_rate=1e-2, optimizer_args=["weight_decay=0"])
    (pair,) = list(run.feed(run.training_set.epoch_batches(7, 0)))
    step = next(step for step in range(50) if draw_rank(7, step, 8, 2) == 2)
    before = [item.lora_up.weight.detach().clone() for item in run.network.unet_loras]
    training_step(run, step, [pair])
    changed = [item.lora_up.weight.detach() - old for item, old in zip(run.network.unet_loras, before, strict=True)]
    assert all(change[:, :2].any() and not change[:, 2:].any() for change in changed)


def test_training_goes_on_from_a_file_at_its_own_strength(run_of, tmp_path) -> None:
    first = run_of(network_dim=4, network_alpha=3.0, output_name="first", learning_rate=1e-2)
    train(first)
    file = first.outputs.final
    again = run_of(network_dim=4, network_alpha=1.0, network_weights=str(file), output_name="again")
    old, new = read_lora(file).layers, again.network.state_dict()
    for key, layer in old.items():
        assert torch.equal(new[f"{key}.lora_up.weight"].cpu(), layer.up)
    assert {item.alpha for item in again.network.adapters()} == {3.0}
    train(again)
    assert {layer.alpha for layer in read_lora(again.outputs.final).layers.values()} == {3.0}
    with pytest.raises(UserError, match="first.safetensors: .*set dim_from_weights to take the file's ranks"):
        run_of(network_dim=8, network_weights=str(file))
    taken = run_of(network_dim=8, network_weights=str(file), dim_from_weights=True, network_dropout=0.1)
    assert {(item.lora_dim, item.alpha) for item in taken.network.adapters()} == {(4, 3.0)}
    assert taken.network.dropout.rates.neuron == 0.1


def test_a_part_that_the_file_lacks_starts_from_nothing_and_one_too_much_is_refused(run_of, capsys) -> None:
    unet_only = run_of(network_train_unet_only=True, output_name="unet")
    train(unet_only)
    run = run_of(network_weights=str(unet_only.outputs.final), output_name="both")
    assert "has no weights for 12 of the network's modules" in capsys.readouterr().out
    assert not any(item.lora_up.weight.any() for item in run.network.text_encoder_loras)
    wide = run_of(network_args=["conv_dim=4"], output_name="wide")
    train(wide)
    with pytest.raises(UserError, match="wide.safetensors: 8[0-9] of its keys match no module here"):
        run_of(network_weights=str(wide.outputs.final))


def test_base_weights_are_merged_before_training(run_of, model) -> None:
    first = run_of(output_name="first", learning_rate=1e-2)
    train(first)
    file = str(first.outputs.final)
    run = run_of(base_weights=[file, file], base_weights_multiplier=[0.5], output_name="second")
    key, layer = list(read_lora(file).layers.items())[-1]
    path = find_modules(None, model.unet)[key].target.path
    merged, plain = run.model.unet.get_submodule(path).weight, model.unet.get_submodule(path).weight
    torch.testing.assert_close(merged, plain + 1.5 * layer.delta().view_as(plain))
    assert not any(parameter.requires_grad for parameter in run.model.unet.parameters())


def test_norms_stay_below_the_largest(run_of) -> None:
    free = run_of(max_train_steps=6, learning_rate=0.1)
    train(free)
    held = run_of(max_train_steps=6, learning_rate=0.1, scale_weight_norms=0.05)
    train(held)
    assert max(float(item.norm()) for item in free.network.adapters()) > 0.06
    assert max(float(item.norm()) for item in held.network.adapters()) <= 0.05 * 1.001


def test_rates_by_block_reach_the_optimizer(run_of) -> None:
    run = run_of(network_args=["up_lr_weight=linear+.5", "loraplus_lr_ratio=4"], unet_lr=1e-3, text_encoder_lr=1e-4)
    rates = dict(zip(run.group_names, run.peaks, strict=True))
    assert (rates["text_encoder"], rates["text_encoder_plus"]) == pytest.approx((1e-4, 4e-4))
    assert (rates["unet_block16"], rates["unet_block24"]) == pytest.approx((1e-3 * (0.5 + 3 / 11), 1.5e-3))
    assert rates["unet_block24_plus"] == pytest.approx(6e-3)


def test_seed_command_lines_are_read() -> None:
    line = ["--pretrained_model_name_or_path=m", "--dataset_config=d.toml", "--output_dir=o", "--network_dim=32"]
    dims = "2,4,4,4,8,8,8,8,12,12,12,12,16,12,12,12,12,8,8,8,8,4,4,4,2"
    for further in (
        ["--network_module=networks.dylora", "--network_args", "conv_dim=32", "conv_alpha=16", "unit=8"],
        ["--network_module=networks.lora", "--network_args", "conv_dim=4", "conv_alpha=1"],
        ["--network_args", "block_lr_zero_threshold=0.1", "down_lr_weight=sine+.5", "mid_lr_weight=1.5",
         "up_lr_weight=cosine+.5"],
        ["--network_args", "down_lr_weight=0.5,0.5,0.5,0.5,1.0,1.0,1.0,1.0,1.5,1.5,1.5,1.5", "mid_lr_weight=2.0"],
        ["--network_args", f"block_dims={dims}", f"block_alphas={dims}", f"conv_block_dims={dims}"],
    ):  # fmt: skip
        config = from_argv(TrainNetwork, [*line, *further])
        assert set(config.network.network_args) == {item.partition("=")[0] for item in further if "=" in item[3:]} - {
            "--network_module"
        }
    config = from_argv(TrainNetwork, [*line, "--text_encoder_lr", "1e-5", "2e-5"])
    assert config.optim.text_encoder_lr == (1e-5, 2e-5)
    assert from_argv(TrainNetwork, [*line, "--text_encoder_lr=1e-5"]).optim.text_encoder_lr == (1e-5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_module": "dylora", "network_dim": 8, "network_args": ["unit=3"]}, "network_args.unit: must divide"),
        ({"network_module": "dylora", "network_args": ["block_dims=1"]}, "network_args.block_dims: has no meaning"),
        ({"network_args": ["con_dim=4"]}, "network_args.con_dim: .*did you mean conv_dim"),
        ({"network_args": ["down_lr_weight=sinus"]}, "network_args.down_lr_weight: must be numbers from 0"),
        ({"network_args": {"block_dims": [1, -2]}}, "network_args.block_dims: must be numbers from 0"),
        ({"dim_from_weights": True}, "dim_from_weights: needs network_weights"),
        ({"base_weights_multiplier": [1.0]}, "base_weights_multiplier: has 1 values for 0 files"),
        ({"network_module": "loha", "network_dropout": 0.1}, "network_dropout: has no meaning for networks.loha"),
        ({"text_encoder_lr": [1e-4, 1e-4, 1e-4]}, "text_encoder_lr: must be one rate from 0"),
    ],
)
def test_what_cannot_work_dies_in_the_form_and_on_the_shell(options: dict, message: str) -> None:
    needed = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml", "output_dir": "o"}
    with pytest.raises(ConfigError, match=message):
        resolve(TrainNetwork, needed, options)


def test_wrong_lengths_are_one_line_before_training(run_of) -> None:
    with pytest.raises(UserError, match="block_dims: has 23 values, but must have 25, one per block"):
        run_of(network_args=["block_dims=" + ",".join(["2"] * 23)])


def pefts_loop(config: TrainNetwork, start: list[Tensor], paths: list[str], steps: int) -> list[float]:
    """A plain training loop of diffusers' parts with PEFT's LoRA: of ours it has the pictures' order and the draws."""
    prepared = prepare(config)  # for latents, captions and draws alone
    root = ROOT / config.model.pretrained_model_name_or_path
    unet = UNet2DConditionModel.from_pretrained(root, subfolder="unet", torch_dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(root / "text_encoder", dtype=torch.float32)
    scheduler = DDPMScheduler.from_pretrained(root, subfolder="scheduler")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=paths))
    layers = [unet.get_submodule(path) for path in paths]
    parameters = [weight for layer in layers for weight in (layer.lora_A.default.weight, layer.lora_B.default.weight)]
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.learning_rate)
    pairs = prepared.feed([b for epoch in range(8) for b in prepared.training_set.epoch_batches(1, epoch)])
    losses = []
    for step, (batch, latents, _) in zip(range(steps), pairs, strict=False):
        count = range(len(batch.items))
        noise, times = draw_noise(1, step, count, latents.shape[1:]), draw_timesteps(1, step, count, 1000)
        ids = prepared.model.family.tokenize(prepared.model, [item.caption for item in batch.items]).reshape(-1, 77)
        with torch.no_grad():
            hidden = encoder(ids).last_hidden_state
        predicted = unet(scheduler.add_noise(latents, noise, times), times, hidden).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_twenty_steps_on_the_demo_model_are_those_of_a_plain_peft_loop(tmp_path, monkeypatch) -> None:
    """The same pictures, noise, time steps and starting weights; everything else is diffusers', PEFT's and torch's."""
    monkeypatch.chdir(ROOT)
    preset = read_toml(TrainNetwork, "presets/train_network/demo.toml")
    options = {"output_dir": str(tmp_path), "max_train_steps": 20, "network_train_unet_only": True}
    options |= {"lr_scheduler": "constant", "lr_warmup_steps": 0.0, "overwrite": True, "sample_every_n_epochs": 999}
    config = resolve(TrainNetwork, preset, options)
    run = prepare(config)
    found = find_modules(None, run.model.unet)
    paths = [found[item.lora_name].target.path for item in run.network.unet_loras]
    theirs = pefts_loop(config, [parameter.detach().clone() for parameter in run.network.parameters()], paths, 20)
    ours = train(run).losses
    assert len(ours) == len(theirs) == 20 and ours == pytest.approx(theirs, rel=1e-5)
    assert ours[0] != ours[-1]


def wrong_files(folder: Path) -> dict[str, Path]:
    """Files that no option may take, by what is wrong with them."""
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    good = {f"{key}.lora_down.weight": torch.ones(4, 64), f"{key}.lora_up.weight": torch.ones(128, 4)}
    xl = key.replace("mid_block_attentions_0", "middle_block_1")
    tensors = {
        "truncated": good,
        "other": {f"{xl}.lora_down.weight": torch.ones(4, 2048), f"{xl}.lora_up.weight": torch.ones(1280, 4)},
        "nan": {**good, f"{key}.lora_up.weight": torch.full((128, 4), torch.nan)},
        "hostile": {f"lora_unet_../../{name}": value for name, value in good.items()},
        "alpha": {**good, f"{key}.alpha": torch.ones(3)},
    }
    files = {name: folder / f"{name}.safetensors" for name in tensors}
    for name, path in files.items():
        save_file(tensors[name], path)
    files |= {f"{name} pickle": folder / f"{name}.pt" for name in ("truncated", "nan", "code")}
    torch.save(good, files["truncated pickle"])
    torch.save(tensors["nan"], files["nan pickle"])
    torch.save({"code": Hostile(folder / "ran")}, files["code pickle"])
    for name in ("truncated", "truncated pickle"):
        files[name].write_bytes(files[name].read_bytes()[:-100])
    return files


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


WRONG = {
    "truncated": "cut off",
    "truncated pickle": "cut off",
    "other": "keys match no module|made for",
    "nan": "not finite",
    "nan pickle": "not finite",
    "alpha": "no single",
    "hostile": "match no module|no LoRA",
    "code pickle": "holds more than tensors",
}


@pytest.mark.parametrize("option", ["network_weights", "dim_from_weights", "base_weights"])
def test_a_file_for_a_wider_model_is_told_from_one_of_other_rank(option: str, run_of, tmp_path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    file = tmp_path / "wide.safetensors"
    save_file({f"{key}.lora_down.weight": torch.ones(4, 128), f"{key}.lora_up.weight": torch.ones(128, 4)}, file)
    options = {option: [str(file)]} if option == "base_weights" else {"network_weights": str(file)}
    options |= {"dim_from_weights": True} if option == "dim_from_weights" else {}
    with pytest.raises(UserError, match=r"attn2_to_k is made for a weight of \(128, 128\), the model's is \(128, 64\)"):
        run_of(**options)


@pytest.mark.parametrize("option", ["--network_weights", "--dim_from_weights --network_weights", "--base_weights"])
def test_a_wrong_network_file_is_one_line_and_touches_nothing(
    option: str, tmp_path, model_folder, dataset, capsys
) -> None:
    output = tmp_path / "out"
    files = wrong_files(tmp_path)
    assert files.keys() == WRONG.keys()
    for name, path in files.items():
        line = ["train_network", "--pretrained_model_name_or_path", str(model_folder), "--dataset_config"]
        line += [str(dataset()), "--output_dir", str(output), "--max_train_steps", "1", *option.split()]
        assert main([*line, str(path)]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert path.name in error[-1] and "Traceback" not in "".join(error)
        assert re.search(WRONG[name], error[-1]), name
        assert not list(output.iterdir())
    assert not (tmp_path / "ran").exists()


def test_the_file_tells_its_own_rank_alpha_and_unit(run_of) -> None:
    first = run_of(network_dim=8, network_alpha=3.0, output_name="first")
    train(first)
    file = str(first.outputs.final)
    for options in ({"dim_from_weights": True}, {"network_dim": 8}):
        run = run_of(network_weights=file, output_name="again", **options)
        train(run)
        facts = read_lora(run.outputs.final).metadata
        assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == ("8", "3.0")
    dylora = run_of(network_module="dylora", output_name="dylora")
    train(dylora)
    assert '"unit": "1"' in read_lora(dylora.outputs.final).metadata["ss_network_args"]
    with pytest.raises(ConfigError, match="network_args.block_dims: has no effect with dim_from_weights"):
        run_of(network_weights=file, dim_from_weights=True, network_args={"block_dims": [2] * 25})


@pytest.mark.parametrize("name", ["dylora", "dropouts"])
def test_a_part_that_is_not_trained_rests_in_full(run_of, name: str) -> None:
    """Its conditioning is remembered, so nothing random may be in it; and no gradients pile up."""
    run = run_of(text_encoder_lr=0.0, **KINDS[name])
    for item in run.network.text_encoder_loras:
        torch.nn.init.normal_(item.lora_up.weight, std=0.1)
    (pair,) = list(run.feed(run.training_set.epoch_batches(7, 0)))
    captions = [item.caption for item in pair[0].items]
    seen = []
    for step in range(4):
        training_step(run, step, [pair])
        run.network.begin_step(7, step, range(4))
        ids = run.model.family.tokenize(run.model, captions)
        seen.append(run.model.family.encode(run.model, ids).hidden)
    assert all(torch.equal(seen[0], hidden) for hidden in seen)
    assert not any(
        parameter.requires_grad for item in run.network.text_encoder_loras for parameter in item.parameters()
    )
    run.network.eval()
    ids = run.model.family.tokenize(run.model, captions)
    torch.testing.assert_close(run.model.family.encode(run.model, ids).hidden, seen[0])


def test_what_is_not_trained_gathers_no_gradients(run_of) -> None:
    run = run_of(unet_lr=0.0)
    train(run)
    assert all(parameter.grad is None for item in run.network.unet_loras for parameter in item.parameters())
    assert any(item.lora_up.weight.any() for item in run.network.text_encoder_loras)


def test_only_the_trained_part_of_a_file_is_taken(run_of, capsys) -> None:
    first = run_of(output_name="first")
    train(first)
    capsys.readouterr()
    run = run_of(network_weights=str(first.outputs.final), network_train_unet_only=True, output_name="unet")
    assert "12 modules of" in (said := capsys.readouterr().out) and "has no weights" not in said
    assert not run.network.text_encoder_loras
    unet = run_of(network_train_unet_only=True, output_name="only")
    train(unet)
    with pytest.raises(UserError, match="network_weights: has nothing for the part"):
        run_of(network_weights=str(unet.outputs.final), dim_from_weights=True, network_train_text_encoder_only=True)
