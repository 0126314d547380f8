"""Cutting a DyLoRA into one LoRA per rank: the first rows with alpha unchanged are the network trained at that rank.

Run it with `python -m backend extract_lora_from_dylora --model FILE --save_to FILE [--unit N]`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from backend.config.lora_tools import ExtractDyLora, LoraResult
from backend.errors import UserError
from backend.lora.file import LoraFile, read_lora
from backend.lora.layer import LoraLayer
from backend.lora.provenance import cut_from, table_in
from backend.terminal import ended_by_signals, track, warn
from backend.tools.files import check_target, keep_config, only_loras, save
from backend.tools.report import Bars, Made, Report, tell


def run(config: ExtractDyLora) -> None:
    """The command `extract_lora_from_dylora`.

    Raises:
        UserError: the file is no DyLoRA, or the unit does not divide its rank.
    """
    with ended_by_signals():
        source, result = config.dylora.model, config.result
        file = read_lora(source, config.dylora.allow_unmatched)
        for note in file.notes:
            warn(f"{source}: {note}")
        check_kind(file, config.dylora.force, source)
        layers = only_loras([source], [file])[0]
        rank = rank_of(layers, source)
        unit = unit_of(file, config.dylora.unit, rank, source)
        targets = {step: numbered(result.save_to, step) for step in range(unit, rank + 1, unit)}
        for path in targets.values():
            check_target(path, result)
            if path.exists() and path.samefile(source):
                raise UserError(f"{path} is the DyLoRA itself; choose another name", field="save_to")
        with all_or_none(targets.values(), result):
            files, norms = cut_all(file, layers, targets, config)
            keep_config(config, result)
    facts = (("modules", str(len(layers))), ("rank", str(rank)), ("unit", str(unit)))
    names = tuple(str(step) for step in targets)
    bars = Bars("Size of the change by rank (Frobenius norm)", names, tuple(norms))
    tell(Report(f"{source} cut into {len(targets)} ranks", result.dry_run, tuple(files), facts, bars=bars))


def cut_all(
    file: LoraFile, layers: Mapping[str, LoraLayer], targets: Mapping[int, Path], config: ExtractDyLora
) -> tuple[list[Made], list[float]]:
    """A file for every rank, and the norm of the change in each."""
    files, norms = [], []
    for step, path in track(targets.items(), "cutting", len(targets)):
        short = {key: layer.truncated(step) for key, layer in layers.items()}
        norms.append(sum(float(layer.norm()) ** 2 for layer in short.values()) ** 0.5)
        metadata = cut_from(file.metadata, short, step, max(targets))
        files.append(save(path, config.result, short, metadata, None, f"rank {step}"))
    return files, norms


@contextmanager
def all_or_none(paths: Iterable[Path], result: LoraResult) -> Iterator[None]:
    """Where the block fails, the files that it has made are taken away again; nothing is if it may replace files."""
    try:
        yield
    except BaseException:
        if not result.overwrite and not result.dry_run:
            for path in paths:
                path.unlink(missing_ok=True)
        raise


def check_kind(file: LoraFile, force: bool, source: Path) -> None:
    """See that a file is a DyLoRA, or at least one that can be cut as one.

    Raises:
        UserError: it says that it is none, or has layers that have no ranks to be cut.
    """
    other = next((layer for layer in file.layers.values() if not isinstance(layer, LoraLayer)), None)
    if other is not None:
        raise UserError(f"is a {other.KIND}, not a DyLoRA, and cannot be cut by its ranks", field=str(source))
    module = file.metadata.get("ss_network_module", "").strip()
    if str(table_in(file.metadata, "ss_network_args").get("algo", "")).lower() == "dylora" and not force:
        message = "is a DyLoRA of LyCORIS, which counts its scale by blocks of ranks; give --force to cut it with the"
        raise UserError(f"{message} alpha that it has", field=str(source))
    if module and module.rpartition(".")[2].lower() != "dylora" and not force:
        message = f"says that it was made by {module[:80]!a}, so it is no DyLoRA, and its first ranks mean nothing"
        raise UserError(f"{message}; to reduce its rank use svd_merge_lora, or give --force", field=str(source))


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
    trained = str(table_in(file.metadata, "ss_network_args").get("unit", ""))[:9]
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
