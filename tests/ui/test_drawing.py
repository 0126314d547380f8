"""What is asked of the generate worker, and what is refused before it is asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend.errors import ConfigError
from backend.fitting import Memory
from backend.header import pack_header
from backend.workspace import DEMO_MODEL, Workspace
from tabs import drawing

GOOD = (DEMO_MODEL, "a fox", "", "", "", 20, 7.5, "ddim", "", False)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Services of which only the workspace is asked, on a machine with 2 GB."""
    monkeypatch.setattr("backend.fitting.drawing_memory", lambda: Memory(2 * 10**9))
    return SimpleNamespace(workspace=Workspace(tmp_path / "workspace"))


def lora(path: Path, width: int) -> str:
    """A file with one layer on an attention that sees a text of this width."""
    shapes = {"lora_down.weight": [4, width], "lora_up.weight": [8, 4], "alpha": []}
    name, entries, end = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", {}, 0
    for part, shape in shapes.items():
        size = 4 * (shape[0] * shape[1] if shape else 1)
        entries[f"{name}.{part}"] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    path.write_bytes(pack_header(entries) + bytes(end))
    return str(path)


def problems(services: Any, settings: tuple[Any, ...], *rows: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        drawing.read_request(services, (*settings, *rows), None)
    return dict(caught.value.problems)


def test_every_mistake_is_told_at_once(services: Any) -> None:
    wrong = ("/no/model", " ", "", "65", "4", 20, 7.5, "ddim", "-3", False)
    assert problems(services, wrong).keys() == {"model", "prompt", "width", "height", "seed"}
    assert problems(services, ("", *GOOD[1:])) == {"model": "choose a model"}
    large = problems(services, (*GOOD[:3], "8192", "8192", *GOOD[5:]))
    assert "is the most that fits into the 2.0 GB of memory" in large["width"]


def test_paths_are_meant_as_people_write_them(services: Any, tmp_path: Path) -> None:
    file = lora(tmp_path / "a.safetensors", 64)
    request = drawing.read_request(services, (f' "{DEMO_MODEL}" ', *GOOD[1:], f"'{file}' ", 0.5), None)
    assert request["model"] == DEMO_MODEL and request["loras"] == [{"path": file, "multiplier": 0.5}]
    assert "is an address" in problems(services, ("https://x.example/model.safetensors", *GOOD[1:]))["model"]


def test_a_lora_of_another_family_is_one_sentence(services: Any, tmp_path: Path) -> None:
    small, large = lora(tmp_path / "small.safetensors", 64), lora(tmp_path / "large.safetensors", 2048)
    assert drawing.read_request(services, (*GOOD, small, 1.0), None)["loras"]
    assert problems(services, GOOD, large, 1.0) == {
        "LoRA": "large.safetensors is for Stable Diffusion XL, and the model is one with a text of width 64; choose a "
        "LoRA that was made for it"
    }
    # Of a model that is not here nothing is known for sure.
    assert drawing.read_request(services, ("org/repo", *GOOD[1:], large, 1.0), None)
    assert "there is no file" in problems(services, GOOD, str(tmp_path / "gone.safetensors"), 1.0)["LoRA"]


def test_unmatched_layers_are_let_through_only_when_that_is_asked_for(services: Any) -> None:
    assert "allow_unmatched" not in drawing.read_request(services, GOOD, None)
    assert drawing.read_request(services, (*GOOD[:-1], True), None)["allow_unmatched"] is True


def test_a_seed_of_before_is_used_where_none_is_given(services: Any) -> None:
    assert drawing.read_request(services, GOOD, 7)["seed"] == 7
    assert drawing.read_request(services, (*GOOD[:-2], "5", False), 7)["seed"] == 5
    assert drawing.read_request(services, (*GOOD[:-2], "0", False), 7)["seed"] == 0


def test_a_desk_knows_what_is_being_drawn_with() -> None:
    desk = drawing.Desk(used={"1": ("model", "a"), "2": ("model", "b")})
    assert desk.paths() == {"model", "a", "b"}
