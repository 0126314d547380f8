"""The commands by name. Names only: a command's config class and code are imported when it is asked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from backend.errors import UserError

if TYPE_CHECKING:
    from backend.config.declare import Command


@dataclass(frozen=True)
class Entry:
    """Where a command's config class and its run function are, as "module:name".

    Attributes:
        config: a subclass of backend.config.declare.Command.
        run: takes the resolved config.
        launcher: the same, where the command is to run in several processes that this one starts.
    """

    config: str
    run: str
    launcher: str = ""

    def config_class(self) -> "type[Command]":
        """The command's config class; imports no torch."""
        return _load(self.config)

    def function(self, config: "Command") -> "Callable[[Command], Any]":
        """The function that runs the command with these options."""
        return _load(self.launcher if self.launcher and config.starts_processes() else self.run)


COMMANDS: dict[str, Entry] = {
    "train_network": Entry(
        "backend.config.train:TrainNetwork", "backend.train.loop:run", launcher="backend.train.launch:run"
    ),
    "gen_img": Entry("backend.config.generate:GenImg", "backend.generate.run:run"),
    "extract_lora_from_dylora": Entry("backend.config.lora_tools:ExtractDyLora", "backend.tools.dylora_extract:run"),
    "merge_lora": Entry("backend.config.lora_tools:MergeLora", "backend.tools.merge:run"),
    "svd_merge_lora": Entry("backend.config.lora_tools:SvdMergeLora", "backend.tools.svd_merge:run"),
    "extract_lora_from_models": Entry("backend.config.lora_tools:ExtractLora", "backend.tools.diff_extract:run"),
    "resize_images_to_resolution": Entry("backend.config.tools:ResizeImages", "backend.tools.resize:run"),
    "convert_diffusers20_original_sd": Entry("backend.config.tools:ConvertModel", "backend.tools.convert:run"),
    "inspect_lora": Entry("backend.config.tools:InspectLora", "backend.tools.inspect_lora:run"),
    "import_config": Entry("backend.config.conversion:ImportConfig", "backend.tools.config_files:bring"),
    "export_config": Entry("backend.config.conversion:ExportConfig", "backend.tools.config_files:give"),
}
ALIASES = {
    "sdxl_train_network": "train_network",
    "gen_img_diffusers": "gen_img",
    "sdxl_gen_img": "gen_img",
    "sdxl_merge_lora": "merge_lora",
    "resize_lora": "svd_merge_lora",
}


def find(name: str) -> Entry:
    """The command of this name or alias; hyphens count as underscores, and `networks/merge_lora.py` as its last part.

    Raises:
        UserError: there is none, with the nearest.
    """
    plain = re.split(r"[/\\]", name)[-1].replace("-", "_").removesuffix(".py")
    entry = COMMANDS.get(ALIASES.get(plain, plain))
    if entry is None:
        from backend.config.messages import did_you_mean

        hint = did_you_mean(plain, [*COMMANDS, *ALIASES]) or f"; there are: {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name}{hint}")
    return entry


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
