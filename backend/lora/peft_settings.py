"""What PEFT's settings of an adapter say about its strength, as PEFT 0.21 reads them. Knows no torch.

They stand in `adapter_config.json` beside the weights, or, as Diffusers writes them, in the metadata of the file, with
the name of the part in front (`unet.lora_alpha`).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.bounded import parse_json
from backend.errors import UserError

# Where Diffusers keeps the settings of PEFT's adapters, alpha among them.
PEFT_SETTINGS = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
PARTS = ("unet.", "text_encoder.", "text_encoder_2.")
# PEFT's own.
DEFAULT_RANK = DEFAULT_ALPHA = 8

# Options that change what an adapter does beyond scale and factors; each with the values at which it does not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
# How the factors were started. All others first change the model itself, to which the adapter then belongs.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")
# Types of adapters that can be read, and what alpha is called there.
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha"}
# A repeat of what has a repeat in it can take a regular expression for ever.
_NESTED_REPEAT = re.compile(r"\([^()]*[*+}][^()]*\)[*+{]")
_LONGEST_PATTERN = 1000


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter.

    Attributes:
        rank, alpha: of all modules for which no pattern says anything; rank None is not said.
        rank_stabilised: the scale is alpha / sqrt(rank) instead of alpha / rank.
        ranks, alphas: exceptions; regular expressions that match a whole path, or its end from a dot on.
    """

    rank: int | None = None
    alpha: float = float(DEFAULT_ALPHA)
    rank_stabilised: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def alpha_of(self, path: str, rank: int) -> float:
        """Alpha as other files spell it, where the scale is alpha / rank.

        Args:
            path: of the module below PEFT's model.
            rank: of its factors.

        Raises:
            ValueError: the settings say another rank, and so are of another adapter.
        """
        expected = _looked_up(self.ranks, path, self.rank)
        if expected is not None and expected != rank:
            raise ValueError(f"PEFT's settings say rank {expected} and its factors have {rank}; they are not its own")
        alpha = _looked_up(self.alphas, path, self.alpha)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def _looked_up(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """As `peft.utils.other.get_pattern_key` does: the first pattern that matches."""
    matches = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path))
    return next(matches, default)


def settings_of(table: Mapping[str, Any]) -> PeftSettings:
    """The settings in a table of PEFT.

    Raises:
        ValueError: an option is of the wrong kind, or changes what the adapter does in a way that is not known here.
    """
    kind = str(table.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind not in _ALPHAS:
        raise ValueError(f"its peft_type is {kind}, which cannot be used here")
    if table.get("use_dora"):
        raise ValueError("use_dora makes it a DoRA, which cannot be used here")
    for name, neutral in _NEUTRAL.items():
        if name in table and not any(table[name] == value for value in neutral):
            raise ValueError(f"{name} = {_short(table[name])} changes what it does, which cannot be done here")
    start = table.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        message = "changes the model itself, so that the adapter is not for the model as it is"
        raise ValueError(f"init_lora_weights = {_short(start)} {message}; save it again, converted to a plain LoRA")
    rank = table.get("r")
    return PeftSettings(
        None if rank is None else _whole("r", rank),
        _number(_ALPHAS[kind], table.get(_ALPHAS[kind], DEFAULT_ALPHA)),
        _flag("use_rslora", table.get("use_rslora")),
        {_pattern(key): _whole("rank_pattern", value) for key, value in _table(table, "rank_pattern").items()},
        {_pattern(key): _number("alpha_pattern", value) for key, value in _table(table, "alpha_pattern").items()},
    )


def read_settings(metadata: Mapping[str, str], field: str) -> dict[str, PeftSettings]:
    """The settings in a file's metadata: by the part's prefix, or under "" for the whole file.

    Raises:
        UserError: they are broken, or say something that cannot be done here.
    """
    if PEFT_SETTINGS not in metadata:
        return {}
    found = parse_json(metadata[PEFT_SETTINGS], f"what it has of PEFT in {PEFT_SETTINGS}", field)
    tables: dict[str, dict[str, Any]] = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        prefix = next((part for part in PARTS if name.startswith(part)), "")
        tables.setdefault(prefix, {})[name.removeprefix(prefix)] = value
    return {prefix: checked(table, field) for prefix, table in tables.items() if prefix or _is_settings(table)}


def checked(table: Mapping[str, Any], field: str) -> PeftSettings:
    """See `settings_of`; what is wrong is told as of a file.

    Raises:
        UserError: so it is.
    """
    try:
        return settings_of(table)
    except (ValueError, TypeError) as error:
        raise UserError(f"has settings of PEFT that cannot be followed: {error}", field=field) from error


def _is_settings(table: Mapping[str, Any]) -> bool:
    return any(name in table for name in ("r", "lora_alpha", "alpha", "peft_type", "alpha_pattern", "use_rslora"))


def as_metadata(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Settings as they stand in a file's metadata, from tables by prefix."""
    flat = {f"{prefix}{name}": value for prefix, table in tables.items() for name, value in table.items()}
    return {PEFT_SETTINGS: json.dumps(flat)}


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = table.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no table")
    return found


def _pattern(text: str) -> str:
    """A regular expression that can be matched.

    Raises:
        ValueError: it is none, or may take for ever.
    """
    if len(text) > _LONGEST_PATTERN or _NESTED_REPEAT.search(text):
        raise ValueError(f"the pattern {_short(text)} is too long, or repeats what repeats already")
    try:
        re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {_short(text)} is no regular expression: {error}") from error
    return text


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {_short(value)} is no finite number")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {_short(value)} is no whole number from 1")
    return value


def _flag(name: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise ValueError(f"{name} = {_short(value)} is neither true nor false")
    return bool(value)


def _short(value: Any) -> str:
    """A value on one line, not too long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
