"""What resizing a folder would write, known from names and headers alone, and refused as a whole if it cannot be.

A file whose name ends in +WIDTHxHEIGHT, with a picture of the name before that beside it, is an earlier result: it is
neither read nor copied, so that running again, in the same folder too, gives what the first run gave.
"""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from backend.config.tools import Resizing
from backend.data.decode import cpu_count
from backend.errors import UserError
from backend.images import DECODE_ERRORS, EXTENSIONS, FOREIGN, TURNED, opened, orientation, reason
from backend.picture_folder import readable
from backend.tables.buckets import Size
from backend.tables.resizing import target_size
from backend.tools.resize_picture import Target, Task

EARLIER = re.compile(r"(.+)\+[1-9]\d{0,4}x[1-9]\d{0,4}")
# Latents of a picture: they are not those of a smaller one.
CACHES = (".npz",)
SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """The files of a folder and of those below it, as paths relative to it, in order.

    Attributes:
        pictures: to be read.
        others: any other file.
        earlier: results of an earlier run.
        passed_over: links to folders, and what is neither file nor folder.
    """

    pictures: tuple[Path, ...]
    others: tuple[Path, ...]
    earlier: tuple[Path, ...]
    passed_over: tuple[Path, ...]

    @property
    def unreadable(self) -> tuple[Path, ...]:
        """Those of the others that are pictures or videos of a format that cannot be read here."""
        return tuple(path for path in self.others if path.suffix.lower() in FOREIGN)


@dataclass(frozen=True)
class Plan:
    """All that a run does.

    Attributes:
        tasks: one per picture with a good header.
        copies: pairs of file and copy, for files that belong to no task.
        broken: pairs of picture and why its header cannot be read.
        listing: what was found.
    """

    tasks: tuple[Task, ...]
    copies: tuple[tuple[Path, Path], ...]
    broken: tuple[tuple[Path, str], ...]
    listing: Listing


def make_plan(options: Resizing) -> Plan:
    """Look at the source and decide what is written.

    Raises:
        UserError: there is nothing to do, a file would be written twice, or one is there already.
        OSError: a folder cannot be listed.
    """
    check_folders(options.src, options.dst)
    listing = list_files(options.src)
    if not listing.pictures:
        raise UserError(f"no pictures in {options.src} or below (looked for {', '.join(EXTENSIONS)})", "src")
    with ThreadPoolExecutor(cpu_count()) as pool:
        headers = list(pool.map(read_header, [options.src / path for path in listing.pictures]))
    belonging = _by_stem(listing.others) if options.copy_associated_files else {}
    in_place = options.src.resolve() == options.dst.resolve()
    tasks, broken = [], []
    for path, header in zip(listing.pictures, headers, strict=True):
        if isinstance(header, str):
            broken.append((path, header))
            continue
        itself = () if in_place else ((options.src / path, options.dst / path),)
        tasks.append(_plan_picture(options, path, header, belonging.get(path.with_suffix(""), ()), itself))
    copies = () if in_place else tuple((options.src / path, options.dst / path) for path in listing.others)
    plan = Plan(tuple(tasks), copies, tuple(broken), listing)
    _check_outputs(plan, options)
    return plan


def check_folders(src: Path, dst: Path) -> None:
    """Refuse folders that are none, and a destination inside the source.

    Raises:
        UserError: so it is.
    """
    if not src.is_dir():
        raise UserError(f"{src} is a file; name its folder" if src.exists() else f"there is no folder {src}", "src")
    if dst.exists() and not dst.is_dir():
        raise UserError(f"{dst} is a file; name a folder", "dst")
    if dst.resolve() != src.resolve() and dst.resolve().is_relative_to(src.resolve()):
        raise UserError(f"{dst} is inside {src}, so its files would be read again; name a folder elsewhere", "dst")


def list_files(root: Path) -> Listing:
    """List a folder and those below; hidden files and folders are left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    files, passed_over = [], []
    for folder, inner, names in os.walk(root, onerror=_raise):
        here = Path(folder)
        inner[:] = [name for name in inner if not name.startswith(".")]
        passed_over += [here / name for name in inner if (here / name).is_symlink()]
        for path in (here / name for name in names if not name.startswith(".")):
            (files if path.is_file() else passed_over).append(path)
    found, odd = (sorted(path.relative_to(root) for path in paths) for paths in (files, passed_over))
    stems = {path.with_suffix("") for path in found if path.suffix.lower() in EXTENSIONS}
    earlier = {path for path in found if _base(path) in stems}
    kept = [path for path in found if path not in earlier]
    return Listing(
        tuple(path for path in kept if path.suffix.lower() in EXTENSIONS),
        tuple(path for path in kept if path.suffix.lower() not in EXTENSIONS),
        tuple(sorted(earlier)),
        tuple(odd),
    )


def read_header(path: Path) -> Size | str:
    """The upright size of a picture, from its header alone, or why that cannot be read."""
    try:
        with opened(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG in search of EXIF that may stand behind the pixels.
            turned = (image.format != "PNG" or "exif" in image.info) and orientation(image) in TURNED
    except DECODE_ERRORS as error:
        return reason(error)
    return (height, width) if turned else (width, height)


def names_of(paths: Sequence[Path]) -> str:
    """The first few of them."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{', '.join(map(readable, paths[:SHOWN]))}{more}"


def _plan_picture(
    options: Resizing, path: Path, size: Size, belonging: Iterable[Path], itself: tuple[tuple[Path, Path], ...]
) -> Task:
    targets, copies = [], list(itself)
    for area in options.sizes:
        if target_size(*size, *area, options.divisible_by) is None:
            continue
        stem = options.dst / path.parent / f"{path.stem}+{area[0]}x{area[1]}"
        targets.append(Target(Path(f"{stem}{'.png' if options.save_as_png else '.jpg'}"), area))
        copies += [(options.src / other, Path(f"{stem}{other.suffix}")) for other in belonging]
    return Task(options.src / path, size, tuple(targets), tuple(copies))


def _by_stem(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() not in CACHES:
            found.setdefault(path.with_suffix(""), []).append(path)
    return found


def _base(path: Path) -> Path | None:
    """The path, without suffix, of the picture that an earlier result would have been made from."""
    match = EARLIER.fullmatch(path.stem)
    return path.with_name(match[1]) if match else None


def _check_outputs(plan: Plan, options: Resizing) -> None:
    sources: dict[Path, Path] = {}
    outputs = [(target.path, task.source) for task in plan.tasks for target in task.targets]
    outputs += [(path, source) for task in plan.tasks for source, path in task.copies]
    outputs += [(path, source) for source, path in plan.copies]
    twice = []
    for path, source in outputs:
        if sources.setdefault(path, source) != source:
            twice.append(f"{sources[path]} and {source} as {path}")
    if twice:
        more = f", and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
        raise UserError(
            f"two files would be written under one name: {', '.join(twice[:SHOWN])}{more}; rename one", "src"
        )
    _check_sources(list(sources), plan.listing, options)
    there = [path for path in sources if (path.is_dir() if options.overwrite else os.path.lexists(path))]
    if there:
        remedy = "name another folder" if options.overwrite else "give --overwrite to replace them"
        raise UserError(f"{len(there)} of {len(sources)} files exist: {names_of(there)}; {remedy}", "dst")


def _check_sources(outputs: list[Path], listing: Listing, options: Resizing) -> None:
    """No file of the source is replaced, however the folders lie in each other."""
    folder = options.src.resolve()
    files = {folder / path for path in (*listing.pictures, *listing.others)}
    parents = {parent: parent.resolve() for parent in {path.parent for path in outputs}}
    hit = [path for path in outputs if parents[path.parent] / path.name in files]
    if hit:
        raise UserError(
            f"{len(hit)} files of {options.src} would be replaced: {names_of(hit)}; name another folder", "dst"
        )


def _raise(error: OSError) -> None:
    raise error
