"""The tables of names against the reference's lists and the known layout of SD1 checkpoints."""

import json
from collections import Counter
from pathlib import Path

import pytest

from backend.tables.names import Target, UNetShape, text_encoder_targets, unet_targets

DATA = Path(__file__).parents[1] / "data" / "keys"
# SD1's last level is as wide as the one before, so its first block has no shortcut; in narrower models it may.
OPTIONAL = "lora_unet_down_blocks_3_resnets_0_conv_shortcut"


def reference_keys(name: str) -> list[str]:
    return list(json.loads((DATA / f"{name}.json").read_text())["modules"])


def sd1_targets() -> list[Target]:
    return [*text_encoder_targets("sd1", 12), *unet_targets("sd1")]


def test_lierla_keys_and_their_order_are_the_references() -> None:
    assert [target.key for target in sd1_targets() if not target.conv_only] == reference_keys("sd15_lierla")


def test_c3lier_keys_and_their_order_are_the_references() -> None:
    keys = [target.key for target in sd1_targets()]
    keys.remove(OPTIONAL)
    assert keys == reference_keys("sd15_c3lier")


def test_only_the_last_levels_shortcut_and_its_like_are_optional() -> None:
    assert [target.path for target in unet_targets("sd1") if target.optional] == [
        f"down_blocks.{level}.resnets.0.conv_shortcut" for level in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("path", "tensor"),
    [
        ("down_blocks.0.attentions.1.proj_in", "input_blocks.2.1.proj_in"),
        (
            "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "input_blocks.7.1.transformer_blocks.0.attn2.to_out.0",
        ),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        (
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "middle_block.1.transformer_blocks.0.ff.net.0.proj",
        ),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.2.upsamplers.0.conv", "output_blocks.8.2.conv"),
        ("up_blocks.3.resnets.2.time_emb_proj", "output_blocks.11.0.emb_layers.1"),
    ],
)  # fmt: skip
def test_unet_modules_are_found_in_a_checkpoint(path: str, tensor: str) -> None:
    found = {target.path: target for target in unet_targets("sd1")}[path]
    assert found.checkpoint_key == f"model.diffusion_model.{tensor}.weight"
    assert found.key == "lora_unet_" + path.replace(".", "_")


def test_text_encoder_modules_are_found_in_a_checkpoint() -> None:
    found = {target.path: target for target in text_encoder_targets("sd1", 12)}["encoder.layers.11.mlp.fc2"]
    assert found.checkpoint_key == "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight"
    assert found.key == "lora_te_text_model_encoder_layers_11_mlp_fc2"


def test_keys_and_checkpoint_names_are_unique() -> None:
    targets = sd1_targets()
    assert len({target.key for target in targets}) == len({target.checkpoint_key for target in targets}) == 351


def test_kinds_are_as_counted_in_sd15() -> None:
    present = [target for target in unet_targets("sd1") if target.key != OPTIONAL]
    assert Counter(target.kind for target in present) == {"linear": 182, "conv1x1": 46, "conv3x3": 50}
    assert Counter(target.kind for target in present if not target.conv_only) == {"linear": 160, "conv1x1": 32}


def test_modules_per_block_are_the_references() -> None:
    present = [target for target in unet_targets("sd1") if target.key != OPTIONAL]
    c3lier, lierla = Counter(t.block for t in present), Counter(t.block for t in present if not t.conv_only)
    assert [c3lier[block] for block in range(25)] == [
        0, 15, 15, 1, 16, 15, 1, 16, 15, 1, 3, 3, 18, 4, 4, 5, 16, 16, 17, 16, 16, 17, 16, 16, 16
    ]  # fmt: skip
    assert lierla == dict.fromkeys([1, 2, 4, 5, 7, 8, 12, *range(16, 25)], 12)


def test_another_shape_gets_names_of_the_same_pattern() -> None:
    targets = {target.path: target for target in unet_targets(UNetShape(depths=(0, 2), middle=2, layers=1))}
    deep = targets["up_blocks.0.attentions.1.transformer_blocks.1.attn1.to_k"]
    assert deep.checkpoint_key == "model.diffusion_model.output_blocks.1.1.transformer_blocks.1.attn1.to_k.weight"
    assert (targets["mid_block.resnets.0.conv1"].block, deep.block) == (4, 6)
    assert not any(path.startswith(("down_blocks.0.attentions", "up_blocks.1.attentions")) for path in targets)


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sd9 is no model family.*sd1"):
        unet_targets("sd9")
    with pytest.raises(ValueError, match="number 2"):
        text_encoder_targets("sd1", 12, index=1)
