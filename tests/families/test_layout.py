"""The name tables: one to one, both ways, and right at the places that are easy to get wrong."""

import pytest

from backend.tables import layout
from backend.tables.layout import UNetLayout

UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "down_blocks.0.resnets.1.conv2.weight": "input_blocks.2.0.out_layers.3.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight",
    "down_blocks.3.resnets.1.time_emb_proj": "input_blocks.11.0.emb_layers.1",
    "mid_block.resnets.1.norm2.weight": "middle_block.2.out_layers.0.weight",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "up_blocks.0.upsamplers.0.conv.bias": "output_blocks.2.1.conv.bias",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.3.resnets.2.conv_shortcut": "output_blocks.11.0.skip_connection",
    "up_blocks.3.attentions.2.norm": "output_blocks.11.1.norm",
    "conv_norm_out.weight": "out.0.weight",
}
VAE = {
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
    "decoder.up_blocks.0.resnets.2.conv1": "decoder.up.3.block.2.conv1",
    "decoder.up_blocks.2.upsamplers.0.conv": "decoder.up.1.upsample.conv",
    "encoder.mid_block.attentions.0.to_out.0.bias": "encoder.mid.attn_1.proj_out.bias",
    "decoder.mid_block.attentions.0.group_norm": "decoder.mid.attn_1.norm",
    "decoder.conv_norm_out": "decoder.norm_out",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


@pytest.mark.parametrize(("path", "original"), UNET.items())
def test_unet_names(path: str, original: str) -> None:
    assert layout.unet_to_original(path) == original
    assert layout.unet_to_diffusers(original) == path


@pytest.mark.parametrize(("path", "original"), VAE.items())
def test_vae_names(path: str, original: str) -> None:
    assert layout.vae_to_original(path) == original
    assert layout.vae_to_diffusers(original) == path


@pytest.mark.parametrize("shape", [UNetLayout(), UNetLayout((False, True, True)), UNetLayout((True, False), 3)])
def test_unet_tables_are_one_to_one(shape: UNetLayout) -> None:
    table = layout.unet_table(shape)
    assert len(set(table.values())) == len(table)
    for path, original in table.items():
        assert layout.unet_to_diffusers(layout.unet_to_original(path, shape), shape) == path, original


def test_sdxl_numbering_follows_from_its_attention() -> None:
    sdxl = UNetLayout((False, True, True))
    path = "up_blocks.0.attentions.1.transformer_blocks.3.ff.net.2"
    assert layout.unet_to_original(path, sdxl) == "output_blocks.1.1.transformer_blocks.3.ff.net.2"
    assert layout.unet_to_original("up_blocks.1.upsamplers.0.conv", sdxl) == "output_blocks.5.2.conv"
    assert layout.unet_to_original("down_blocks.1.downsamplers.0.conv", sdxl) == "input_blocks.6.0.op"


def test_names_of_older_attention_are_understood() -> None:
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        path = f"encoder.mid_block.attentions.0.{new}.weight"
        assert layout.vae_modern(f"encoder.mid_block.attentions.0.{old}.weight") == path
        assert layout.vae_to_diffusers(f"encoder.mid.attn_1.{old}.weight") == path
    assert layout.vae_modern("encoder.conv_in.weight") == "encoder.conv_in.weight"


def test_clip_names() -> None:
    path = "encoder.layers.0.mlp.fc1.weight"
    assert layout.clip_to_original(path) == "text_model." + path == layout.clip_to_original("text_model." + path)
    assert layout.clip_to_diffusers("text_model." + path) == path == layout.clip_to_diffusers(path)


@pytest.mark.parametrize("name", ["down_blocks.3.attentions.0.norm", "down_blocks.9.resnets.0", "", "conv_inx.weight"])
def test_what_is_no_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no module"):
        layout.unet_to_original(name)
