"""What each kind of network takes in `network_args`: one section per network module."""

from typing import Any

from backend.config.declare import Section
from backend.config.merge import Problems
from backend.config.text import read_section


class LoraArgs(Section):
    """Arguments of networks.lora"""


NETWORK_ARGS: dict[str, type[Section]] = {"networks.lora": LoraArgs}


def read_network_args(network_module: str, value: Any) -> tuple[dict[str, Any], Problems]:
    """The typed arguments that were given, checked against the network's own section, and what is wrong with them."""
    return read_section(NETWORK_ARGS[network_module], value, "network_args", network_module)
