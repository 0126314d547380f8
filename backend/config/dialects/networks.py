"""Networks of LyCORIS, in which other programs train what are our own kinds of network here."""

from typing import Any

from backend.config.choices import NETWORK_SPELLINGS
from backend.config.declare import leaves
from backend.config.dialects.reading import NO_COUNTERPART, Reading, as_number, same
from backend.config.text import read_pairs
from backend.config.train import TrainNetwork

LYCORIS = ("lycoris.kohya", "lycoris")
ALGORITHMS = {
    "lora": "networks.lora",
    "locon": "networks.lora",
    "loha": "networks.loha",
    "lokr": "networks.lokr",
    "dylora": "networks.dylora",
}
# What LyCORIS does unless it is told otherwise.
DEFAULTS: dict[str, Any] = {
    "preset": "full",
    "factor": -1,
    "dropout": 0,
    "rank_dropout": 0,
    "module_dropout": 0,
    "use_tucker": False,
    "use_cp": False,
    "use_conv_cp": False,
    "use_scalar": False,
    "rank_dropout_scale": False,
    "bypass_mode": False,
    "dora_wd": False,
    "weight_decompose": False,
    "train_norm": False,
    "decompose_both": False,
    "train_on_input": True,
    "constraint": 0,
    "rescaled": False,
}
KEPT = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout")
DIM = 4  # LyCORIS's own default rank


def settle_network(reading: Reading) -> None:
    """Bring a network of LyCORIS among a reading's values into our words; other networks are left to validation."""
    module = str(reading.values.get("network_module") or "").strip().lower()
    if module not in LYCORIS:
        return
    try:
        arguments = read_pairs(reading.values.get("network_args") or {})
    except ValueError:
        arguments = {}
    arguments = {key: str(value).strip("\"'") for key, value in arguments.items()}
    for name in arguments:
        reading.origin.setdefault(f"network_args.{name}", f"network_args.{name}")
    algorithm = arguments.get("algo", "lora").lower()
    target = ALGORITHMS.get(algorithm, "")
    if target not in (*leaves(TrainNetwork)["network_module"].choices, *dict(NETWORK_SPELLINGS)):
        text = f"belongs to the network {algorithm} of LyCORIS, which {NO_COUNTERPART}"
        idle = [name for name in arguments if name == "algo" or _is_default(name, arguments[name])]
        reading.idle += [reading.origin[f"network_args.{name}"] for name in idle if name != "algo"]
        reading.values["network_args"] = {name: value for name, value in arguments.items() if name not in idle}
        for name in ("network_module", "network_dim", "network_alpha", "network_args"):
            if name in reading.values:
                reading.retract(name, text)
        return
    key = reading.origin.get("network_module", "network_module")
    given = reading.given.get("network_module") or module
    reading.change(key, f"LyCORIS's {algorithm} is {target} here, on the layers that are usual here", given)
    reading.values["network_module"] = target
    reading.values["network_args"] = _arguments(reading, algorithm, arguments)


def _arguments(reading: Reading, algorithm: str, arguments: dict[str, str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    if algorithm == "dylora" and "block_size" in arguments:
        kept["unit"] = arguments.pop("block_size")
        reading.origin["network_args.unit"] = reading.origin["network_args.block_size"]
    for name, value in arguments.items():
        key = reading.origin[f"network_args.{name}"]
        if name == "algo":
            continue
        if name in KEPT and (name == "conv_alpha" or as_number(value) != 0):
            kept[name] = value
        elif name in KEPT or _is_default(name, value):
            reading.idle.append(key)
        else:
            reading.lose(key, f"belongs to LyCORIS and {NO_COUNTERPART}", value)
    if "conv_dim" not in kept and algorithm != "dylora":
        kept["conv_dim"] = reading.values.get("network_dim", DIM)
        kept.setdefault("conv_alpha", reading.values.get("network_alpha", 1))
        text = "not given, LyCORIS takes network_dim for the 3x3 convolutions, so that is set here"
        reading.change("network_args.conv_dim", text, kept["conv_dim"])
    return kept


def _is_default(name: str, value: str) -> bool:
    return name in DEFAULTS and same(value, DEFAULTS[name])
