"""Other programs' configs in the Train tab: the form is filled, and what cannot be carried over is listed."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from backend.config.dialects.foreign import read_foreign
from backend.header import METADATA_KEY, pack_header
from tabs.imports import MOST, told

GUI = {
    "LoRA_type": "Kohya DyLoRA",
    "network_dim": 24,
    "network_alpha": 12,
    "unit": 4,
    "conv_dim": 24,
    "conv_alpha": 1,
    "optimizer": "AdamW8bit",
    "learning_rate": "0.0003",
    "text_encoder_lr": 0,
    "unet_lr": 0.0002,
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_train_steps": "1200",
    "epoch": 10,
    "output_dir": "/somewhere",
    "sample_prompts": "a <b>red</b> fox --w 512\na blue fox",
    "sample_every_n_epochs": 2,
    "deepspeed": True,
    "multi_gpu": True,
    "xformers": "sdpa",
    "<img src=x onerror=alert(1)>": "<script>alert(2)</script>",
    "huggingface_token": "hf_secret",
    "guidance_scale": 3.5,
    "seed": 0,
}


def bring(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#preset-import")
    chooser.value.set_files(file)


def field(page: Page, name: str) -> object:
    return page.locator(f"#option-{name} input, #option-{name} textarea").first


@pytest.mark.browser
def test_a_gui_config_fills_the_form_and_the_rest_is_listed(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(GUI))
    bring(page, file)
    expect(field(page, "network_dim")).to_have_value("24")
    expect(field(page, "max_train_steps")).to_have_value("1200")
    expect(field(page, "network_args")).to_have_value("conv_dim=24\nconv_alpha=1.0\nunit=4")
    expect(field(page, "sample_prompts")).to_have_value(GUI["sample_prompts"])
    answer = page.locator("#preset-answer")
    expect(answer.locator(".notice")).to_contain_text("mine.json: config of kohya_ss' GUI.")
    kept = "dataset_config: is not in the file, so the form keeps what it has"
    for text in (
        kept,
        "deepspeed = true: belongs to DeepSpeed, which is not supported",
        "<script>alert(2)</script>",
        "multi_gpu",
        "output_dir",
    ):
        expect(answer).to_contain_text(text)
    expect(answer).not_to_contain_text("hf_secret")
    expect(answer.locator("details summary")).to_contain_text("without effect where they come from")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_a_lora_file_is_imported_and_a_toml_for_sd_scripts_exported(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = open_page()
    file = tmp_path / "Old.safetensors"
    fields = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "11",
        "ss_learning_rate": "0.0005",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.02)",
        "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10, "img_count": 7}}',
        "ss_resolution": "(512, 512)",
        "ss_session_id": "1",
    }
    file.write_bytes(pack_header({METADATA_KEY: fields}))
    bring(page, file)
    expect(field(page, "network_dim")).to_have_value("11")
    expect(page.locator("#preset-answer pre")).to_contain_text('image_dir = "10_cat"')
    with page.expect_download() as download:
        page.click("#preset-export-scripts")
    assert download.value.suggested_filename.endswith("-sd-scripts.toml")
    exported = tomllib.loads(Path(download.value.path()).read_text())
    assert exported["network_dim"] == 11 and exported["optimizer_args"] == ["weight_decay=0.02"]
    expect(page.locator("#preset-answer")).to_contain_text("caption_extension")
    file.write_bytes(b"no LoRA at all")
    bring(page, file)
    expect(page.locator("#preset-answer .problems")).to_contain_text("Old.safetensors is no safetensors file")
    expect(field(page, "network_dim")).to_have_value("11")


def test_the_report_names_everything_and_trusts_nothing() -> None:
    found = read_foreign(json.dumps(GUI).encode(), "mine.json")
    html = told(found, "<i>.json", ["output_dir"])
    assert "<img" not in html and "<script" not in html and "<i>" not in html and "hf_secret" not in html
    assert "&lt;img src=x" in html and "guidance_scale" in html and "the page sets it itself" in html
    many = "".join(f"strange_key_{number} = 1\n" for number in range(MOST + 100))
    html = told(read_foreign(f"seed = 1\n{many}".encode(), "a.toml"), "a.toml")
    assert html.count("<li>") <= MOST + 3 and "and 100 more" in html
