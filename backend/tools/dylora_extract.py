"""Cutting a DyLoRA into one LoRA per rank: the first rows with alpha unchanged are the network trained at that rank.

Run it with `python -m backend extract_lora_from_dylora --model FILE --save_to FILE [--unit N]`.
"""

from collections.abc import Mapping
from pathlib import Path

from backend.config.lora_tools import ExtractDyLora
from backend.errors import UserError
from backend.lora.file import LoraFile, read_lora
from backend.lora.layer import LoraLayer
from backend.lora.provenance import cut_from
from backend.terminal import track
from backend.tools.files import arguments_of, check_free, only_loras, save
from backend.tools.report import Bars, Report, tell


def run(config: ExtractDyLora) -> None:
    """The command `extract_lora_from_dylora`.

    Raises:
        UserError: the file is no DyLoRA, or the unit does not divide its rank.
    """
    source, result = config.dylora.model, config.result
    file = read_lora(source)
    layers = only_loras([source], [file])[0]
    rank = rank_of(layers, source)
    unit = unit_of(file, config.dylora.unit, rank, source)
    targets = {step: numbered(result.save_to, step) for step in range(unit, rank + 1, unit)}
    for path in targets.values():
        check_free(path, result)
    files, norms = [], []
    for step, path in track(targets.items(), "cutting", len(targets)):
        short = {key: layer.truncated(step) for key, layer in layers.items()}
        norms.append(sum(float(layer.norm()) ** 2 for layer in short.values()) ** 0.5)
        files.append(save(path, result, short, cut_from(file.metadata, short, step, rank), None, f"rank {step}"))
    facts = (("modules", str(len(layers))), ("rank", str(rank)), ("unit", str(unit)))
    names = tuple(str(step) for step in targets)
    bars = Bars("Size of the change by rank (Frobenius norm)", names, tuple(norms))
    tell(Report(f"{source} cut into {len(targets)} ranks", result.dry_run, tuple(files), facts, bars=bars))


def rank_of(layers: Mapping[str, LoraLayer], source: Path) -> int:
    """The one rank of a DyLoRA.

    Raises:
        UserError: its layers have several.
    """
    ranks = sorted({layer.rank for layer in layers.values()})
    if len(ranks) > 1:
        message = f"has layers of rank {', '.join(map(str, ranks))}; a DyLoRA has one"
        raise UserError(message, field=str(source))
    return ranks[0]


def unit_of(file: LoraFile, given: int | None, rank: int, source: Path) -> int:
    """The step between ranks: as given, else as trained.

    Raises:
        UserError: it is not known, or does not divide the rank, or leaves nothing but the file itself.
    """
    trained = str(arguments_of(file.metadata).get("unit", ""))
    dylora = file.metadata.get("ss_network_module", "").endswith("dylora")
    if given is None and not trained.isdecimal() and not dylora:
        raise UserError(f"{source} does not say that it is a DyLoRA; give the unit it was trained with", field="unit")
    # A DyLoRA that was trained without naming a unit was trained with 1.
    unit = given or (int(trained) if trained.isdecimal() else 1)
    if unit < 1 or rank % unit:
        raise UserError(f"must divide the rank {rank}, {unit} does not", field="unit")
    if unit == rank:
        raise UserError(f"is the whole rank {rank}, so there is nothing to cut; give a smaller one", field="unit")
    return unit


def numbered(path: Path, rank: int) -> Path:
    """The file of a rank: `name-0004.safetensors`."""
    return path.with_name(f"{path.stem}-{rank:04d}{path.suffix}")
