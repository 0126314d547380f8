"""What describes the data, in whole runs: folders and flags, multipliers, weights of captions, the listing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from backend.errors import UserError
from backend.lora.file import read_lora
from backend.train.loop import run, train, training_step
from backend.train.setup import prepare
from tests.train.conftest import draw_pictures
from tests.train.test_step import first_group, gradients, warm


def weights(prepared) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in prepared.network.state_dict().items()}


@pytest.fixture
def folders(tmp_path) -> Path:
    """train/2_red disc, train/1_disc, reg/1_disc, some pictures without captions."""
    for name, count in (("train/2_red disc", 3), ("train/1_disc", 2), ("reg/1_disc", 2)):
        draw_pictures(tmp_path / name, count, (64, 112))
    (tmp_path / "train/2_red disc/01.txt").unlink()
    return tmp_path


FLAGS = {
    "resolution": 64,
    "train_batch_size": 2,
    "shuffle_caption": True,
    "flip_aug": True,
    "caption_prefix": "zq,",
    "enable_bucket": True,
    "min_bucket_reso": 32,
    "max_bucket_reso": 128,
    "bucket_reso_steps": 16,
}


def test_folders_train_as_the_same_toml_does(run_of, folders) -> None:
    source = {"dataset_config": None, "train_data_dir": str(folders / "train"), "reg_data_dir": str(folders / "reg")}
    in_folders = run_of(**source, **FLAGS)
    toml = folders / "same.toml"
    toml.write_text(
        "[general]\nbatch_size = 2\nshuffle_caption = true\nflip_aug = true\ncaption_prefix = 'zq,'\n"
        "enable_bucket = true\nmin_bucket_reso = 32\nmax_bucket_reso = 128\nbucket_reso_steps = 16\n"
        "[[datasets]]\nresolution = 64\n"
        f"[[datasets.subsets]]\nimage_dir = '{folders}/train/1_disc'\nclass_tokens = 'disc'\n"
        f"[[datasets.subsets]]\nimage_dir = '{folders}/train/2_red disc'\nclass_tokens = 'red disc'\nnum_repeats = 2\n"
        f"[[datasets.subsets]]\nimage_dir = '{folders}/reg/1_disc'\nclass_tokens = 'disc'\nis_reg = true\n"
    )
    in_toml = run_of(dataset_config=str(toml))
    assert in_folders.training_set.epoch_batches(7, 0) == in_toml.training_set.epoch_batches(7, 0)
    assert any("red disc" in item.picture.caption for b in in_toml.training_set.epoch_batches(7, 0) for item in b.items)
    losses = [train(each).losses for each in (in_folders, in_toml)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    first, second = weights(in_folders), weights(in_toml)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_file_from_folders_has_the_flat_fields_too(run_of, folders) -> None:
    source = {"dataset_config": None, "train_data_dir": str(folders / "train"), "reg_data_dir": str(folders / "reg")}
    prepared = run_of(**source, **FLAGS, gradient_accumulation_steps=3, caption_tag_dropout_rate=0.1)
    train(prepared)
    found = read_lora(prepared.outputs.final).metadata
    expected = {
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "6",
        "ss_resolution": "(64, 64)",
        "ss_color_aug": "False",
        "ss_flip_aug": "True",
        "ss_random_crop": "False",
        "ss_shuffle_caption": "True",
        "ss_enable_bucket": "True",
        "ss_bucket_no_upscale": "False",
        "ss_min_bucket_reso": "32",
        "ss_max_bucket_reso": "128",
        "ss_keep_tokens": "0",
        "ss_caption_tag_dropout_rate": "0.1",
        "ss_caption_dropout_every_n_epochs": "0",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert json.loads(found["ss_dataset_dirs"]) == {
        "1_disc": {"n_repeats": 1, "img_count": 2},
        "2_red disc": {"n_repeats": 2, "img_count": 3},
    }
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"1_disc": {"n_repeats": 1, "img_count": 2}}
    assert json.loads(found["ss_bucket_info"])["buckets"]["0"]["count"] == 16


def test_a_file_from_a_toml_has_no_flat_fields(run_of) -> None:
    prepared = run_of(max_train_steps=1)
    train(prepared)
    found = read_lora(prepared.outputs.final).metadata
    assert "ss_resolution" not in found and "ss_keep_tokens" not in found
    assert json.loads(found["ss_datasets"])[0]["subsets"][0]["caption_tag_dropout_rate"] == 0.0


def test_flags_stand_behind_the_toml(run_of, dataset) -> None:
    data = str(dataset(extra="keep_tokens = 2"))
    prepared = run_of(dataset_config=data, keep_tokens=1, caption_suffix="zq", train_batch_size=3)
    (options,) = prepared.training_set.datasets
    assert (options.batch_size, options.subsets[0].keep_tokens) == (4, 2)
    items = prepared.training_set.epoch_batches(0, 0)[0].items
    assert all(item.caption.endswith(" zq") for item in items)


def test_a_dataset_is_trained_at_its_multiplier(run_of, dataset) -> None:
    data = dataset()
    whole = warm(run_of(dataset_config=str(data), max_grad_norm=0))
    half = data.with_name("half.toml")
    half.write_text(data.read_text().replace("[[datasets]]", "[[datasets]]\nnetwork_multiplier = 0.5", 1))
    halved = warm(run_of(dataset_config=str(half), max_grad_norm=0))
    loss, _ = gradients(whole, first_group(whole))
    at_half, found = gradients(halved, first_group(halved))
    assert at_half != pytest.approx(loss, rel=1e-4)
    assert halved.network.multiplier == 1.0  # as samples see it
    # The same as a network with half the strength in its weights; what is learnt of `up` then counts half.
    same = warm(run_of(dataset_config=str(data), max_grad_norm=0))
    with torch.no_grad():
        for adapter in same.network.adapters():
            adapter.lora_up.weight *= 0.5
    by_weight, expected = gradients(same, first_group(same))
    assert at_half == pytest.approx(by_weight, rel=1e-6)
    for name in found:
        factor = 0.5 if "lora_up" in name else 1.0
        torch.testing.assert_close(found[name], expected[name] * factor, rtol=1e-3, atol=1e-7)


def test_text_encoders_at_several_multipliers_are_asked_anew(run_of, dataset) -> None:
    data = dataset()
    half = data.with_name("half.toml")
    half.write_text(data.read_text().replace("[[datasets]]", "[[datasets]]\nnetwork_multiplier = 0.5", 1))
    prepared = run_of(dataset_config=str(half), text_encoder_lr=0.0)
    warm(prepared)
    with torch.no_grad():
        whole = prepared.encode_captions(["a disc"]).hidden
        prepared.network.set_multiplier(0.5)
        assert not torch.allclose(prepared.encode_captions(["a disc"]).hidden, whole)


def test_weights_in_captions_count_only_with_weighted_captions(run_of, dataset) -> None:
    data = dataset(extra="caption_suffix = '(zq:3)'")
    plain = dataset(extra="caption_suffix = 'zq' #")

    def loss(path: Path, **options: object) -> float:
        prepared = run_of(dataset_config=str(path), max_grad_norm=0, **options)
        return gradients(prepared, first_group(prepared))[0]

    weighted, as_text = loss(data, weighted_captions=True), loss(data)
    assert len({weighted, as_text, loss(plain)}) == 3
    assert loss(plain, weighted_captions=True) == loss(plain)


def test_weighted_captions_can_be_encoded_once(run_of, dataset) -> None:
    data = str(dataset(extra="caption_suffix = '(zq:3)'"))
    options = {"dataset_config": data, "weighted_captions": True, "network_train_unet_only": True}
    losses = [train(run_of(**options, cache_text_encoder_outputs=cached)).losses for cached in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


CHANGES = [
    "shuffle_caption = true",
    "enable_wildcard = true",
    "caption_dropout_rate = 0.1",
    "caption_dropout_every_n_epochs = 2",
    "caption_tag_dropout_rate = 0.1",
    "token_warmup_step = 0.5",
]


@pytest.mark.parametrize("line", CHANGES)
def test_captions_that_change_cannot_be_encoded_once(config_of, dataset, line, monkeypatch) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    data = str(dataset(extra=line))
    config = config_of(dataset_config=data, cache_text_encoder_outputs=True, network_train_unet_only=True)
    with pytest.raises(UserError, match=f"has {line.split()[0]}; leave one out"):
        prepare(config)


def test_captions_grow_with_the_steps_of_a_run(run_of, dataset) -> None:
    extra = "token_warmup_step = 4\ncaption_separator = ' '"
    data = str(dataset(count=4, batch_size=1, extra=extra))
    prepared = run_of(dataset_config=data, gradient_accumulation_steps=2, max_train_epochs=2)
    lengths = [
        [len(batch.items[0].caption.split(", ")) for batch in prepared.training_set.epoch_batches(7, epoch)]
        for epoch in range(2)
    ]
    # "a red disc on green" has five parts: 1 + floor(step * 4 / 4), two steps an epoch.
    assert lengths == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_every_second_epoch_trains_without_captions(run_of, dataset) -> None:
    data = str(dataset(extra="caption_dropout_every_n_epochs = 2"))
    prepared = run_of(dataset_config=data)
    told = []
    encode = prepared.encode_captions
    prepared.encode_captions = lambda captions: told.append(set(captions)) or encode(captions)
    train(prepared)
    assert len(told[0]) == 4 and told[1] == {""}


def test_the_listing_loads_nothing_and_writes_nothing(config_of, folders, monkeypatch, capsys) -> None:
    monkeypatch.setattr("backend.train.setup.load_model", None)
    monkeypatch.setattr("backend.train.loop.prepare", None)
    config = config_of(
        dataset_config=None,
        train_data_dir=str(folders / "train"),
        pretrained_model_name_or_path="none",
        debug_dataset=True,
        max_train_epochs=2,
        caption_dropout_every_n_epochs=2,
        gradient_accumulation_steps=2,
        **FLAGS | {"shuffle_caption": False},
    )
    before = sorted(path for path in folders.rglob("*"))
    run(config)
    assert sorted(path for path in folders.rglob("*")) == before and not config.save.output_dir.exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 * 8
    # 8 samples in batches of two are two steps of two batches.
    assert [line.split(": ")[0] for line in lines[::2]] == [
        f"epoch {epoch}, step {(epoch - 1) * 2 + step}, batch {2 * (step - 1) + batch}"
        for epoch in (1, 2)
        for step in (1, 2)
        for batch in (1, 2)
    ]
    without = [line for line in lines if "2_red disc/01.png" in line]
    assert without[0].split(": ", 1)[1].replace(", mirrored", "") == (
        f'{folders}/train/2_red disc/01.png (64x112 in bucket 48x80, 2 times an epoch) "zq, red disc"'
    )
    assert any("mirrored" in line for line in lines)
    assert all(line.endswith('""') for line in lines[8:])


def test_the_listing_leaves_out_what_the_run_holds_out(config_of, dataset, capsys) -> None:
    from backend.train.setup import check

    config = config_of(dataset_config=str(dataset(count=9)), validation_split=0.34, debug_dataset=True)
    run(config)
    listed = capsys.readouterr().out
    found = check(config).training_set
    assert len(found.validation) == 3
    assert not any(str(picture.path) in listed for picture in found.validation)
    assert all(str(picture.path) in listed for picture in found.pictures)


def test_the_listing_refuses_what_the_run_refuses(config_of, dataset) -> None:
    data = str(dataset(extra="random_crop = true"))
    with pytest.raises(UserError, match="random_crop"):
        run(config_of(dataset_config=data, cache_latents=True, debug_dataset=True))
    with pytest.raises(UserError, match="without held out pictures"):
        run(config_of(dataset_config=str(dataset()), validation_seed=1, debug_dataset=True))


def test_a_listing_ends_well_and_a_wrong_set_with_its_reason(folders, tmp_path, monkeypatch) -> None:
    from backend.__main__ import main

    monkeypatch.chdir(tmp_path)
    words = ["train_network", "--pretrained_model_name_or_path=none", "--output_dir=out", "--resolution=64"]
    assert main([*words, "--train_data_dir", str(folders / "train"), "--debug_dataset"]) == 0
    shutil.rmtree(folders / "train")
    assert main([*words, "--train_data_dir", str(folders / "train"), "--debug_dataset"]) == 2


def test_the_step_in_hand_is_left_at_full_strength(run_of) -> None:
    prepared = run_of()
    training_step(prepared, 0, first_group(prepared))
    assert {adapter.multiplier for adapter in prepared.network.adapters()} == {1.0}


def test_attributes_of_ones_own_are_kept_in_the_file(run_of, dataset) -> None:
    run = run_of(
        dataset_config=str(dataset(2, extra='custom_attributes = {artist = "me", size = 3}')), max_train_steps=1
    )
    train(run)
    described = json.loads(read_lora(run.outputs.final).metadata["ss_datasets"])
    assert described[0]["subsets"][0]["custom_attributes"] == {"artist": "me", "size": 3}
