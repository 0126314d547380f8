"""Names and hashes of a base model, as training writes them into a LoRA's metadata."""

import hashlib
import json
import os
from pathlib import Path

from backend.replacing import replacing

_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lora-loom" / "model_hashes.json"


def _read_cache(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def file_hashes(path: Path) -> dict[str, str]:
    """`sd_model_hash` (8 hex digits over 64 KiB at 1 MiB, the web UI's old hash) and `new_sd_model_hash` (SHA-256)."""
    with path.open("rb") as file:
        file.seek(_LEGACY_OFFSET)
        legacy = hashlib.sha256(file.read(_LEGACY_LENGTH)).hexdigest()[:8]
        file.seek(0)
        full = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sd_model_hash": legacy, "new_sd_model_hash": full}


def model_hashes(source: str | Path) -> dict[str, str]:
    """`sd_model_name`, and for a single file its two hashes, remembered by path, size and time of change.

    A folder or a hub name has no hash of its own, so only its name is returned.
    """
    path = Path(source)
    if not path.is_file():
        return {"sd_model_name": path.name if path.exists() else str(source)}
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    cache_file = _cache_file()
    cache = _read_cache(cache_file)
    if key not in cache:
        cache[key] = file_hashes(path)
        try:
            with replacing(cache_file) as temporary:
                temporary.write_text(json.dumps(cache), encoding="utf-8")
        except OSError:
            # Without a writable home the hash is simply computed again next time.
            return {"sd_model_name": path.name, **cache[key]}
    return {"sd_model_name": path.name, **cache[key]}
