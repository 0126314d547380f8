"""PNG files and what they say about how they were made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend.errors import UserError
from backend.generate.images import describe, parse_parameters, read_parameters, save_png, to_pictures
from backend.generate.lora_tags import Dose
from backend.generate.prompts import Request

REQUEST = Request("a fox, red\nin snow", 'ugly: "very"', 64, 96, 20, 7.5, "dpmsolver++", 42)


@pytest.mark.parametrize("prompt", ["a fox, red\nin snow", "Füchse, 狐", "", "Steps: 3, Size: 9x9"])
@pytest.mark.parametrize("negative", ["", 'ugly: "very", bad'])
def test_parameters_come_back_from_the_file(tmp_path, prompt, negative) -> None:
    request = Request(prompt, negative, 64, 96, 20, 7.5, "dpmsolver++", 42)
    path = tmp_path / "new" / "picture.png"
    loras = [Dose(Path("loras/one, two.safetensors"), 0.8), Dose(Path('with "quotes".pt'), -0.5)]
    save_png(Image.new("RGB", (64, 96)), path, describe(request, "model: a", loras))
    expected = {
        "Prompt": prompt,
        "Negative prompt": negative,
        "Steps": "20",
        "Sampler": "dpmsolver++",
        "CFG scale": "7.5",
        "Seed": "42",
        "Size": "64x96",
        "Model": "model: a",
        "LoRA": 'one, two x 0.8; with "quotes" x -0.5',
    }
    assert read_parameters(path) == expected
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_parameters_of_the_web_uis_around_us_are_read() -> None:
    text = (
        "a fox\nsecond line\nNegative prompt: bad\nSteps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, "
        'Size: 512x768, Model hash: abc, Lora hashes: "x: 1, y: 2", Version: v1.9'
    )
    found = parse_parameters(text)
    assert found["Prompt"] == "a fox\nsecond line" and found["Negative prompt"] == "bad"
    assert found["Lora hashes"] == "x: 1, y: 2" and found["Version"] == "v1.9"


def test_a_file_that_says_nothing_gives_nothing(tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert read_parameters(tmp_path / "plain.png") == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    def refuse(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match="cannot be written to"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", "")


def test_pixels_become_bytes_by_rounding_and_clamping() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    (picture,) = to_pictures(pixels)
    assert picture.mode == "RGB" and picture.size == (6, 2)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
