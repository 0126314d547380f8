"""What `fake_job` does for a tool: phases, files and a report, in four seconds."""

import signal
import time
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image

from backend import events
from backend.header import pack_header
from backend.workspace import CHECKPOINT_PREFIX

HOSTILE = "<img src=x onerror=alert(1)>"
BLOCKS = ("text encoder", *(f"down {n}" for n in range(12)), "mid", *(f"up {n}" for n in range(12)))
RANKS = (1, 2, 4, 8, 16, 32)


def main(folder: Path, command: str) -> int:
    """Do nothing with the options of the config; a result called "broken" fails, one called "slow" takes a minute."""
    config = tomllib.loads((folder / "config.toml").read_text())
    flat = {name: value for table in config.values() for name, value in table.items()}
    name = Path(flat.get("save_to") or flat["dst"]).stem
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    print(f"{command}: {name}", flush=True)
    if name == "broken":
        events.emit("error", message="these LoRAs do <b>not</b> fit together", field="models")
        return 2
    for phase in ("reading", "adding up", "writing"):
        for step in range(5):
            events.emit("phase", name=phase, step=step, total=5)
            time.sleep(2.0 if name == "slow" else 0.25)
    make = _pictures if command == "resize_images_to_resolution" else _weights
    files = make(flat, command)
    if not flat.get("dry_run"):
        for path, data, _ in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    events.emit("report", **_report(files, flat))
    return 0


def weights(*names: str) -> bytes:
    """A safetensors file of one number for each name."""
    entries: dict[str, object] = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    return pack_header(entries) + b"\0\0\0\0" * len(names)


def _weights(flat: dict[str, Any], command: str) -> list[tuple[Path, bytes, str]]:
    target = Path(flat["save_to"])
    if command == "extract_lora_from_dylora":
        places = [(target.with_name(f"{target.stem}-{rank:06d}{target.suffix}"), f"rank {rank}") for rank in RANKS]
    else:
        places = [(target, "")]
    key = f"{CHECKPOINT_PREFIX}out.0.weight" if flat.get("sd_model") else "lora_unet_mid.lora_up.weight"
    return [(path, weights(key), note) for path, note in places]


def _pictures(flat: dict[str, Any], command: str) -> list[tuple[Path, bytes, str]]:
    with Image.open(next(Path(flat["src"]).glob("*.png"))) as image:
        data = image.convert("RGB").tobytes()[:64]
    return [(Path(flat["dst"]) / f"one+{size}.png", data, size) for size in flat["max_resolution"]]


def _report(files: list[tuple[Path, bytes, str]], flat: dict[str, Any]) -> dict[str, Any]:
    errors = [0.8, 0.55, 0.3, 0.12, 0.04, 0.0]
    return {
        "title": f"Done with {HOSTILE}",
        "dry_run": bool(flat.get("dry_run")),
        "files": [{"path": str(path), "bytes": len(data), "note": note} for path, data, note in files],
        "facts": [["family", "SD1"], ["layers", "264"], ["rank", "8"], ["error", "3.2 %"], ["file", "9.4 MB"]],
        "columns": ["part", "layers", "largest", "error"],
        "rows": [[block, "11", f"{0.01 * place:.3f}", f"{3 + place / 10:.1f} %"] for place, block in enumerate(BLOCKS)],
        "bars": {
            "title": "Energy kept, %",
            "names": list(BLOCKS),
            "values": [60.0 + (7 * place) % 40 for place in range(len(BLOCKS))],
        },
        "curve": {"ranks": list(RANKS), "errors": errors, "bytes": [rank * 600_000 for rank in RANKS]},
        "notes": [f"2 layers matched nothing and were left out {HOSTILE}"],
    }
