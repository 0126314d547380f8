"""Metadata of LoRA files that are made from others: what still holds is kept, and where they come from is said."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.lora.layer import Layer, LoraLayer
from backend.lora.metadata import MINIMUM, MODEL_HASH
from backend.lora.peft_settings import PEFT_SETTINGS
from backend.tables.identity import IDENTITIES

DYNAMIC = "Dynamic"
MERGED_FROM = "ss_merged_from"
# What was true of a run is not true of a file that was made from its result, or stands in its own field.
_OF_THE_RUN = (
    "ss_session_id",
    "ss_training_started_at",
    "ss_training_finished_at",
    "ss_output_name",
    "ss_tag_frequency",
    MERGED_FROM,
    *(f"ss_{name}" for name in MINIMUM if name.startswith("network_")),
)
_MODELSPEC = "modelspec."


@dataclass(frozen=True)
class Source:
    """A file that another one was made from.

    Attributes:
        path: of the file.
        metadata: its own.
        ratio: how much of it went in.
    """

    path: Path
    metadata: Mapping[str, str]
    ratio: float = 1.0

    @property
    def title(self) -> str:
        """What it is called."""
        return self.metadata.get("modelspec.title") or self.path.stem


def network_facts(layers: Mapping[str, Layer]) -> dict[str, str]:
    """The `ss_network_*` fields of a LoRA: module, rank, alpha, and those of 3x3 convolutions; mixed ones "Dynamic"."""
    wide = {key for key, layer in layers.items() if isinstance(layer, LoraLayer) and layer.down[:1, :1].numel() > 1}
    plain = [layer for key, layer in layers.items() if key not in wide] or list(layers.values())
    arguments = {}
    if wide:
        arguments = {f"conv_{name}": _one([getattr(layers[key], attribute) for key in sorted(wide)])
                     for name, attribute in (("dim", "rank"), ("alpha", "alpha"))}  # fmt: skip
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one([layer.rank for layer in plain]),
        "ss_network_alpha": _one([layer.alpha for layer in plain]),
        "ss_network_args": json.dumps(arguments),
    }


def _one(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else DYNAMIC


def family_facts(family: str | None, predicts_v: bool = False) -> dict[str, str]:
    """The fields that tell what a LoRA is for; none where that is not known."""
    if family is None:
        return {}
    identity = IDENTITIES[family]
    return {
        "ss_v2": str(family == "sd2"),
        "ss_base_model_version": identity.base_model_versions[predicts_v],
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{identity.architectures[predicts_v]}/lora",
        "modelspec.implementation": identity.implementation,
        "modelspec.prediction_type": "v" if predicts_v else "epsilon",
    }


def merged(sources: Sequence[Source], layers: Mapping[str, Layer], family: str | None, title: str) -> dict[str, str]:
    """The metadata of a LoRA made of others.

    Fields that all sources agree on are kept, but for those of a run; tag frequencies are put together, since they say
    which words a LoRA listens to. `ss_merged_from` lists files, ratios and hashes.
    """
    agreed = {
        name: value
        for name, value in sources[0].metadata.items()
        if name.startswith(("ss_", _MODELSPEC))
        and name not in _OF_THE_RUN
        and all(source.metadata.get(name) == value for source in sources)
    }
    tags = _added_tags([table_in(source.metadata, "ss_tag_frequency") for source in sources])
    predicts_v = any(source.metadata.get("modelspec.prediction_type") == "v" for source in sources)
    found = family_facts(family, predicts_v) | agreed | network_facts(layers)
    if tags:
        found["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    return found | _origin(sources, title)


def _added_tags(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each tag stands in each folder, in all of them together."""
    found: dict[str, dict[str, int]] = {}
    for folder, counts in (item for one in tables for item in one.items()):
        if isinstance(counts, dict):
            own = found.setdefault(folder, {})
            for tag, count in counts.items():
                own[tag] = own.get(tag, 0) + (count if isinstance(count, int) else 0)
    return found


def _origin(sources: Sequence[Source], title: str, before: Sequence[Any] = ()) -> dict[str, str]:
    """Where a file comes from; what its sources were made from themselves stands with each of them."""
    listed = list(before)
    for source in sources:
        one = {"file": source.path.name, "ratio": source.ratio, MODEL_HASH: source.metadata.get(MODEL_HASH)}
        older = _list_in(source.metadata, MERGED_FROM)
        listed.append(one | ({"merged_from": older} if older else {}))
    return {
        MERGED_FROM: json.dumps(listed, ensure_ascii=False),
        "modelspec.merged_from": ", ".join(source.title for source in sources),
        "modelspec.title": title,
        "modelspec.date": datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat(),
    }


def checkpoint_with(metadata: Mapping[str, str], sources: Sequence[Source], title: str) -> dict[str, str]:
    """The metadata of a checkpoint that LoRAs were merged into: its own, but for hashes, which no longer hold."""
    kept = {name: value for name, value in metadata.items() if "hash" not in name}
    own = metadata.get("modelspec.title")
    found = kept | _origin(sources, title, _list_in(metadata, MERGED_FROM))
    if own:
        found["modelspec.merged_from"] = f"{own}, {found['modelspec.merged_from']}"
    return {"format": "pt"} | found


def cut_from(metadata: Mapping[str, str], layers: Mapping[str, Layer], rank: int, full: int) -> dict[str, str]:
    """The metadata of a DyLoRA's first ranks: its own, as that of the plain LoRA that it now is.

    Args:
        layers: the ones that were cut.
        rank: of these.
        full: of the DyLoRA.
    """
    arguments = {name: value for name, value in table_in(metadata, "ss_network_args").items() if name != "unit"}
    facts = network_facts(layers)
    facts["ss_network_args"] = json.dumps(arguments | json.loads(facts["ss_network_args"]))
    comment = f"split from DyLoRA, rank {full} to {rank}"
    old = metadata.get("ss_training_comment")
    facts["ss_training_comment"] = f"{comment}; {old}" if old and old != "None" else comment
    return {name: value for name, value in metadata.items() if name != PEFT_SETTINGS} | facts


def table_in(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A JSON object in a metadata field; empty where there is none."""
    found = _json_in(metadata, name)
    return found if isinstance(found, dict) else {}


def _list_in(metadata: Mapping[str, str], name: str) -> list[Any]:
    found = _json_in(metadata, name)
    return found if isinstance(found, list) else []


def _json_in(metadata: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(metadata.get(name) or "null")
    except (ValueError, RecursionError):
        return None
