"""What a LoRA file holds: kind, family, ranks, alphas and norms by block, metadata, and whether its hashes are right.

Run it with `python -m backend inspect_lora FILE [--json]`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from backend.config.tools import InspectLora
from backend.errors import UserError
from backend.lora.family import spelled_for
from backend.lora.file import LoraFile, parse
from backend.lora.kinds import architecture_of, embedding_of, kind_of_file, stranger
from backend.lora.layer import Layer, LoraLayer
from backend.lora.metadata import LEGACY_HASH, MODEL_HASH, file_hashes
from backend.lora.places import block_of, order_of_blocks
from backend.lora.source import SAFETENSORS, adapter_files, read_tensors
from backend.lora.spelling import module_key, read_name

UNKNOWN = "unknown"
# Fields that are long, and lists of what stands elsewhere.
LONG = 120


def run(config: InspectLora) -> None:
    """The command `inspect_lora`."""
    report = inspect(config.inspect.file)
    print(json.dumps(report, indent=2, ensure_ascii=False) if config.inspect.print_json else as_text(report))


def inspect(path: Path) -> dict[str, Any]:
    """What a LoRA file holds, as plain values.

    Norms are Frobenius norms of the change of weight at multiplier 1. A file that is no LoRA but can be named, such as
    a LoKr, is shown as far as it can be read, with the reason under "refused".

    Raises:
        UserError: the file is missing or broken, or nobody knows what it is.
    """
    tensors, metadata = read_tensors(path)
    refused = None
    try:
        file = parse(tensors, metadata, str(path), allow_unmatched=True)
        kind = kind_of(file.layers.values())
    except UserError as error:
        strangers = [name for name in tensors if read_name(name) is None and embedding_of(name) is None]
        named = kind_of_file(strangers)
        if named is None and (other := architecture_of(tensors)):
            named = f"LoRA for {other}"
        if named is None:
            raise
        file, kind, refused = LoraFile({}), named.removeprefix("an ").removeprefix("a "), error.message
    layers, family = file.layers, file.family
    blocks: dict[str, list[Layer]] = {}
    for key, layer in layers.items():
        blocks.setdefault(block_of(key, family or spelled_for(file.shapes)) or UNKNOWN, []).append(layer)
    return {
        "file": str(path),
        "bytes": sum(one.file.stat().st_size for one in adapter_files(path)),
        "kind": kind,
        "refused": refused,
        "notes": list(file.notes),
        "module": metadata.get("ss_network_module"),
        "family": family or UNKNOWN,
        "modules": len(layers) if refused is None else len(modules_of(tensors)),
        "parameters": sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("alpha")),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "ranks": _count(layer.rank for layer in layers.values()),
        "alphas": _count(layer.alpha for layer in layers.values()),
        "blocks": {name: _block(blocks[name]) for name in sorted(blocks, key=order_of_blocks)},
        "hashes": _hashes(path, metadata),
        "metadata": {name: metadata[name] for name in sorted(metadata)},
    }


def modules_of(names: Iterable[str]) -> set[str]:
    """What a file of another kind has tensors for, by the beginnings of their names."""
    found = set()
    for name in names:
        said, other = read_name(name), stranger(name)
        found.add(said.key if said else module_key(other.module) or other.module or name.rpartition(".")[0])
    return found


def kind_of(layers: Iterable[Layer]) -> str:
    """The kind of a file's layers; a LoRA's by whether 3x3 convolutions are in it, in which its two kinds differ."""
    names = set()
    for layer in layers:
        wide = isinstance(layer, LoraLayer) and layer.down.dim() == 4 and layer.down.shape[-1] > 1
        names.add("LoRA-C3Lier" if wide else f"{layer.KIND}-LierLa" if layer.KIND == "LoRA" else layer.KIND)
    return " and ".join(sorted(names - {"LoRA-LierLa"} if "LoRA-C3Lier" in names else names))


def _block(layers: list[Layer]) -> dict[str, Any]:
    norms = torch.stack([layer.norm() for layer in layers])
    return {
        "modules": len(layers),
        "ranks": _count(layer.rank for layer in layers),
        "alphas": _count(layer.alpha for layer in layers),
        "norm_mean": _finite(norms.mean()),
        "norm_max": _finite(norms.max()),
    }


def _finite(value: torch.Tensor) -> float | None:
    """JSON has no infinity."""
    return float(value) if torch.isfinite(value) else None


def _count(values: Iterable[float]) -> dict[str, int]:
    """How often each value is there, by its text, in order of size."""
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _hashes(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The hashes that the file has and those that its tensors make."""
    files = [one.file for one in adapter_files(path)]
    if len(files) != 1 or files[0].suffix.lower() not in SAFETENSORS:
        return {}
    stored = {name: metadata[name] for name in (MODEL_HASH, LEGACY_HASH) if name in metadata}
    made = file_hashes(files[0])
    return {**made, "right": all(made[name] == value for name, value in stored.items()) if stored else None}


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    right = {True: "right", False: "WRONG: the tensors are others than when it was written", None: "not in the file"}
    lines = [
        f"{report['file']}  ({report['bytes'] / 2**20:.1f} MB)",
        f"kind        {report['kind']}" + (f", {report['module']}" if report["module"] else ""),
        f"family      {report['family']}",
        f"modules     {report['modules']}, {report['parameters']:,} parameters, {', '.join(report['dtypes'])}",
    ]
    lines += [f"not usable  {report['refused']}"] if report["refused"] else []
    lines += [f"note        {note}" for note in report["notes"]]
    if report["ranks"]:
        lines += [f"ranks       {_spread(report['ranks'])}", f"alphas      {_spread(report['alphas'])}"]
    if report["hashes"]:
        lines.append(f"hashes      {right[report['hashes']['right']]}")
    if report["blocks"]:
        lines += ["", f"{'block':<10}{'modules':>8}  {'rank':<14}{'alpha':<14}{'norm, mean':>12}{'largest':>12}"]
    for name, block in report["blocks"].items():
        ranks, alphas = ("/".join(block[field]) for field in ("ranks", "alphas"))
        norms = "".join(
            f"{'too large' if block[name] is None else format(block[name], '.4g'):>12}"
            for name in ("norm_mean", "norm_max")
        )
        lines.append(f"{name:<10}{block['modules']:>8}  {ranks:<14}{alphas:<14}{norms}")
    if report["metadata"]:
        lines += ["", "metadata"]
        for name, value in report["metadata"].items():
            text = " ".join(value.split())
            lines.append(f"  {name:<32}{text[:LONG]}{' ...' if len(text) > LONG else ''}")
    return "\n".join(lines)


def _spread(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items()) if len(counts) > 1 else next(iter(counts))
